package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

// confined is how the unit of the cluster's service confines it, as far as a
// program can be without systemd: it keeps the capabilities that the unit names,
// gets no others by what it executes, and can write to no folders but /run and
// those given.
func confined(t *testing.T, folders ...string) []string {
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
	const readOnly = `
for folder in "$@"; do
	shift
	[ "$folder" = -- ] && break
	mount --bind "$folder" "$folder" || exit
done
mount -o remount,bind,ro / && exec "$@"
`
	argv := append([]string{"unshare", "--mount", "sh", "-c", readOnly, "sh"}, folders...)
	return append(argv, "--", "setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set="+bounds)
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
	argv := append(confined(t, f.cache(host), f.temp(host)), launcher, "sfld", "--listen", h.Address.String(), "--cluster-key", key, "--metrics", "unix:/run/mpirun-sf/metrics.sock")
	s := &service{h.Command(context.Background(), argv[0], argv[1:]...), &buffer{}}
	s.Env = slices.Concat(h.Environ(), f.folders(host))
	s.Stderr = s.said
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	before := f.before[host]
	t.Cleanup(func() {
		// Told twice it ends at once, and takes its socket with it.
		for range 2 {
			s.Process.Signal(syscall.SIGTERM)
			time.Sleep(50 * time.Millisecond)
		}
		late := time.AfterFunc(20*time.Second, func() { s.Process.Kill() })
		s.Wait()
		late.Stop()
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

	trace := filepath.Join(t.TempDir(), "trace.json")
	f.start(t, over(key, "--trace", trace, "-np", "3", example("ring"))).wait().succeeds(t)
	f.settles(t)
	tracesHosts(t, trace)
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
	f.lists(t)
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

// tracesHosts checks that a trace is one that viewers load, with all hosts in it.
func tracesHosts(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		TraceEvents []struct {
			Name, Ph string
			Dur      float64
			PID, TID int
			Args     map[string]any
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatalf("the trace: %v\n%.1000s", err, text)
	}
	hosts, took := map[int]any{}, map[int]float64{}
	for _, e := range file.TraceEvents {
		switch {
		case e.Name == "process_name":
			hosts[e.PID] = e.Args["name"]
		case e.Ph == "X":
			took[e.PID] += e.Dur
		}
	}
	for n := range farmSize {
		found := false
		for pid, name := range hosts {
			found = found || strings.HasSuffix(fmt.Sprint(name), fmt.Sprintf("host%d", n)) && took[pid] > 0
		}
		if !found {
			t.Errorf("nothing of host%d is in the trace of %v", n, hosts)
		}
	}
}

// lists checks what is told of a job of one rank on each host.
func (f *farm) lists(t *testing.T) {
	t.Helper()
	r := f.start(t, beside(command{args: []string{"ps", "--json"}})).wait().succeeds(t)
	var jobs []metrics.State
	if err := json.Unmarshal([]byte(r.stdout), &jobs); err != nil || len(jobs) != 1 {
		t.Fatalf("ps --json: %v\n%s", err, r.stdout)
	}
	job := jobs[0]
	if job.Ranks != 3 || len(job.Machines) != 3 || len(job.Hosts) != farmSize {
		t.Errorf("ps --json: %s", r.stdout)
	}
	for n, h := range job.Hosts {
		if !h.Up || h.Name != f.Host(n).Name || h.Memory.Reads == 0 || h.Reserved == 0 || n > 0 && (len(h.Moved.Traffic) == 0 || h.Trip == 0) {
			t.Errorf("host %d: %+v", n, h)
		}
	}
	for n, m := range job.Machines {
		if m.Host != f.Host(n).Name || m.State != metrics.Running || m.CPU == 0 || m.Touched == 0 || m.Own == 0 || m.Own > m.Touched || m.Faults == 0 || !m.IP.IsValid() {
			t.Errorf("machine %d: %+v", n, m)
		}
	}
	for _, args := range [][]string{{"ps"}, {"top", "-n", "2", "-d", "200ms"}} {
		r := f.start(t, beside(command{args: args})).wait().succeeds(t)
		for n := range farmSize {
			if !regexp.MustCompile(fmt.Sprintf(`clone-%d +host%d +\S+ +1 .*running`, n+1, n)).MatchString(r.stdout) {
				t.Errorf("%v does not tell of host%d:\n%s", args, n, r.stdout)
			}
		}
	}
}

// TestClusterServiceDown: hosts where no service listens are named.
func TestClusterServiceDown(t *testing.T) {
	f := hosts.begin(t)
	key := filepath.Join(t.TempDir(), "cluster.key")
	if out, err := exec.Command(launcher, "sfld", "--make-key", key).CombinedOutput(); err != nil {
		t.Fatalf("make a key: %v: %s", err, out)
	}
	r := f.start(t, command{args: f.over(farmSize, []string{"--service", "--cluster-key", key, "-np", "3", example("hello")})}).wait()
	r.fails(t, 1)
	for _, host := range []string{"host1", "host2"} {
		if want := host + ": no service listens at " + host + ":17470"; !strings.Contains(r.stderr, want) {
			t.Errorf("the error does not say %q:\n%s", want, r.stderr)
		}
	}
}
