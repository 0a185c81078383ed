package ssh

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestHostKeys(t *testing.T) {
	mine := func(w *world) []ssh.PublicKey {
		return []ssh.PublicKey{writeKey(t, w.path("id_ed25519"), key(t, "ed25519"), "")}
	}
	t.Run("unknown", func(t *testing.T) {
		w := newWorld(t)
		h := w.host("h2", []string{"ed25519"}, mine(w))
		fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", "is not known", fmt.Sprintf("[127.0.0.1]:%d", h.port), ssh.FingerprintSHA256(h.keys[0]), "ssh root@h2 once")
		if _, err := os.Stat(w.path("known_hosts")); err == nil {
			t.Error("it is in known_hosts now")
		}
	})
	t.Run("changed", func(t *testing.T) {
		w := newWorld(t)
		h := w.host("h2", []string{"ed25519"}, mine(w))
		w.know(h, signer(t, key(t, "ed25519")).PublicKey())
		fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", "has changed", w.path("known_hosts")+":1", "ssh-keygen -R")
	})
	t.Run("changed, and accept-new", func(t *testing.T) {
		w := newWorld(t)
		w.write("config", "StrictHostKeyChecking accept-new\n")
		h := w.host("h2", []string{"ed25519"}, mine(w))
		w.know(h, signer(t, key(t, "ed25519")).PublicKey())
		fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", "has changed")
	})
	t.Run("of another kind", func(t *testing.T) {
		w := newWorld(t)
		h := w.host("h2", []string{"ecdsa"}, mine(w))
		w.know(h, signer(t, key(t, "ed25519")).PublicKey())
		fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", "of the kind ecdsa-sha2-nistp256", "of the kind ssh-ed25519")
	})
	t.Run("revoked", func(t *testing.T) {
		w := newWorld(t)
		h := w.host("h2", []string{"ed25519"}, mine(w))
		w.know(h, h.keys...)
		w.write("known_hosts", "@revoked * "+string(ssh.MarshalAuthorizedKey(h.keys[0])))
		fails(t, w.echo(w.open(Config{}, "h2"), "h2"), "h2", "revoked", "known_hosts:2")
	})
	// The server prefers another key than the one that is known.
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		t.Run("many, and known by "+kind, func(t *testing.T) {
			w := newWorld(t)
			kinds := []string{"rsa", "ecdsa", "ed25519"}
			h := w.host("h2", kinds, mine(w))
			for i, one := range kinds {
				if one == kind {
					w.know(h, h.keys[i])
				}
			}
			if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("of the kinds that the configuration names", func(t *testing.T) {
		w := newWorld(t)
		w.write("config", "Host h2\nHostKeyAlgorithms sk-ssh-ed25519@openssh.com,rsa-sha2-512\nHost h3\nHostKeyAlgorithms sk-ssh-ed25519@openssh.com\nHost *\n")
		h := w.host("h2", []string{"rsa", "ed25519"}, mine(w))
		w.know(h, h.keys[0])
		w.enter("h3", h.port)
		a := w.open(Config{}, "h2", "h3")
		if err := w.echo(a, "h2"); err != nil {
			t.Error(err)
		}
		fails(t, w.echo(a, "h3"), "h3", "HostKeyAlgorithms sk-ssh-ed25519@openssh.com")
	})
	t.Run("hashed", func(t *testing.T) {
		w := newWorld(t)
		h := w.host("h2", []string{"ed25519"}, mine(w))
		w.write("known_hosts", "|1|AAAA|BBBB ssh-unheard-of AAAA\nnot a line\n"+
			knownhosts.HashHostname(fmt.Sprintf("[127.0.0.1]:%d", h.port))+" "+string(ssh.MarshalAuthorizedKey(h.keys[0])))
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("known without its port", func(t *testing.T) {
		w := newWorld(t)
		h := w.host("h2", []string{"ed25519"}, mine(w))
		w.write("known_hosts", "127.0.0.* "+string(ssh.MarshalAuthorizedKey(h.keys[0])))
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("by its alias", func(t *testing.T) {
		w := newWorld(t)
		w.write("config", "Host h2\nHostKeyAlias cluster\nUserKnownHostsFile ~/.ssh/a ~/.ssh/b\nHost *\n")
		h := w.host("h2", []string{"ed25519"}, mine(w))
		w.write("b", "cluster "+string(ssh.MarshalAuthorizedKey(h.keys[0])))
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("accept-new", func(t *testing.T) {
		w := newWorld(t)
		w.write("config", "StrictHostKeyChecking accept-new\nHashKnownHosts yes\n")
		w.host("h2", []string{"ed25519"}, mine(w))
		w.write("known_hosts", "# no line end")
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
		if text, _ := os.ReadFile(w.path("known_hosts")); !strings.HasPrefix(string(text), "# no line end\n|1|") || strings.Count(string(text), "\n") != 2 {
			t.Errorf("known_hosts is %q", text)
		}
		if !strings.Contains(w.noticed(), "h2: host key SHA256:") {
			t.Errorf("the user was told %q", w.noticed())
		}
		// Now it is known, and what is known counts without asking.
		w.write("config", "Host h2\n")
		if err := w.echo(w.open(Config{}, "h2"), "h2"); err != nil {
			t.Error(err)
		}
		if text, _ := os.ReadFile(w.path("known_hosts")); strings.Count(string(text), "\n") != 2 {
			t.Errorf("known_hosts is %q", text)
		}
	})
	t.Run("asked for", func(t *testing.T) {
		w := newWorld(t)
		w.host("h2", []string{"ed25519"}, mine(w))
		asked := 0
		answer := "no"
		ask := func(_ context.Context, question string, secret bool) (string, error) {
			if secret || !strings.Contains(question, "h2") || !strings.Contains(question, "SHA256:") {
				t.Errorf("asked %q, %v", question, secret)
			}
			asked++
			return answer, nil
		}
		fails(t, w.echo(w.open(Config{Ask: ask}, "h2"), "h2"), "h2", "you said no")
		answer = "yes"
		a := w.open(Config{Ask: ask}, "h2")
		for range 2 {
			if err := w.echo(a, "h2"); err != nil {
				t.Error(err)
			}
		}
		if asked != 2 {
			t.Errorf("asked %d times", asked)
		}
	})
	t.Run("certified", func(t *testing.T) {
		w := newWorld(t)
		authority := signer(t, key(t, "ed25519"))
		dir := t.TempDir()
		path := filepath.Join(dir, "key")
		public := writeKey(t, path, key(t, "ed25519"), "")
		for principal, ok := range map[string]bool{"127.0.0.1": true, "other": false} {
			certificate := &ssh.Certificate{Key: public, CertType: ssh.HostCert, KeyId: "h2", ValidPrincipals: []string{principal}, ValidBefore: ssh.CertTimeInfinity}
			if err := certificate.SignCert(readerOfRandom, authority); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path+"-cert.pub", ssh.MarshalAuthorizedKey(certificate), 0o644); err != nil {
				t.Fatal(err)
			}
			name := "host-" + strings.ReplaceAll(principal, ".", "-")
			w.host(name, []string{"rsa"}, mine(w), "HostKey "+path, "HostCertificate "+path+"-cert.pub")
			w.write("known_hosts", "@cert-authority [127.0.0.1]:* "+string(ssh.MarshalAuthorizedKey(authority.PublicKey())))
			err := w.echo(w.open(Config{}, name), name)
			if ok && err != nil {
				t.Error(err)
			} else if !ok {
				fails(t, err, name, "its certificate", "not valid")
			}
		}
	})
}
