package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// confined is how the unit of the cluster's service confines it, as far as a
// program can be without systemd: it keeps the capabilities that the unit names,
// and gets no others by what it executes.
func confined(t *testing.T) []string {
	t.Helper()
	unit, err := os.ReadFile("../../docs/mpirun-sf.service")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(CAP_.*)$`).FindSubmatch(unit)
	if names == nil {
		t.Fatal("the unit names no capabilities")
	}
	bounds := "-all"
	for _, name := range strings.Fields(string(names[1])) {
		bounds += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	return []string{"setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=" + bounds}
}

// service is the cluster's on a host of a farm.
type service struct {
	*exec.Cmd
	said *buffer
}

// serve begins the service on a host, confined as its unit does it. It and what it
// has are no leftovers until it ends.
func (f *farm) serve(t *testing.T, host int, key string) *service {
	t.Helper()
	h := f.Host(host)
	argv := append(confined(t), launcher, "sfld", "--listen", h.Address.String(), "--cluster-key", key, "--metrics", "unix:/run/mpirun-sf/metrics.sock")
	s := &service{h.Command(context.Background(), argv[0], argv[1:]...), &buffer{}}
	s.Env = slices.Concat(h.Environ(), f.folders(host))
	s.Stderr = s.said
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	before := f.before[host]
	t.Cleanup(func() {
		s.Process.Kill()
		s.Wait()
		f.before[host] = before
	})
	s.awaits(t, "serving launchers")
	f.before[host] = f.has(host)
	return s
}

// awaits waits until the service has said something.
func (s *service) awaits(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(defaultLimit); !strings.Contains(s.said.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the service does not say %q, but:\n%s", text, s.said.String())
		}
	}
}

func TestClusterService(t *testing.T) {
	f := hosts.begin(t)
	key := filepath.Join(t.TempDir(), "cluster.key")
	if out, err := exec.Command(launcher, "sfld", "--make-key", key).CombinedOutput(); err != nil {
		t.Fatalf("make a key: %v: %s", err, out)
	}
	var services []*service
	for host := 1; host < farmSize; host++ {
		services = append(services, f.serve(t, host, key))
	}
	over := func(key string, args ...string) command {
		// The services are beside.
		return beside(command{args: f.over(farmSize, append([]string{"--service", "--cluster-key", key}, args...))})
	}

	f.start(t, over(key, "-np", "3", example("ring"))).wait().succeeds(t)
	f.settles(t)
	for _, s := range services {
		s.awaits(t, "a job's daemon has ended")
		if said := s.said.String(); strings.Count(said, "started a job's daemon") != 1 || !strings.Contains(said, "status 0") {
			t.Errorf("the service said:\n%s", said)
		}
	}

	// A wrong key starts nothing.
	wrong := filepath.Join(t.TempDir(), "wrong.key")
	if out, err := exec.Command(launcher, "sfld", "--make-key", wrong).CombinedOutput(); err != nil {
		t.Fatalf("make a key: %v: %s", err, out)
	}
	r := f.start(t, over(wrong, "-np", "3", example("hello"))).wait()
	if r.status == 0 || !strings.Contains(r.stderr, "host1") || !strings.Contains(r.stderr, "has another cluster's key") {
		t.Errorf("with another key: status %d\n%s", r.status, r.stderr)
	}

	// A service that is told to stop lets jobs go on; told so again it ends them.
	run := f.start(t, over(key, "-np", "3", example("sleep"), "600"))
	run.awaitOutput("sleeps 600 seconds", 3)
	stopped := services[0]
	stopped.Process.Signal(syscall.SIGTERM)
	stopped.awaits(t, "taking no more jobs")
	r = f.start(t, over(key, "-np", "3", example("hello"))).wait()
	if r.status == 0 || !strings.Contains(r.stderr, "host1") {
		t.Errorf("while it stops: status %d\n%s", r.status, r.stderr)
	}
	select {
	case <-run.done:
		t.Fatalf("the job has ended with the first signal:\n%s", run.stderr.String())
	default:
	}
	stopped.Process.Signal(syscall.SIGTERM)
	stopped.awaits(t, "ended\n")
	stopped.Wait()
	f.before[1] = f.has(1)
	if r = run.wait(); r.status == 0 || !strings.Contains(r.stderr, "host1") {
		t.Errorf("after it has stopped: status %d\n%s", r.status, r.stderr)
	}
	f.settles(t)
}
