package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// server serves clients on loopback.
type server struct {
	addr    *net.TCPAddr
	host    ssh.Signer
	user    ssh.Signer // who is let in
	keyFile string     // its private key
	hosts   string     // known_hosts
	ended   chan error // what Serve returned, for each client
}

func newKey(t *testing.T) (ssh.Signer, []byte) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return signer, pem.EncodeToMemory(block)
}

func serve(t *testing.T, start func(Program) (Process, error)) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dir := t.TempDir()
	s := &server{addr: l.Addr().(*net.TCPAddr), keyFile: filepath.Join(dir, "key"), hosts: filepath.Join(dir, "hosts"), ended: make(chan error, 100)}
	var secret []byte
	s.host, _ = newKey(t)
	s.user, secret = newKey(t)
	if err := os.WriteFile(s.keyFile, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	known := fmt.Sprintf("[127.0.0.1]:%d %s", s.addr.Port, ssh.MarshalAuthorizedKey(s.host.PublicKey()))
	if err := os.WriteFile(s.hosts, []byte(known), 0o644); err != nil {
		t.Fatal(err)
	}
	other, _ := newKey(t)
	config := Config{HostKey: s.host, AuthorizedKeys: []ssh.PublicKey{other.PublicKey(), s.user.PublicKey()}, Start: start}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { s.ended <- Serve(t.Context(), conn, config) }()
		}
	}()
	return s
}

// openssh is a command of the real client.
func (s *server) openssh(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatalf("this test needs OpenSSH's client (Debian: openssh-client): %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, path, append([]string{
		"-F", "none", "-p", fmt.Sprint(s.addr.Port), "-i", s.keyFile, "-l", "somebody",
		"-o", "UserKnownHostsFile=" + s.hosts, "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
		"-o", "BatchMode=yes", "-o", "IdentityAgent=none", "-o", "LogLevel=ERROR",
	}, args...)...)
}

// dial is a client of x/crypto's.
func (s *server) dial(t *testing.T, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	t.Helper()
	c, err := ssh.Dial("tcp", s.addr.String(), &ssh.ClientConfig{
		User: "somebody", Auth: auth, HostKeyCallback: ssh.FixedHostKey(s.host.PublicKey()), Timeout: 10 * time.Second,
	})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// child is a process of this one, for sshd.
type child struct{ cmd *exec.Cmd }

func (c child) Signal(n int)          { syscall.Kill(-c.cmd.Process.Pid, syscall.Signal(n)) }
func (c child) Resize(uint16, uint16) {}
func (c child) HangUp()               {}

func (c child) Wait() Exit {
	c.cmd.Wait()
	ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return Exit{Signal: int(ws.Signal()), Core: ws.CoreDump()}
	}
	return Exit{Status: ws.ExitStatus()}
}

