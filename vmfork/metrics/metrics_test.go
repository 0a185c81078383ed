package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
)

var began = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// sample is a job of two hosts, a parent and two clones.
func sample() State {
	memory := memtap.Counters{Reads: 100, BytesServed: 3 << 20, BytesFetched: 1 << 20, BytesFar: 1 << 19, BytesAhead: 4096, BytesPushed: 8192, ZeroBlocks: 7, Errors: 1}
	memory.Latency[3], memory.Latency[10] = 90, 10
	moved := mcdist.Counters{Duplicates: 2, Repairs: 3}
	moved.Requests.Urgent = 11
	moved.Sent[mcdist.ByMulticast].Bulk = mcdist.Traffic{Packets: 10, Bytes: 14000, Blocks: 3}
	moved.Received[mcdist.ByUnicast].Urgent = mcdist.Traffic{Packets: 1, Bytes: 4200, Blocks: 1}
	var pauses Histogram
	for _, d := range []time.Duration{44 * time.Millisecond, 53 * time.Millisecond, time.Hour} {
		pauses.Observe(d)
	}
	return State{
		Job: "job1", Version: "v0.4.0", User: "ada", Command: []string{"./app", "-x"}, Ranks: 2,
		Began: began, Taken: began.Add(100 * time.Second),
		Hosts: []Host{
			{Name: "h1", Up: true, CPUs: 4, Memory: PagingOf(memory)},
			{Name: "h2", Address: netip.MustParseAddr("10.0.0.2"), Up: true, Trip: Seconds(2 * time.Millisecond), Reserved: 2 << 30, Moved: MovedOf(moved)},
		},
		Machines: []Machine{
			{Member: 0, Name: "parent", Host: "h1", State: Running, VCPUs: 2, CPU: Seconds(50 * time.Second), Memory: 1 << 30, Touched: 1 << 28, Own: 1 << 26, Faults: 400},
			{Member: 1, Name: "clone-1", Host: "h2", IP: netip.MustParseAddr("10.1.0.2"), State: Running, VCPUs: 1, Began: began.Add(80 * time.Second), CPU: Seconds(10 * time.Second), Faults: 40},
			{Member: 2, Name: "clone-2", Host: "h2", State: Starting, VCPUs: 1, Began: began.Add(99 * time.Second)},
		},
		Pauses: pauses.Distribution(),
	}
}

