package ssh

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
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

func TestHostsOnTheWay(t *testing.T) {
	w := newWorld(t)
	gate, inner := w.simple("gate"), w.simple("inner")
	w.simple("middle")
	w.write("config", "Host far\nHostName 127.0.0.1\n"+fmt.Sprintf("Port %d\n", inner.port)+"ProxyJump gate,middle\n"+
		"Host direct\nHostName 127.0.0.1\n"+fmt.Sprintf("Port %d\n", inner.port)+"ProxyCommand nc-of-sorts %h %p\n"+
		"Host circle\nProxyJump circle\n"+
		fmt.Sprintf("Host lost\nHostName 127.0.0.1\nPort %d\nProxyJump gate\n", freePort(t))+
		"Host badgate\nProxyJump nobody@gate\n")
	a := w.open(Config{}, "far", "inner", "lost", "circle", "badgate")
	errs := make(chan error)
	for range 4 {
		go func() { errs <- w.echo(a, "far") }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(gate.log.String(), "Accepted publickey"); n != 1 {
		t.Errorf("%d logins at the gate for four connections, want 1", n)
	}
	fails(t, w.echo(a, "lost"), "lost", "through gate")
	fails(t, w.echo(a, "circle"), "circle", "round in circles")
	fails(t, w.echo(a, "badgate"), "badgate", "gate: log in as nobody@127.0.0.1", "none of the keys")
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestProxyCommand(t *testing.T) {
	w := newWorld(t)
	h := w.simple("h2")
	// bash's own TCP, so that the test needs no other program.
	w.write("config", "Host through\nHostName 127.0.0.1\n"+fmt.Sprintf("Port %d\n", h.port)+
		"ProxyCommand bash -c 'exec 3<>/dev/tcp/%h/%p; cat <&3 & cat >&3; kill $!'\n"+
		"Host broken\nHostName 127.0.0.1\n"+fmt.Sprintf("Port %d\n", h.port)+"ProxyCommand echo no way to %n >&2; exit 1\n")
	a := w.open(Config{}, "through", "broken")
	if err := w.echo(a, "through"); err != nil {
		t.Error(err)
	}
	fails(t, w.echo(a, "broken"), "broken")
}

func TestHostsThatAreNotThere(t *testing.T) {
	w := newWorld(t)
	w.simple("h1")
	w.enter("refuses", freePort(t))
	// One that takes connections, and says nothing.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	w.write("config", "Host silent\nConnectTimeout 1\nHost *\n")
	w.enter("silent", silent.Addr().(*net.TCPAddr).Port)
	// One that hangs up.
	rude, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer rude.Close()
	go func() {
		for {
			conn, err := rude.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	w.enter("rude", rude.Addr().(*net.TCPAddr).Port)
	w.write("config", "Host unknown\nHostName no-such-host.invalid\n")
	a := w.open(Config{}, "h1", "refuses", "silent", "rude", "unknown")
	fails(t, w.echo(a, "refuses"), "refuses", "127.0.0.1:", "connection refused", "does sshd run there")
	err = w.echo(a, "silent")
	fails(t, err, "silent", "waited 1s for its greeting")
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v is not that time was over", err)
	}
	fails(t, w.echo(a, "rude"), "rude", "closed the connection")
	fails(t, w.echo(a, "unknown"), "unknown", "no-such-host.invalid")

	// All at once.
	_, err = allocator.StartAll(t.Context(), a, a.Hosts(), program(t, "#!/bin/sh\ncat\n"), func(allocator.Host) []string { return nil }, nil)
	var all *allocator.HostErrors
	if !errors.As(err, &all) || len(all.Errors) != 4 || !strings.HasPrefix(err.Error(), "4 of 5 hosts cannot be used:\n  refuses: ") {
		t.Errorf("all at once: %v", err)
	}
	t.Log(err)

	// A context that ends while the host is silent.
	w.write("config", "Host patient\nConnectTimeout 600\nHost *\n")
	w.enter("patient", silent.Addr().(*net.TCPAddr).Port)
	b := w.open(Config{}, "patient")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := b.Start(ctx, b.Hosts()[0], program(t, "#!/bin/sh\n")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not that the context has ended", err)
	}
}

func TestConnectionsThatAreCut(t *testing.T) {
	w := newWorld(t)
	h := w.simple("h2")
	a := w.open(Config{}, "h2")
	path := program(t, "#!/bin/sh\necho about to hang >&2\necho $PPID $$\nexec cat\n")
	start := func(name string) (p allocator.Process, sshd, pid int) {
		p, err := a.Start(t.Context(), allocator.Host{Name: name}, path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscanln(p, &sshd, &pid); err != nil {
			t.Fatal(err)
		}
		return p, sshd, pid
	}
	lost := func(p allocator.Process, what ...string) {
		t.Helper()
		if _, err := p.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: %v", err)
		}
		err := p.Wait()
		fails(t, err, "h2", what...)
		if !errors.Is(err, allocator.ErrLost) {
			t.Errorf("%v is not that the connection was lost", err)
		}
		p.Close()
	}
	// sshd's child dies.
	p, child, pid := start("h2")
	if err := killProcess(child); err != nil {
		t.Fatal(err)
	}
	lost(p, "the connection was lost", "about to hang")
	ended(t, pid)

	// The host is silent, as one that has lost its power.
	w.write("config", "Host far\nServerAliveInterval 1\nServerAliveCountMax 2\nHost *\n")
	line := newWire(t, h.port)
	w.enter("far", line.port)
	w.write("known_hosts", knownhosts.Line([]string{fmt.Sprintf("127.0.0.1:%d", line.port)}, h.keys[0])+"\n")
	a = w.open(Config{}, "far")
	p, _, pid = start("far")
	line.hold()
	err := p.Wait()
	fails(t, err, "far", "no answer for 2s")
	if !errors.Is(err, allocator.ErrLost) {
		t.Errorf("%v is not that the connection was lost", err)
	}
	line.cut()
	ended(t, pid) // by the end of its input
}
