package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/allocatortest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
)

// patience is for a wait that ends in milliseconds if all is well.
const patience = time.Minute

func someKey() (k Key) {
	rand.Read(k[:])
	return k
}

// log is what a service said.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// serve runs a service that starts cat for the arguments of a daemon.
func serve(t *testing.T, c ServiceConfig) (*Service, *log) {
	t.Helper()
	said := &log{}
	c.Log = zerolog.New(said)
	if c.Program == "" {
		c.Program, c.Args = "/bin/cat", []string{"-", "-"}
	}
	s, err := Listen(context.Background(), "127.0.0.1:0", c)
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve()
	t.Cleanup(s.Close)
	return s, said
}

var h1, h2 = allocator.Host{Name: "h1"}, allocator.Host{Name: "h2"}

func allocate(t *testing.T, k Key, s *Service) *Allocation {
	t.Helper()
	a, err := New(Config{Hosts: []allocator.Host{h1, h2}, Key: k, Addresses: map[string]string{"h1": s.Addr().String(), "h2": s.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// anyProgram is an allocation whose service runs whatever it is asked for.
type anyProgram struct{ *Allocation }

func (a anyProgram) Start(ctx context.Context, h allocator.Host, program string, args ...string) (allocator.Process, error) {
	return a.Allocation.Start(ctx, h, program, append([]string{program}, args...)...)
}

func TestConforms(t *testing.T) {
	k := someKey()
	s, _ := serve(t, ServiceConfig{Key: k})
	s.command = func(args []string) (*exec.Cmd, error) { return exec.Command(args[0], args[1:]...), nil }
	allocatortest.Conform(t, anyProgram{allocate(t, k, s)})
}

func start(t *testing.T, a *Allocation, h allocator.Host) (allocator.Process, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return a.Start(ctx, h, "", "-", "-")
}

// speaks checks that a process that echoes does.
func speaks(t *testing.T, p allocator.Process) {
	t.Helper()
	if _, err := p.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(p, got); err != nil || string(got) != "hello\n" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestOnlyItsOwnProgram(t *testing.T) {
	k := someKey()
	s, said := serve(t, ServiceConfig{Key: k})
	a := allocate(t, k, s)
	p, err := start(t, a, h1)
	if err != nil {
		t.Fatal(err)
	}
	speaks(t, p)
	p.Close()
	for _, args := range [][]string{nil, {"-"}, {"-", "-", "-"}, {"/etc/shadow", "-"}} {
		if _, err := a.Start(t.Context(), h1, "/bin/sh", args...); err == nil || !strings.Contains(err.Error(), `h1: its service runs ["mpirun-sf" "-" "-"] and nothing else`) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if text := said.String(); !strings.Contains(text, "nothing else") || strings.Contains(text, "shadow") {
		t.Errorf("the service said: %s", text)
	}
}

func TestAnotherKey(t *testing.T) {
	s, said := serve(t, ServiceConfig{Key: someKey()})
	if _, err := start(t, allocate(t, someKey(), s), h2); err == nil || !strings.Contains(err.Error(), "h2: the service at "+s.Addr().String()+" has another cluster's key") {
		t.Errorf("%v", err)
	}
	a := allocate(t, someKey(), s)
	a.Addresses["h1"] = "127.0.0.1:1"
	if _, err := start(t, a, h1); err == nil || !strings.HasPrefix(err.Error(), "h1: no service listens at 127.0.0.1:1: systemctl start") {
		t.Errorf("nobody there: %v", err)
	}
	// Nobody waits for the log.
	for deadline := time.Now().Add(patience); !strings.Contains(said.String(), "refused a connection"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the service said: %s", said)
		}
	}
	if st := s.State(); st.Refused != 1 || st.Started != 0 {
		t.Errorf("%+v", st)
	}
}

func TestAtMostSoManyJobs(t *testing.T) {
	k := someKey()
	s, _ := serve(t, ServiceConfig{Key: k, MaxJobs: 1})
	a := allocate(t, k, s)
	p, err := start(t, a, h1)
	if err != nil {
		t.Fatal(err)
	}
	if st := s.State(); st.Jobs != 1 || st.MaxJobs != 1 {
		t.Errorf("%+v", st)
	}
	if _, err := start(t, a, h2); err == nil || !strings.Contains(err.Error(), "1 jobs run there, and its service takes no more") {
		t.Errorf("%v", err)
	}
	p.Close()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if p, err = start(t, a, h2); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	p.Close()
}

func TestDrain(t *testing.T) {
	k := someKey()
	s, _ := serve(t, ServiceConfig{Key: k})
	a := allocate(t, k, s)
	p, err := start(t, a, h1)
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.Drain(context.Background())
	}()
	for deadline := time.Now().Add(patience); !s.State().Draining; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not drain")
		}
	}
	speaks(t, p)
	if _, err := start(t, a, h2); err == nil {
		t.Error("a job was started while the service drains")
	}
	select {
	case <-drained:
		t.Error("drained while a job runs")
	default:
	}
	p.Close()
	select {
	case <-drained:
	case <-time.After(patience):
		t.Fatal("not drained when the job has ended")
	}

	s, _ = serve(t, ServiceConfig{Key: k})
	if p, err = start(t, allocate(t, k, s), h1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Drain(ctx)
	speaks(t, p)
	s.Close()
	if err := p.Wait(); !errors.Is(err, allocator.ErrLost) {
		t.Errorf("after the service was closed: %v", err)
	}
}

func TestDaemonEndsWithItsLauncher(t *testing.T) {
	k := someKey()
	s, said := serve(t, ServiceConfig{Key: k})
	p, err := start(t, allocate(t, k, s), h1)
	if err != nil {
		t.Fatal(err)
	}
	speaks(t, p)
	p.(*process).link.Close() // as the kernel does for one that is killed
	if err := p.Wait(); !errors.Is(err, allocator.ErrLost) {
		t.Errorf("%v", err)
	}
	for deadline := time.Now().Add(patience); s.State().Jobs > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it still runs; the service said: %s", said)
		}
	}
	if text := said.String(); !strings.Contains(text, "started a job's daemon") || !strings.Contains(text, "a job's daemon has ended") {
		t.Errorf("the service said: %s", text)
	}
}

func TestCallersThatSpeakNonsense(t *testing.T) {
	k := someKey()
	s, _ := serve(t, ServiceConfig{Key: k})
	id, err := k.Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, say := range map[string]func(l *link.Link){
		"another kind": func(l *link.Link) { l.Open(t.Context(), 9) },
		"twice": func(l *link.Link) {
			l.Open(t.Context(), kindStdio)
			l.Open(t.Context(), kindStdio)
		},
		"no request": func(l *link.Link) {
			l.Open(t.Context(), kindStdio)
			c, _ := l.Open(t.Context(), kindControl)
			io.WriteString(c, "nonsense\n")
		},
		"an endless request": func(l *link.Link) {
			l.Open(t.Context(), kindStdio)
			c, _ := l.Open(t.Context(), kindControl)
			io.WriteString(c, strings.Repeat("x", 2*maxLine))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := link.Dial(t.Context(), id, s.Addr().String(), id.Fingerprint(), link.Purpose(purpose))
			if err != nil {
				t.Fatal(err)
			}
			say(l)
			select {
			case <-l.Done():
			case <-time.After(patience):
				t.Fatal("the service listens on")
			}
		})
	}
	if st := s.State(); st.Jobs != 0 || st.Failed != 4 {
		t.Errorf("%+v", st)
	}
}

func TestKeyFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := ReadKey(path); err == nil || !strings.Contains(err.Error(), "--make-key "+path) {
		t.Errorf("no file: %v", err)
	}
	if err := MakeKey(path); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	k, err := ReadKey(path)
	if err != nil || k == (Key{}) {
		t.Fatal(err)
	}
	if err := MakeKey(path); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("over another: %v", err)
	}
	again, err := ReadKey(path)
	if err != nil || again != k {
		t.Errorf("the key has changed: %v", err)
	}
	if strings.Contains(k.GoString()+k.String(), string(k[:])) {
		t.Error("the key prints itself")
	}
	var prints []link.Fingerprint
	for _, of := range []func() (*link.Identity, error){k.Identity, k.Metrics, k.MetricsReader, again.Identity, someKey().Identity} {
		id, err := of()
		if err != nil {
			t.Fatal(err)
		}
		prints = append(prints, id.Fingerprint())
	}
	if prints[0] != prints[3] || prints[0] == prints[1] || prints[0] == prints[2] || prints[1] == prints[2] || prints[0] == prints[4] {
		t.Errorf("%v", prints)
	}
	for name, spoil := range map[string]func() error{
		"read the cluster's key: " + path + " is no key":  func() error { return os.WriteFile(path, []byte("x"), 0o600) },
		"read the cluster's key: " + path + " is damaged": func() error { return os.WriteFile(path, []byte(keyPrefix+"AAAA\n"), 0o600) },
		"others than its owner can read":                  func() error { return os.Chmod(path, 0o640) },
		"is no file":                                      func() error { os.Remove(path); return os.Mkdir(path, 0o700) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadKey(path); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
		}
		os.Remove(path)
		MakeKey(path)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte("{\"args\":[\"sfld\",\"--host\"]}\n"))
	f.Add([]byte("{\"ended\":{\"status\":3}}\n{}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for in := newLines(bytes.NewReader(text)); ; {
			var e event
			if in.receive(&e) != nil {
				break
			}
			if len(e.Stderr) > maxLine {
				t.Fatal("longer than a message may be")
			}
		}
		var r request
		newLines(bytes.NewReader(text)).receive(&r)
		parseKey(text)
	})
}