func TestStateSurvivesJSON(t *testing.T) {
	s := sample()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var again State
	if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(again, s) {
		t.Errorf("%v\n%+v\n%+v", err, again, s)
	}
	for _, want := range []string{`"round_trip":0.002`, `"cpu":50`, `"way":"multicast","purpose":"bulk"`, `"began":"2026-11-20T12:00:00Z"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	var sec Seconds
	if err := json.Unmarshal([]byte("1e300"), &sec); err == nil {
		t.Errorf("read %v", sec)
	}
}

func TestRates(t *testing.T) {
	s := sample()
	first := s.Rates(State{})
	if r := first[0]; r.CPU != 0.5 || r.Faults != 4 {
		t.Errorf("the parent since its beginning: %+v", r)
	}
	if r := first[1]; r.CPU != 0.5 || r.Faults != 2 {
		t.Errorf("a clone since its beginning: %+v", r)
	}
	later := sample()
	later.Taken = later.Taken.Add(2 * time.Second)
	later.Machines[0].CPU += Seconds(3 * time.Second)
	later.Machines[0].Faults += 10
	later.Machines[1].Began = later.Taken.Add(-time.Second) // another of the same number
	later.Machines[1].CPU = Seconds(time.Second)
	rates := later.Rates(s)
	if r := rates[0]; r.CPU != 1.5 || r.Faults != 5 {
		t.Errorf("the parent: %+v", r)
	}
	if r := rates[1]; r.CPU != 1 {
		t.Errorf("a new clone: %+v", r)
	}
	// A clock that was set back is no rate.
	later.Taken = began.Add(-time.Hour)
	if r, ok := later.Rates(s)[0]; ok {
		t.Errorf("in no time: %+v", r)
	}
}

func TestHistogram(t *testing.T) {
	var h Histogram
	for range 5 {
		h.Observe(0)
	}
	h.Observe(1500 * time.Microsecond)
	h.Observe(time.Hour)
	d := h.Distribution()
	if d.Count != 7 || d.Sum.Duration() != time.Hour+1500*time.Microsecond || len(d.Buckets) != 3 {
		t.Errorf("%+v", d)
	}
	if d.Buckets[0] != (Bucket{Seconds(time.Millisecond), 5}) || d.Buckets[1] != (Bucket{Seconds(1500 * time.Microsecond), 1}) {
		t.Errorf("%+v", d)
	}
	d = Distribution{}
	d.add(time.Second, math.MaxInt64/4, 4) // a sum that would overflow
	d.add(time.Second, 1, -1)
	if d.Count != 4 || d.Sum < 0 {
		t.Errorf("%+v", d)
	}
}

// client speaks to a job's socket.
func client(path string) *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
}

func get(t *testing.T, c *http.Client, url string) (status int, body string) {
	t.Helper()
	response, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func fixed(s State) Source {
	return SourceFunc(func(context.Context) (State, error) { return s, nil })
}

func TestPublished(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs")
	end, err := Publish(t.Context(), dir, "job1", fixed(sample()))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "job1.sock")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	c := client(path)
	status, body := get(t, c, "http://job/metrics")
	if status != http.StatusOK {
		t.Fatalf("%d: %s", status, body)
	}
	for _, want := range []string{
		`mpirun_sf_job_info{command="./app -x",job="job1",user="ada",version="v0.4.0"} 1`,
		`mpirun_sf_job_ranks{job="job1"} 2`,
		`mpirun_sf_job_start_time_seconds{job="job1"} 1.795176e+09`,
		`mpirun_sf_machines{host="h2",job="job1",state="starting"} 1`,
		`mpirun_sf_clones{host="h1",job="job1"} 0`,
		`mpirun_sf_clones{host="h2",job="job1"} 2`,
		`mpirun_sf_host_up{host="h2",job="job1"} 1`,
		`mpirun_sf_link_round_trip_seconds{host="h2",job="job1"} 0.002`,
		`mpirun_sf_memory_reserved_bytes{host="h2",job="job1"} 2.147483648e+09`,
		`mpirun_sf_reads_total{host="h1",image="memory",job="job1"} 100`,
		`mpirun_sf_image_bytes_total{host="h1",image="memory",job="job1",way="here"} 524288`,
		`mpirun_sf_image_bytes_total{host="h1",image="memory",job="job1",way="far"} 524288`,
		`mpirun_sf_image_bytes_total{host="h1",image="memory",job="job1",way="pushed"} 8192`,
		`mpirun_sf_read_seconds_bucket{host="h1",image="memory",job="job1",le="8e-06"} 90`,
		`mpirun_sf_read_seconds_bucket{host="h1",image="memory",job="job1",le="1e-06"} 0`,
		`mpirun_sf_read_seconds_bucket{host="h1",image="memory",job="job1",le="0.000512"} 90`,
		`mpirun_sf_read_seconds_bucket{host="h1",image="memory",job="job1",le="16.777216"} 100`,
		`mpirun_sf_read_seconds_bucket{host="h1",image="memory",job="job1",le="+Inf"} 100`,
		`mpirun_sf_read_seconds_bucket{host="h2",image="disk",job="job1",le="16.777216"} 0`,
		`mpirun_sf_fork_pause_seconds_bucket{job="job1",le="65.536"} 2`,
		`mpirun_sf_fork_pause_seconds_bucket{job="job1",le="0.048"} 1`,
		`mpirun_sf_fork_pause_seconds_count{job="job1"} 3`,
		`mpirun_sf_hypervisor_cpu_seconds_total{host="h2",job="job1",machine="clone-1"} 10`,
		`mpirun_sf_machine_own_bytes{host="h1",job="job1",machine="parent"} 6.7108864e+07`,
		`mpirun_sf_distribution_bytes_total{direction="sent",host="h2",job="job1",purpose="bulk",way="multicast"} 14000`,
		`mpirun_sf_distribution_blocks_total{direction="received",host="h2",job="job1",purpose="urgent",way="unicast"} 1`,
		`mpirun_sf_distribution_events_total{event="repair",host="h2",job="job1"} 3`,
		"# TYPE mpirun_sf_image_bytes_total counter",
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("missing: %s", want)
		}
	}
	if status, _ := get(t, c, "http://job/nothing"); status != http.StatusNotFound {
		t.Errorf("another path: %d", status)
	}
	if response, err := c.Post("http://job/state", "text/plain", strings.NewReader("x")); err != nil || response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a post: %v, %v", response, err)
	}
	states, err := Jobs(t.Context(), dir)
	if err != nil || len(states) != 1 || !reflect.DeepEqual(states[0], sample()) {
		t.Errorf("%+v, %v", states, err)
	}
	end()
	end()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestHostileLabels(t *testing.T) {
	s := sample()
	s.User, s.Command = "a\xff\"\n", []string{strings.Repeat("ä", 10000), "\x00"}
	s.Hosts = append(s.Hosts, s.Hosts[0]) // two of a name
	s.Machines = append(s.Machines, s.Machines[0], Machine{Name: "\xfe", Host: "nowhere", State: "\xff"})
	s.Hosts[1].Moved.Traffic = append(s.Hosts[1].Moved.Traffic, s.Hosts[1].Moved.Traffic...)
	dir := t.TempDir()
	for _, job := range []string{"a", "b"} {
		s.Job = job
		end, err := Publish(t.Context(), dir, job, fixed(s))
		if err != nil {
			t.Fatal(err)
		}
		defer end()
	}
	end, err := Publish(t.Context(), dir, "c", SourceFunc(func(context.Context) (State, error) { return State{}, errors.New("no time") }))
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := Server(Handler(dir, nil))
	go server.Serve(l)
	defer server.Close()
	status, body := get(t, http.DefaultClient, fmt.Sprintf("http://%s/metrics", l.Addr()))
	if status != http.StatusOK || len(body) > 1<<20 {
		t.Fatalf("%d: %d bytes", status, len(body))
	}
	for _, want := range []string{`mpirun_sf_job_ranks{job="a"} 2`, `mpirun_sf_job_ranks{job="b"} 2`, `user="a�\"\n"`} {
		if !strings.Contains(body, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if status, body := get(t, client(filepath.Join(dir, "c.sock")), "http://job/metrics"); status != http.StatusServiceUnavailable || !strings.Contains(body, "no time") {
		t.Errorf("%d: %s", status, body)
	}
	if states, err := Jobs(t.Context(), dir); len(states) != 2 || err == nil || err.Error() != "ask job c what it does: no time" {
		t.Errorf("%d states, %v", len(states), err)
	}
}

func TestSocketsThatWereLeft(t *testing.T) {
	dir := t.TempDir()
	if states, err := Jobs(t.Context(), filepath.Join(dir, "none")); len(states) != 0 || err != nil {
		t.Errorf("no folder: %v, %v", states, err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "dead.sock"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for _, name := range []string{"file.sock", ".hidden.sock", "a.1.job"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if states, err := Jobs(t.Context(), dir); len(states) != 0 || err != nil {
		t.Errorf("%v, %v", states, err)
	}
	var left []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{".hidden.sock", "a.1.job", "file.sock"}; !reflect.DeepEqual(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
	// Its successor takes the name.
	end, err := Publish(t.Context(), dir, "dead", fixed(sample()))
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	if states, err := Jobs(t.Context(), dir); len(states) != 1 || err != nil {
		t.Errorf("%v, %v", states, err)
	}
	for _, job := range []string{"", "..", "a/b", ".x"} {
		if _, err := Publish(t.Context(), dir, job, fixed(sample())); err == nil {
			t.Errorf("a job named %q", job)
		}
	}
}

func TestCleaning(t *testing.T) {
	dir := t.TempDir()
	if err := Clean(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
	long := time.Now().Add(-time.Hour)
	for _, name := range []string{"dead.sock", ".dying.sock", ".born.sock", "other"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	}
	if err := os.Chtimes(filepath.Join(dir, ".dying.sock"), long, long); err != nil {
		t.Fatal(err)
	}
	end, err := Publish(t.Context(), dir, "alive", fixed(sample()))
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	if err := Clean(dir); err != nil {
		t.Error(err)
	}
	var left []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{".born.sock", "alive.sock", "other"}; !reflect.DeepEqual(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	dir := t.TempDir()
	l, err := listen(filepath.Join(dir, "odd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"job":7}`) })}
	go server.Serve(l)
	defer server.Close()
	if states, err := Jobs(t.Context(), dir); len(states) != 0 || err == nil || !strings.Contains(err.Error(), "ask job odd what it does: it answered what cannot be understood") {
		t.Errorf("%v, %v", states, err)
	}
}

func TestThisProcess(t *testing.T) {
	p, err := ReadProcess(os.Getpid())
	if err != nil || p.Touched < 1<<20 || p.Own <= 0 || p.Own > p.Touched {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := ReadProcess(math.MaxInt32); err == nil {
		t.Error("a process that cannot be has used something")
	}
	stat := "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1"
	p, err = parseProcess([]byte(stat), []byte("7f - 80 rw\nRss:  8 kB\nPrivate_Dirty: 4 kB\nPss: x kB\n"))
	if err != nil || p != (Process{2 * time.Second, 8192, 4096}) {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{"", "7 (a) S 1", strings.Replace(stat, "150", "-1", 1)} {
		if _, err := parseProcess([]byte(bad), nil); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
