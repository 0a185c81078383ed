package ssh

import (
	"context"
	"crypto"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func TestKeys(t *testing.T) {
	// host is one that lets in who has k.
	host := func(w *world, k crypto.Signer) {
		h := w.host("h2", []string{"ed25519"}, []ssh.PublicKey{signer(t, k).PublicKey()})
		w.know(h, h.keys...)
	}
	t.Run("wrong", func(t *testing.T) {
		w := newWorld(t)
		writeKey(t, w.path("id_rsa"), key(t, "rsa"), "")
		host(w, key(t, "ed25519"))
		fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", "log in as root@127.0.0.1:", "none of the keys", w.path("id_rsa"), "ssh-copy-id root@h2")
	})
	t.Run("none", func(t *testing.T) {
		w := newWorld(t)
		host(w, key(t, "ed25519"))
		fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", "there are no keys to log in with")
	})
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			k := key(t, kind)
			writeKey(t, w.path("id_"+kind), k, "")
			host(w, k)
			if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("that others can read", func(t *testing.T) {
		w := newWorld(t)
		k := key(t, "ed25519")
		writeKey(t, w.path("id_ed25519"), k, "")
		if err := os.Chmod(w.path("id_ed25519"), 0o644); err != nil {
			t.Fatal(err)
		}
		host(w, k)
		fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", "chmod 600 "+w.path("id_ed25519"))
	})
	for _, kind := range []string{"ed25519", "rsa"} {
		t.Run("with a passphrase, "+kind, func(t *testing.T) {
			w := newWorld(t)
			k := key(t, kind)
			writeKey(t, w.path("id_"+kind), k, "open sesame")
			host(w, k)
			fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", w.path("id_"+kind), "ssh-add "+w.path("id_"+kind))
			var asked atomic.Int32
			a := w.open(Config{Ask: func(_ context.Context, question string, secret bool) (string, error) {
				if !secret || !strings.Contains(question, w.path("id_"+kind)) {
					t.Errorf("asked %q, %v", question, secret)
				}
				return map[int32]string{1: "wrong"}[asked.Add(1)] + "open sesame"[11*btoi(asked.Load() == 1):], nil
			}}, "h2")
			errs := make(chan error)
			for range 3 {
				go func() { errs <- w.echo(a, "h2") }()
			}
			for range 3 {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			if n := asked.Load(); n != 2 {
				t.Errorf("asked %d times", n)
			}
		})
	}
	t.Run("with a passphrase that nobody knows", func(t *testing.T) {
		w := newWorld(t)
		k := key(t, "ed25519")
		writeKey(t, w.path("id_ed25519"), k, "open sesame")
		host(w, k)
		a := w.open(Config{Ask: func(context.Context, string, bool) (string, error) { return "no idea", nil }}, "h2")
		fails(t, w.echo(a, "h2"), "h2", "wrong 3 times")
		fails(t, w.echo(a, "h2"), "h2", "it was wrong")
	})
	t.Run("a locked one before a good one", func(t *testing.T) {
		w := newWorld(t)
		k := key(t, "rsa")
		writeKey(t, w.path("id_ed25519"), key(t, "ed25519"), "open sesame")
		writeKey(t, w.path("id_rsa"), k, "")
		host(w, k)
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("of the agent", func(t *testing.T) {
		w := newWorld(t)
		k := key(t, "rsa")
		w.agent = startAgent(t, key(t, "ed25519"), k)
		host(w, k)
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("of another agent", func(t *testing.T) {
		w := newWorld(t)
		k := key(t, "ed25519")
		w.write("config", "IdentityAgent "+startAgent(t, k)+"\n")
		w.agent = filepath.Join(t.TempDir(), "missing")
		host(w, k)
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("an agent that is gone", func(t *testing.T) {
		w := newWorld(t)
		w.agent = filepath.Join(t.TempDir(), "missing")
		host(w, key(t, "ed25519"))
		fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", "the agent at "+w.agent)
	})
	t.Run("only those of the configuration", func(t *testing.T) {
		w := newWorld(t)
		k := key(t, "ed25519")
		// More than a server lets one try.
		var many []crypto.Signer
		for range 8 {
			many = append(many, key(t, "ed25519"))
		}
		w.agent = startAgent(t, append(many, k)...)
		host(w, k)
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err == nil {
			t.Error("the server lets one try nine keys")
		}
		if err := os.WriteFile(w.path("cluster.pub"), ssh.MarshalAuthorizedKey(signer(t, k).PublicKey()), 0o644); err != nil {
			t.Fatal(err)
		}
		w.write("config", "IdentitiesOnly yes\nIdentityFile ~/.ssh/cluster\n")
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("certified", func(t *testing.T) {
		w := newWorld(t)
		authority, k := signer(t, key(t, "ed25519")), key(t, "ed25519")
		public := writeKey(t, w.path("id_ed25519"), k, "")
		certificate := &ssh.Certificate{Key: public, CertType: ssh.UserCert, KeyId: "me", ValidPrincipals: []string{"root"}, ValidBefore: ssh.CertTimeInfinity}
		if err := certificate.SignCert(readerOfRandom, authority); err != nil {
			t.Fatal(err)
		}
		w.write("id_ed25519-cert.pub", string(ssh.MarshalAuthorizedKey(certificate)))
		ca := filepath.Join(t.TempDir(), "ca")
		if err := os.WriteFile(ca, ssh.MarshalAuthorizedKey(authority.PublicKey()), 0o644); err != nil {
			t.Fatal(err)
		}
		h := w.host("h2", []string{"ed25519"}, nil, "TrustedUserCAKeys "+ca)
		w.know(h, h.keys...)
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// startAgent serves keys on a socket.
func startAgent(t *testing.T, keys ...crypto.Signer) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, k := range keys {
		if err := ring.Add(agent.AddedKey{PrivateKey: k}); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				agent.ServeAgent(ring, conn)
			}()
		}
	}()
	return path
}