// startChild runs programs with /bin/sh, at no terminal.
func startChild(p Program) (Process, error) {
	cmd := exec.Command("/bin/sh")
	if p.Command != "" {
		cmd.Args = append(cmd.Args, "-c", p.Command)
	}
	cmd.Env = append(p.Env, "USER="+p.User, "PATH=/usr/bin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	var theirs []*os.File
	for _, o := range []struct {
		at *io.Writer
		to io.WriteCloser
	}{{&cmd.Stdout, p.Stdout}, {&cmd.Stderr, p.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		*o.at, theirs = w, append(theirs, w)
		go func() { io.Copy(o.to, r); r.Close(); o.to.Close() }()
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for _, f := range theirs {
		f.Close()
	}
	go func() { io.Copy(in, p.Stdin); in.Close() }()
	return child{cmd}, nil
}

func TestOpenSSH(t *testing.T) {
	s := serve(t, startChild)
	big := bytes.Repeat([]byte("0123456789abcde\n"), 200_000)
	for name, c := range map[string]struct {
		args     []string
		in       string
		out, err string
		status   int
	}{
		"success":                 {[]string{"true"}, "", "", "", 0},
		"a status":                {[]string{"exit 7"}, "", "", "", 7},
		"the largest status":      {[]string{"exit 255"}, "", "", "", 255},
		"a signal":                {[]string{"kill -TERM $$"}, "", "", "", 255},
		"streams are apart":       {[]string{"echo out; echo err >&2"}, "", "out\n", "err\n", 0},
		"input and its end":       {[]string{"cat; echo end"}, "one\ntwo", "one\ntwoend\n", "", 0},
		"a lot both ways":         {[]string{"cat"}, string(big), string(big), "", 0},
		"input that nobody reads": {[]string{"exec <&-; sleep 0.1; echo done"}, string(big), "done\n", "", 0},
		"a shell":                 {nil, "echo hello from $USER\nexit 3\n", "hello from somebody\n", "", 3},
		"no input":                {[]string{"-n", "cat; echo end"}, "", "end\n", "", 0},
		"late output":             {[]string{"(sleep 0.3; echo late) & echo early"}, "", "early\nlate\n", "", 0},
		"a closed output":         {[]string{"exec >&- 2>&-; sleep 0.1; exit 4"}, "", "", "", 4},
		"keepalives":              {[]string{"-o", "ServerAliveInterval=1", "sleep 2.5; echo done"}, "", "done\n", "", 0},
		"a locale":                {[]string{"-o", "SetEnv=LC_ALL=C LANG=de_DE LD_PRELOAD=/evil PATH=/evil", "echo $LC_ALL $LANG $LD_PRELOAD"}, "", "C de_DE\n", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := s.openssh(t)
			// Options stand before the host, and the command after it.
			var command []string
			for i := 0; i < len(c.args); i++ {
				switch {
				case c.args[i] == "-n":
					cmd.Args = append(cmd.Args, "-n")
				case c.args[i] == "-o":
					i++
					cmd.Args = append(cmd.Args, "-o", c.args[i])
				default:
					command = append(command, c.args[i])
				}
			}
			cmd.Args = append(append(cmd.Args, "127.0.0.1"), command...)
			var out, errs bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.in), &out, &errs
			cmd.Run()
			if got := cmd.ProcessState.ExitCode(); got != c.status {
				t.Errorf("ssh ended with %d, want %d", got, c.status)
			}
			if out.String() != c.out {
				t.Errorf("output is %d bytes %.100q, want %d bytes %.100q", out.Len(), out.String(), len(c.out), c.out)
			}
			if errs.String() != c.err {
				t.Errorf("error output is %q, want %q", errs.String(), c.err)
			}
			// That a client leaves is no error.
			select {
			case err := <-s.ended:
				if err != nil {
					t.Errorf("serving it ended with: %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("waited 10 s for the end of serving a client that has left")
			}
		})
	}
}

// What the real client is refused, and says of it.
func TestOpenSSHRefused(t *testing.T) {
	s := serve(t, startChild)
	_, wrong := newKey(t)
	wrongFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(wrongFile, wrong, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"another key":       {[]string{"127.0.0.1", "true"}, "Permission denied (publickey)"},
		"no key":            {[]string{"-o", "PubkeyAuthentication=no", "127.0.0.1", "true"}, "Permission denied (publickey)"},
		"forward from here": {[]string{"-W", "127.0.0.1:22", "127.0.0.1"}, "stdio forwarding failed"},
		"forward to here":   {[]string{"-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22", "127.0.0.1", "true"}, "forwarding failed"},
		"forward a socket":  {[]string{"-o", "ExitOnForwardFailure=yes", "-R", "/tmp/sock:127.0.0.1:22", "127.0.0.1", "true"}, "forwarding failed"},
		"a subsystem":       {[]string{"-s", "127.0.0.1", "sftp"}, "subsystem request failed"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := s.openssh(t, c.args...)
			if name == "another key" {
				for i, a := range cmd.Args {
					if a == s.keyFile {
						cmd.Args[i] = wrongFile
					}
				}
			}
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Error("ssh succeeded")
			}
			if !strings.Contains(string(out), c.want) {
				t.Errorf("ssh said %q, and should say %q", out, c.want)
			}
		})
	}
}

func TestAuthentication(t *testing.T) {
	s := serve(t, startChild)
	wrong, _ := newKey(t)
	for name, auth := range map[string]ssh.AuthMethod{
		"another key": ssh.PublicKeys(wrong),
		"a password":  ssh.Password("root"),
		"no password": ssh.Password(""),
		"questions": ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
			return make([]string, len(questions)), nil
		}),
	} {
		if _, err := s.dial(t, auth); err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-s.ended; err == nil || !strings.Contains(err.Error(), "let an SSH client in") {
			t.Errorf("%s: serving it ended with: %v", name, err)
		}
	}
	if _, err := s.dial(t); err == nil {
		t.Error("nothing at all was let in")
	}
	if _, err := s.dial(t, ssh.PublicKeys(wrong, s.user)); err != nil {
		t.Errorf("the right key, after a wrong one: %v", err)
	}
}

