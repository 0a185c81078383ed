package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// odd is a host that is not OpenSSH's: what it does with a command is up to the
// test.
type odd struct {
	port int
	key  ssh.PublicKey
}

// oddHost lets anybody in, and runs commands by run.
func (w *world) oddHost(name string, run func(command string, in io.Reader, out, errs io.Writer) (status int)) *odd {
	t := w.t
	t.Helper()
	hostKey := signer(t, key(t, "ed25519"))
	config := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	config.AddHostKey(hostKey)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	o := &odd{l.Addr().(*net.TCPAddr).Port, hostKey.PublicKey()}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, channels, requests, err := ssh.NewServerConn(conn, config)
				if err != nil {
					return
				}
				go ssh.DiscardRequests(requests)
				for one := range channels {
					channel, requests, err := one.Accept()
					if err != nil {
						return
					}
					go serve(channel, requests, run)
				}
			}()
		}
	}()
	if _, err := os.Stat(w.path("id_ed25519")); err != nil {
		writeKey(t, w.path("id_ed25519"), key(t, "ed25519"), "")
	}
	w.enter(name, o.port)
	w.know(&sshd{port: o.port}, o.key)
	return o
}

func serve(channel ssh.Channel, requests <-chan *ssh.Request, run func(string, io.Reader, io.Writer, io.Writer) int) {
	for r := range requests {
		var command struct{ Line string }
		if r.Type != "exec" || ssh.Unmarshal(r.Payload, &command) != nil {
			r.Reply(false, nil)
			continue
		}
		r.Reply(true, nil)
		go func() {
			defer channel.Close()
			status := run(command.Line, channel, channel, channel.Stderr())
			if status >= 0 {
				channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
			}
		}()
	}
}

// shell runs commands by a shell, in an environment.
func shell(argv []string, env ...string) func(string, io.Reader, io.Writer, io.Writer) int {
	return func(line string, in io.Reader, out, errs io.Writer) int {
		cmd := exec.Command(argv[0], append(argv[1:len(argv):len(argv)], line)...)
		cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return -1
		}
		cmd.Stdout, cmd.Stderr = out, errs
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(errs, err)
			return 127
		}
		go func() {
			io.Copy(stdin, in)
			stdin.Close()
		}()
		cmd.Wait()
		return cmd.ProcessState.ExitCode()
	}
}

func TestProgramsAreCopiedOnce(t *testing.T) {
	w := newWorld(t)
	w.simple("h1")
	a := w.open(Config{}, "h1")
	// So large that it takes many packets, and more than a window of the channel.
	big := append([]byte("#!/bin/sh\necho $0\nexit\n"), bytes.Repeat([]byte("x"), 5<<20)...)
	path := program(t, string(big))
	run := func(path string) string {
		t.Helper()
		p, err := a.Start(t.Context(), a.Hosts()[0], path)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		out, err := io.ReadAll(p)
		if err != nil || p.Wait() != nil {
			t.Fatal(err, p.Wait())
		}
		return strings.TrimSpace(string(out))
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if p, err := a.Start(t.Context(), a.Hosts()[0], path); err != nil {
				t.Error(err)
			} else {
				p.Close()
			}
		})
	}
	all.Wait()
	there := run(path)
	if !strings.HasPrefix(there, filepath.Join(w.far, ".cache/mpirun-sf/bin")+"/") || !strings.HasSuffix(there, "/mpirun-sf") {
		t.Fatalf("it runs as %s", there)
	}
	got, err := os.ReadFile(there)
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes arrived, of %d: %v", len(got), len(big), err)
	}
	if left, _ := filepath.Glob(filepath.Dir(there) + "/.*"); len(left) > 2 { // . and ..
		t.Errorf("left there: %v", left)
	}
	before, err := os.Stat(there)
	if err != nil {
		t.Fatal(err)
	}
	run(path)
	if after, err := os.Stat(there); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was copied again (%v)", err)
	}
	// Of many versions three are kept, and whose content is asked for is told by
	// its hash, also where the name is the same.
	var last []string
	for i := range 4 {
		if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\n# version %d\necho $0\n", i), 0o755); err != nil {
			t.Fatal(err)
		}
		last = append(last, run(path))
		time.Sleep(20 * time.Millisecond) // so that there is an order
	}
	kept, err := filepath.Glob(filepath.Join(w.far, ".cache/mpirun-sf/bin/*/mpirun-sf"))
	if err != nil || len(kept) != 3 {
		t.Errorf("kept %v", kept)
	}
	for _, one := range last[1:] {
		if _, err := os.Stat(one); err != nil {
			t.Error(err)
		}
	}
}

