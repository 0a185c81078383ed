package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

// TestObserve: what a job over many hosts does can be seen while it runs, and
// read afterwards.
func TestObserve(t *testing.T) {
	f := hosts.begin(t)
	dir := t.TempDir()
	traced := filepath.Join(dir, "trace.json")
	netProgram(t, dir)
	run := f.start(t, command{dir: dir, args: f.over(farmSize, []string{"-v", "--trace", traced, "-np", "3", "./net", "await", "end"})})
	run.awaitOutput("awaiting end", 3)
	t.Run("ps", f.seenByPs)
	t.Run("ps --json", f.seenAsJSON)
	t.Run("top", f.seenByTop)
	t.Run("metrics", f.seenByPrometheus)
	if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := run.wait().succeeds(t)
	t.Run("timeline", func(t *testing.T) {
		for _, h := range f.Hosts() {
			if !regexp.MustCompile(`(?m)^mpirun-sf: +-?\d+\.\d{3} s  ` + h.Name + ` .*, \d+\.\d ms$`).MatchString(r.stderr) {
				t.Errorf("the timeline has nothing of %s:\n%s", h.Name, r.stderr)
			}
		}
	})
	t.Run("trace", func(t *testing.T) { checkTrace(t, traced) })
	if got := f.said(t, "ps"); strings.Contains(got, "./net") {
		t.Errorf("the job has ended, and ps still shows it:\n%s", got)
	}
}

// said is what mpirun-sf prints on the first host while a job runs there.
func (f *farm) said(t *testing.T, args ...string) string {
	t.Helper()
	return f.start(t, beside(command{args: args})).wait().succeeds(t).stdout
}

func (f *farm) seenByPs(t *testing.T) {
	got := f.said(t, "ps")
	for _, want := range []string{`root +3 .* host0,host1,host2 +./net await end`, `clone-1 +host0 `, `clone-2 +host1 `, `clone-3 +host2 `} {
		if n := len(regexp.MustCompile(want).FindAllString(got, -1)); n != 1 {
			t.Errorf("%d times %q instead of once:\n%s", n, want, got)
		}
	}
}

func (f *farm) seenAsJSON(t *testing.T) {
	got := f.said(t, "ps", "--json")
	var states []metrics.State
	decoder := json.NewDecoder(strings.NewReader(got))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&states); err != nil {
		t.Fatalf("%v in\n%s", err, got)
	}
	if len(states) != 1 || states[0].Ranks != 3 || len(states[0].Hosts) != 3 || len(states[0].Machines) < 3 {
		t.Fatalf("it is a job of three ranks and three hosts, and not\n%s", got)
	}
	for n, h := range states[0].Hosts {
		if h.Name != f.Host(n).Name || h.Address != f.Host(n).Address || !h.Up || h.CPUs < 1 || h.Reserved <= 0 || h.Memory.Reads == 0 {
			t.Errorf("host %d is told as %+v", n, h)
		}
		if moved := h.Memory.Far + h.Memory.Ahead; (n > 0) != (moved > 0) {
			t.Errorf("%s got %d bytes of memory from another host", h.Name, moved)
		}
	}
	carried := map[string]string{}
	for _, m := range states[0].Machines {
		carried[m.Name] = m.Host
		if m.Member > 0 && (m.State != metrics.Running || m.CPU <= 0 || m.Touched <= 0 || m.Own <= 0 || m.Faults <= 0 || m.Memory != 512<<20) {
			t.Errorf("%s is told as %+v", m.Name, m)
		}
	}
	want := map[string]string{"clone-1": "host0", "clone-2": "host1", "clone-3": "host2"}
	maps.DeleteFunc(carried, func(name, _ string) bool { return !strings.HasPrefix(name, "clone-") })
	if !maps.Equal(carried, want) {
		t.Errorf("machines are on %v, want %v", carried, want)
	}
}

func (f *farm) seenByTop(t *testing.T) {
	got := f.said(t, "top", "-n", "2", "-d", "200ms")
	if strings.Contains(got, "\033") {
		t.Errorf("there is no terminal, and still it is moved: %q", got)
	}
	for _, want := range []string{`mpirun-sf top - .* 1 job, \d machines on 3 hosts, `, `clone-1 +host0 `, `clone-2 +host1 `, `clone-3 +host2 `} {
		if n := len(regexp.MustCompile(want).FindAllString(got, -1)); n != 2 {
			t.Errorf("%d times %q instead of twice:\n%s", n, want, got)
		}
	}
}

// samples are what /metrics tells, by name and labels.
type samples map[string]float64

