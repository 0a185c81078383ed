package ssh

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/hostlist"
)

// limit is for a wait that ends in milliseconds if all is well.
const limit = 2 * time.Minute

// world is a user with a home, and hosts that are OpenSSH's sshd on loopback.
type world struct {
	account
	t      testing.TB
	system string // instead of /etc/ssh
	far    string // the home on all hosts

	mu      sync.Mutex
	notices []string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{account: account{name: "root", home: filepath.Join(dir, "home")}, t: t, system: filepath.Join(dir, "etc"), far: filepath.Join(dir, "far")}
	for _, d := range []string{w.home, filepath.Join(w.home, ".ssh"), w.system, w.far} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing of this machine is to be looked at.
	w.write("config", "GlobalKnownHostsFile none\n")
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.home, ".ssh", name) }

// write appends to a file of ~/.ssh.
func (w *world) write(name, text string) {
	w.t.Helper()
	f, err := os.OpenFile(w.path(name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		w.t.Fatal(err)
	}
}

// key makes a key of a kind.
func key(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var k crypto.Signer
	var err error
	switch kind {
	case "ed25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	case "ecdsa":
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signer(t testing.TB, k crypto.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// writeKey writes a private key, and returns the public one.
func writeKey(t testing.TB, path string, k crypto.Signer, passphrase string) ssh.PublicKey {
	t.Helper()
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(k, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(k, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return signer(t, k).PublicKey()
}

// sshd is a host.
type sshd struct {
	name string
	port int
	keys []ssh.PublicKey // of the host
	cmd  *exec.Cmd
	log  *buffer
}

// buffer is a bytes.Buffer for many.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// host starts an sshd that lets in who has one of the keys, and enters it into
// the user's configuration.
func (w *world) host(name string, kinds []string, allowed []ssh.PublicKey, more ...string) *sshd {
	t := w.t
	t.Helper()
	program, err := exec.LookPath("sshd")
	if err != nil {
		program = "/usr/sbin/sshd"
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("there is no sshd to log in to (apt-get install openssh-server): %v", err)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // where it separates privileges
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &sshd{name: name, port: freePort(t), log: new(buffer)}
	var lines []string
	for _, kind := range kinds {
		path := filepath.Join(dir, "host_"+kind)
		h.keys = append(h.keys, writeKey(t, path, key(t, kind), ""))
		lines = append(lines, "HostKey "+path)
	}
	var authorized bytes.Buffer
	for _, k := range allowed {
		authorized.Write(ssh.MarshalAuthorizedKey(k))
	}
	if err := os.WriteFile(filepath.Join(dir, "authorized_keys"), authorized.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	lines = append(lines, more...)
	lines = append(lines,
		"ListenAddress 127.0.0.1", fmt.Sprintf("Port %d", h.port), "PidFile none", "UsePAM no", "StrictModes no",
		"PermitRootLogin prohibit-password", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
		"MaxStartups 200", "AuthorizedKeysFile "+filepath.Join(dir, "authorized_keys"), "SetEnv HOME="+w.far)
	config := filepath.Join(dir, "sshd_config")
	if err := os.WriteFile(config, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.cmd = exec.Command(program, "-D", "-e", "-f", config)
	h.cmd.Stderr = h.log
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.cmd.Process.Kill()
		h.cmd.Wait()
		if t.Failed() {
			t.Logf("sshd of %s:\n%s", name, h.log)
		}
	})
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.port)); err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("sshd of %s does not listen: %s", name, h.log)
		}
	}
	w.enter(name, h.port)
	return h
}

// enter names a port of loopback as a host.
func (w *world) enter(name string, port int) {
	w.write("config", fmt.Sprintf("Host %s\n HostName 127.0.0.1\n Port %d\nHost *\n", name, port))
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// know enters a host's keys into known_hosts.
func (w *world) know(h *sshd, keys ...ssh.PublicKey) {
	w.t.Helper()
	for _, k := range keys {
		w.write("known_hosts", knownhosts.Line([]string{fmt.Sprintf("127.0.0.1:%d", h.port)}, k)+"\n")
	}
}

// simple is a host that everything is right with.
func (w *world) simple(name string, more ...string) *sshd {
	w.t.Helper()
	path := w.path("id_ed25519")
	var mine ssh.PublicKey
	if text, err := os.ReadFile(path); err == nil {
		s, err := ssh.ParsePrivateKey(text)
		if err != nil {
			w.t.Fatal(err)
		}
		mine = s.PublicKey()
	} else {
		mine = writeKey(w.t, path, key(w.t, "ed25519"), "")
	}
	h := w.host(name, []string{"ed25519"}, []ssh.PublicKey{mine}, more...)
	w.know(h, h.keys...)
	return h
}

// open makes an allocation of hosts by name.
func (w *world) open(c Config, names ...string) *Allocation {
	w.t.Helper()
	for _, name := range names {
		c.Hosts = append(c.Hosts, hostlist.Host{Host: allocator.Host{Name: name}})
	}
	if c.Notice == nil {
		c.Notice = func(line string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.notices = append(w.notices, line)
		}
	}
	a, err := newAllocation(c, w.account, w.system)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { a.Close() })
	return a
}

func (w *world) noticed() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.notices, "\n")
}

// program makes an executable file.
func program(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// echo runs a program on a host that says hello, and returns the error.
func (w *world) echo(a *Allocation, name string) error {
	w.t.Helper()
	p, err := a.Start(w.t.Context(), allocator.Host{Name: name}, program(w.t, "#!/bin/sh\necho hello\n"))
	if err != nil {
		return err
	}
	defer p.Close()
	line := make([]byte, 6)
	if _, err := p.Read(line); err != nil || string(line) != "hello\n" {
		return fmt.Errorf("read %q: %w", line, err)
	}
	return p.Wait()
}

// fails checks that an error names the host and says all of what.
func fails(t testing.TB, err error, name string, what ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", what)
	}
	if !strings.HasPrefix(err.Error(), name+": ") || strings.Count(err.Error(), name+": ") != 1 {
		t.Errorf("%q does not name the host %s, once", err, name)
	}
	for _, one := range what {
		if !strings.Contains(err.Error(), one) {
			t.Errorf("%q does not say %q", err, one)
		}
	}
	t.Log(err)
}