func TestPlacesOfPrograms(t *testing.T) {
	hello := program(t, "#!/bin/sh\necho $0 $1\n")
	start := func(t *testing.T, w *world) (string, error) {
		t.Helper()
		a := w.open(Config{}, "h1")
		p, err := a.Start(t.Context(), a.Hosts()[0], hello, "it's me")
		if err != nil {
			return "", err
		}
		defer p.Close()
		out, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(out), p.Wait()
	}
	// isolated has a /tmp of its own.
	isolated := func(commands string) []string {
		if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
			t.Skipf("mount namespaces cannot be made here: %v: %s", err, out)
		}
		return []string{"unshare", "-m", "sh", "-c", "mount -t tmpfs t /tmp && " + commands, "sh"}
	}

	t.Run("no home", func(t *testing.T) {
		w := newWorld(t)
		w.oddHost("h1", shell(isolated(`exec sh -c "$1"`), "HOME=/nonexistent"))
		out, err := start(t, w)
		if err != nil || !strings.HasPrefix(out, "/tmp/mpirun-sf-0/bin/") || !strings.HasSuffix(out, "it's me\n") {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("a home that nothing runs from", func(t *testing.T) {
		w := newWorld(t)
		w.oddHost("h1", shell(isolated(`mkdir /tmp/home && mount -t tmpfs -o noexec t /tmp/home && exec sh -c "$1"`), "HOME=/tmp/home"))
		if out, err := start(t, w); err != nil || !strings.HasPrefix(out, "/tmp/mpirun-sf-0/bin/") {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("nowhere", func(t *testing.T) {
		w := newWorld(t)
		w.oddHost("h1", shell(isolated(`mount -o remount,noexec /tmp && exec sh -c "$1"`), "HOME=/tmp/home"))
		_, err := start(t, w)
		fails(t, err, "h1", "/tmp/home/.cache/mpirun-sf", "/tmp/mpirun-sf-0", "noexec")
	})
	t.Run("somebody else's folder", func(t *testing.T) {
		w := newWorld(t)
		w.oddHost("h1", shell(isolated(`mkdir /tmp/mpirun-sf-0 && chown 65534 /tmp/mpirun-sf-0 && exec sh -c "$1"`), "HOME=/nonexistent"))
		_, err := start(t, w)
		fails(t, err, "h1", "/tmp/mpirun-sf-0")
	})
	t.Run("a disk that is full", func(t *testing.T) {
		w := newWorld(t)
		w.oddHost("h1", shell(isolated(`mount -t tmpfs -o size=64k t /tmp && exec sh -c "$1"`), "HOME=/nonexistent"))
		a := w.open(Config{}, "h1")
		_, err := a.Start(t.Context(), a.Hosts()[0], program(t, "#!/bin/sh\n"+strings.Repeat("#", 1<<20)))
		fails(t, err, "h1", "is the disk full?")
	})
	for _, argv := range [][]string{{"busybox", "sh", "-c"}, {"bash", "-c"}, {"tcsh", "-c"}} {
		t.Run("login shell "+argv[0], func(t *testing.T) {
			if _, err := exec.LookPath(argv[0]); err != nil {
				t.Skipf("%s is not installed: %v", argv[0], err)
			}
			w := newWorld(t)
			w.oddHost("h1", shell(argv, "HOME="+w.far))
			if out, err := start(t, w); err != nil || !strings.HasSuffix(out, "/mpirun-sf it's me\n") {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
	t.Run("login shell that talks", func(t *testing.T) {
		w := newWorld(t)
		run := shell([]string{"sh", "-c"}, "HOME="+w.far)
		w.oddHost("h1", func(line string, in io.Reader, out, errs io.Writer) int {
			io.WriteString(out, "Welcome to h1!\nYou have mail. run 17\n> ")
			return run(line, in, out, errs)
		})
		if out, err := start(t, w); err != nil || !strings.HasSuffix(out, "/mpirun-sf it's me\n") {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("login shell that talks only", func(t *testing.T) {
		w := newWorld(t)
		w.oddHost("h1", func(_ string, _ io.Reader, out, _ io.Writer) int {
			for range maxNoise {
				io.WriteString(out, "This account\n")
			}
			return 0
		})
		_, err := start(t, w)
		fails(t, err, "h1", "its login shell printed more than")
	})
	t.Run("no shell", func(t *testing.T) {
		w := newWorld(t)
		w.oddHost("h1", func(_ string, _ io.Reader, _, errs io.Writer) int {
			io.WriteString(errs, "This account is not available.\n")
			return 1
		})
		_, err := start(t, w)
		fails(t, err, "h1", "This account is not available.")
	})
	t.Run("what arrives is not what was sent", func(t *testing.T) {
		w := newWorld(t)
		run := shell([]string{"sh", "-c"}, "HOME="+w.far)
		w.oddHost("h1", func(line string, in io.Reader, out, errs io.Writer) int {
			return run(line, &spoiled{r: in}, out, errs)
		})
		_, err := start(t, w)
		fails(t, err, "h1", "is not what was sent")
		for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
			left, _ := filepath.Glob(filepath.Join(w.far, ".cache/mpirun-sf/bin/*/.new.*"))
			if len(left) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("left there: %v", left)
			}
		}
	})
}

// spoiled changes a byte.
type spoiled struct {
	r    io.Reader
	done bool
}

func (s *spoiled) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if n > 0 && !s.done {
		s.done = true
		p[0]++
	}
	return n, err
}

// A host that is logged in to as an ordinary user.
func TestSudo(t *testing.T) {
	for _, program := range []string{"sudo", "setpriv", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed (apt-get install sudo util-linux): %v", program, err)
		}
	}
	const sudoer = "nobody ALL=(root) NOPASSWD: ALL\n"
	if testing.Short() {
		t.Skip("takes the time after which a process is killed (-short)")
	}
	for _, test := range []struct{ name, sudoers, want string }{
		{"without a password", sudoer, ""},
		{"with a password", "nobody ALL=(root) ALL\n", "nobody ALL=(root) NOPASSWD: ALL"},
		{"not at all", "", "nobody ALL=(root) NOPASSWD: ALL"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			sudoers := filepath.Join(t.TempDir(), "sudoers")
			if err := os.WriteFile(sudoers, []byte(test.sudoers), 0o440); err != nil {
				t.Fatal(err)
			}
			commands := `mount -t tmpfs -o mode=1777 t /tmp && mkdir /tmp/home && chown 65534 /tmp/home && exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$1"`
			w.oddHost("h1", shell([]string{"unshare", "-m", "sh", "-c", "mount --bind " + sudoers + " /etc/sudoers && " + commands, "sh"}, "HOME=/tmp/home"))
			w.write("config", "Host *\nUser nobody\n")
			a := w.open(Config{}, "h1")
			p, err := a.Start(t.Context(), a.Hosts()[0], programThatWaits(t))
			if test.want != "" {
				fails(t, err, "h1", test.want, "logged in as nobody@")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var user, pid int
			if _, err := fmt.Fscanln(p, &user, &pid); err != nil || user != 0 {
				t.Errorf("it runs as %d: %v", user, err)
			}
			p.Close() // it does not listen, and sudo stands between
			ended(t, pid)
			if err := p.Wait(); err == nil {
				t.Error("it was killed, and the error is nil")
			}
		})
	}
}

func programThatWaits(t *testing.T) string {
	return program(t, "#!/bin/sh\necho $(id -u) $$\nexec sleep 1000\n")
}

func TestStartThatIsCancelled(t *testing.T) {
	w := newWorld(t)
	reached := make(chan struct{}, 1)
	w.oddHost("h1", func(_ string, in io.Reader, _, _ io.Writer) int {
		reached <- struct{}{}
		io.Copy(io.Discard, in)
		return 0
	})
	a := w.open(Config{}, "h1")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reached
		cancel()
	}()
	_, err := a.Start(ctx, a.Hosts()[0], program(t, "#!/bin/sh\n"))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not that the context has ended", err)
	}
	var of *allocator.HostError
	if !errors.As(err, &of) {
		t.Errorf("%T is not of a host", err)
	}
}