// sum adds all samples of a name that have these labels.
func (s samples) sum(name string, labels ...string) (sum float64) {
	for key, v := range s {
		all := true
		for _, l := range labels {
			all = all && strings.Contains(key, l)
		}
		if strings.HasPrefix(key, "mpirun_sf_"+name+"{") && all {
			sum += v
		}
	}
	return sum
}

// readSamples reads Prometheus's text format.
func readSamples(t *testing.T, text string) samples {
	t.Helper()
	line := regexp.MustCompile(`^([a-z_]+\{(?:[a-z_]+="(?:[^"\\]|\\.)*",?)*\}) (\S+)$`)
	s := samples{}
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); strings.HasPrefix(l, "# HELP ") || strings.HasPrefix(l, "# TYPE ") {
			continue
		}
		m := line.FindStringSubmatch(l)
		if m == nil {
			t.Errorf("not a sample: %q", l)
			continue
		}
		v, err := strconv.ParseFloat(m[2], 64)
		if _, twice := s[m[1]]; err != nil || twice {
			t.Errorf("a sample that is no number, or is there twice: %q", l)
		}
		s[m[1]] = v
	}
	return s
}

func (f *farm) seenByPrometheus(t *testing.T) {
	// The host's /run is its own.
	sockets, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/run/mpirun-sf/jobs/*.sock", f.Host(0).PID()))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("the job's sockets: %v, %v", sockets, err)
	}
	client := http.Client{Timeout: defaultLimit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", sockets[0])
		},
	}}
	answer, err := client.Get("http://job/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var text strings.Builder
	if _, err := bufio.NewReader(answer.Body).WriteTo(&text); err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%v, %s\n%s", err, answer.Status, text.String())
	}
	s := readSamples(t, text.String())
	if s.sum("job_ranks") != 3 || s.sum("job_info", `user="root"`, `command="./net await end"`) != 1 || s.sum("job_start_time_seconds") < 1e9 {
		t.Error("the job is not told as it is")
	}
	for n, h := range f.Hosts() {
		host := `host="` + h.Name + `"`
		if s.sum("host_up", host) != 1 || s.sum("clones", host) != 1 || s.sum("machines", host, `state="running"`) != 1 {
			t.Errorf("%s is not up with one clone", h.Name)
		}
		for _, name := range []string{"hypervisor_cpu_seconds_total", "machine_touched_bytes", "machine_own_bytes", "reads_total", "memory_reserved_bytes"} {
			if s.sum(name, host) <= 0 {
				t.Errorf("%s of %s is %v", name, h.Name, s.sum(name, host))
			}
		}
		if s.sum("read_errors_total", host) != 0 {
			t.Errorf("%s has read errors", h.Name)
		}
		far := s.sum("image_bytes_total", host, `way="far"`) + s.sum("image_bytes_total", host, `way="ahead"`)
		received := s.sum("distribution_bytes_total", host, `direction="received"`)
		trip := s.sum("link_round_trip_seconds", host)
		if n > 0 && (far <= 0 || received < far/100 || trip <= 0 || trip > 10) {
			t.Errorf("%s: %.0f bytes of images from other hosts, %.0f bytes received, round trip %f s", h.Name, far, received, trip)
		}
		if n == 0 && (far != 0 || s.sum("distribution_bytes_total", host, `direction="sent"`) <= 0) {
			t.Errorf("%s, which has all: %.0f bytes of images from other hosts", h.Name, far)
		}
	}
	if t.Failed() {
		t.Log(text.String())
	}
}

// checkTrace checks a file in the Trace Event Format: every host has a name and
// events of its own, in a time that can be.
func checkTrace(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var trace struct {
		Events []struct {
			Name string         `json:"name"`
			Kind string         `json:"ph"`
			At   float64        `json:"ts"`
			Took float64        `json:"dur"`
			Host int            `json:"pid"`
			Args map[string]any `json:"args"`
		} `json:"traceEvents"`
	}
	if err := json.Unmarshal(text, &trace); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	names, events := map[int]string{}, map[string]int{}
	for _, e := range trace.Events {
		switch {
		case e.Kind == "M" && e.Name == "process_name":
			names[e.Host] = strings.TrimPrefix(fmt.Sprint(e.Args["name"]), "host ")
		case e.Kind == "X" && (e.Name == "" || e.At < 0 || e.Took < 0 || e.At+e.Took > 1e6*defaultLimit.Seconds()):
			t.Errorf("an event that cannot be: %+v", e)
		case e.Kind == "X":
			events[names[e.Host]]++
		}
	}
	for _, who := range []string{"launcher", "host0", "host1", "host2"} {
		if events[who] == 0 {
			t.Errorf("%s has no events: %v", who, events)
		}
	}
	if got := slices.Sorted(maps.Keys(events)); len(got) != 4 {
		t.Errorf("events of %v", got)
	}
}