func TestClient(t *testing.T) {
	s := serve(t, startChild)
	client, err := s.dial(t, ssh.PublicKeys(s.user))
	if err != nil {
		t.Fatal(err)
	}
	session := func() *ssh.Session {
		t.Helper()
		one, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { one.Close() })
		return one
	}
	t.Run("a signal's name", func(t *testing.T) {
		var exit *ssh.ExitError
		if err := session().Run("kill -USR1 $$"); !errors.As(err, &exit) || exit.Signal() != "USR1" {
			t.Errorf("it ended with %v", err)
		}
		// XCPU has no name in SSH.
		if err := session().Run("kill -XCPU $$"); !errors.As(err, &exit) || exit.Signal() != "24@mpirun-sf" {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("to send a signal", func(t *testing.T) {
		one := session()
		out, err := one.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := one.Start("trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.01; done"); err != nil {
			t.Fatal(err)
		}
		io.ReadFull(out, make([]byte, len("ready\n")))
		if err := one.Signal("NONSENSE"); err != nil {
			t.Fatal(err)
		}
		if err := one.Signal(ssh.SIGINT); err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(out)
		var exit *ssh.ExitError
		if err := one.Wait(); string(got) != "caught\n" || !errors.As(err, &exit) || exit.ExitStatus() != 5 {
			t.Errorf("it wrote %q and ended with %v", got, err)
		}
	})
	t.Run("sessions at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 8 {
			one := session()
			wg.Go(func() {
				h := sha256.New()
				one.Stdout = h
				err := one.Run(fmt.Sprintf("head -c 3000000 /dev/zero | tr '\\0' %d", i))
				want := sha256.Sum256(bytes.Repeat([]byte{byte('0' + i)}, 3000000))
				if err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
					t.Errorf("session %d: %v, or another sum", i, err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("refusals", func(t *testing.T) {
		one := session()
		for kind, payload := range map[string][]byte{
			"subsystem":                  ssh.Marshal(struct{ Name string }{"sftp"}),
			"auth-agent-req@openssh.com": nil,
			"x11-req": ssh.Marshal(struct {
				Single         bool
				Protocol, Data string
				Screen         uint32
			}{false, "MIT-MAGIC-COOKIE-1", "00", 0}),
			"env":           ssh.Marshal(struct{ Name, Value string }{"LD_PRELOAD", "/evil"}),
			"window-change": ssh.Marshal(struct{ A, B, C, D uint32 }{1, 1, 1, 1}),
			"signal":        ssh.Marshal(struct{ Name string }{"TERM"}),
			"pty-req":       []byte("nonsense"),
			"exec":          []byte("nonsense"),
			"unheard-of":    nil,
		} {
			if ok, err := one.SendRequest(kind, true, payload); ok || err != nil {
				t.Errorf("the request %s was granted (%v, %v)", kind, ok, err)
			}
		}
		for kind := range map[string]bool{"tcpip-forward": true, "streamlocal-forward@openssh.com": true} {
			if ok, _, err := client.SendRequest(kind, true, nil); ok || err != nil {
				t.Errorf("the request %s was granted (%v, %v)", kind, ok, err)
			}
		}
		for _, kind := range []string{"direct-tcpip", "direct-streamlocal@openssh.com", "tun@openssh.com", "forwarded-tcpip", "unheard-of"} {
			if _, _, err := client.OpenChannel(kind, nil); err == nil {
				t.Errorf("a channel for %s was opened", kind)
			}
		}
		// One session has one program.
		if err := one.Start("sleep 0.2"); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"exec", "shell", "pty-req", "env"} {
			if ok, _ := one.SendRequest(kind, true, ssh.Marshal(struct{ A, B string }{"LANG", "C"})); ok {
				t.Errorf("the request %s was granted beside a program", kind)
			}
		}
		if err := one.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// screen is a program that only notes what it hears of its terminal.
type screen struct {
	Program
	said chan string
}

func (s screen) Signal(n int)             { s.said <- fmt.Sprintf("signal %d", n) }
func (s screen) Resize(rows, cols uint16) { s.said <- fmt.Sprintf("%d rows, %d columns", rows, cols) }
func (s screen) HangUp()                  { s.said <- "hung up" }
func (s screen) Wait() Exit               { select {} }

func TestTerminalAndLoss(t *testing.T) {
	said := make(chan string, 10)
	s := serve(t, func(p Program) (Process, error) {
		if p.Terminal == nil || p.Stderr != nil {
			return nil, errors.New("it asked for no terminal")
		}
		said <- fmt.Sprintf("%s, %d rows, %d columns, %v, %q", p.Terminal.Term, p.Terminal.Rows, p.Terminal.Cols, p.Env, p.Command)
		return screen{p, said}, nil
	})
	hear := func(want string) {
		t.Helper()
		select {
		case got := <-said:
			if got != want {
				t.Errorf("the program heard %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("waited 10 s for the program to hear %q", want)
		}
	}
	client, err := s.dial(t, ssh.PublicKeys(s.user))
	if err != nil {
		t.Fatal(err)
	}
	for _, lose := range []string{"session", "connection"} {
		one, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := one.RequestPty("vt220", 25, 81, nil); err != nil {
			t.Fatal(err)
		}
		if err := one.Setenv("LC_CTYPE", "C"); err != nil {
			t.Fatal(err)
		}
		if err := one.Start("work"); err != nil {
			t.Fatal(err)
		}
		hear(`vt220, 25 rows, 81 columns, [LC_CTYPE=C], "work"`)
		one.WindowChange(50, 100)
		hear("50 rows, 100 columns")
		one.Signal(ssh.SIGHUP)
		hear("signal 1")
		if lose == "session" {
			one.Close()
		} else {
			client.Close()
		}
		hear("hung up")
	}
}

func TestStartFails(t *testing.T) {
	s := serve(t, func(Program) (Process, error) { return nil, errors.New("there is no shell") })
	cmd := s.openssh(t, "127.0.0.1", "true")
	out, _ := cmd.CombinedOutput()
	if string(out) != "mpirun-sf: there is no shell\n" || cmd.ProcessState.ExitCode() != failed {
		t.Errorf("ssh said %q and ended with %v", out, cmd.ProcessState)
	}
}

// The context ends the service.
func TestContext(t *testing.T) {
	key, _ := newKey(t)
	mine, theirs := net.Pipe()
	defer mine.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Serve(ctx, theirs, Config{HostKey: key}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a client that says nothing was served until: %v", err)
	}
}
