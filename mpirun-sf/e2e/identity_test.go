package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// answers are what a rank's probe said, by question. What failed begins with
// "failed: ".
type answers map[string]string

// ask runs the probe, one rank to a clone, and returns the ranks' answers.
func ask(t *testing.T, p place, np int, questions ...string) []answers {
	t.Helper()
	probe := compile(t, "gcc", "testdata/probe.c")
	r := p.run(t, append([]string{"-np", strconv.Itoa(np), probe}, questions...)...).succeeds(t)
	return parseAnswers(t, r.stdout, np, questions)
}

func parseAnswers(t *testing.T, stdout string, np int, questions []string) []answers {
	t.Helper()
	out := make([]answers, np)
	for i := range out {
		out[i] = answers{}
	}
	for line := range strings.Lines(stdout) {
		rank, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		n, err := strconv.Atoi(rank)
		if err != nil || n < 0 || n >= np {
			t.Fatalf("a line that is no answer: %q", line)
		}
		for _, q := range questions {
			if a, ok := strings.CutPrefix(rest, q+" = "); ok {
				out[n][q] = a
			} else if a, ok := strings.CutPrefix(rest, q+" failed: "); ok {
				out[n][q] = "failed: " + a
			}
		}
	}
	for n, a := range out {
		for _, q := range questions {
			if a[q] == "" {
				t.Errorf("rank %d has no answer to %s", n, q)
			}
		}
	}
	return out
}

// differ checks that no two clones, of one job or of two, have the same answer.
func differ(t *testing.T, jobs [][]answers, question string) {
	t.Helper()
	seen := map[string]bool{}
	for _, clones := range jobs {
		for _, a := range clones {
			v := a[question]
			if seen[v] || strings.HasPrefix(v, "failed") || len(v) < 16 {
				t.Errorf("%s is %q, which another clone has too or which is none", question, v)
			}
			seen[v] = true
		}
	}
}

// TestIdentity: every way in which copies of one machine can be too much alike.
// Two jobs of the same checkpoint are asked, and all clones of both compared.
func TestIdentity(t *testing.T) { outside(t, testIdentity) }

func testIdentity(t *testing.T, p place) {
	const np = 3
	// A server of the host's that a clone must not reach, at an address that is not the job's.
	server, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	port := server.Addr().(*net.TCPAddr).Port
	questions := []string{"hostname", "ip", "mac", "getrandom", "urandom", "stack", "clock:before", "sleep:1000", "clock:after", "descriptors",
		"file:/etc/machine-id", "file:/proc/sys/kernel/random/boot_id", "file:/etc/hostname", "file:/proc/net/arp", "file:/proc/net/route",
		"file:/proc/net/tcp", "file:/proc/net/udp", "file:/proc/mounts", "resolve:clone-1", "resolve:clone-2", "resolve:clone-3"}
	for _, a := range hostAddresses(t) {
		questions = append(questions, fmt.Sprintf("reach:%s:%d", a, port))
	}
	var jobs [][]answers
	var begins, ends [2]time.Time
	for i := range 2 {
		begins[i] = time.Now()
		jobs = append(jobs, ask(t, p, np, questions...))
		ends[i] = time.Now()
	}
	clones := jobs[0]

	t.Run("random numbers of the kernel", func(t *testing.T) { differ(t, jobs, "urandom"); differ(t, jobs, "getrandom") })
	// The kernel draws a process's start values, the stack's place among them, from the same generator.
	t.Run("random numbers of a process", func(t *testing.T) {
		seen := map[string]bool{}
		for _, clones := range jobs {
			for _, a := range clones {
				seen[a["stack"]] = true
			}
		}
		if len(seen) < 2*np-1 {
			t.Errorf("%d clones have their stacks at only %d places: %v", 2*np, len(seen), seen)
		}
	})
	// When the second job runs, the checkpoint is older than the first.
	t.Run("clock", func(t *testing.T) {
		const tolerance = 300 * time.Millisecond
		for i, clones := range jobs {
			for _, a := range clones {
				s, err := strconv.ParseFloat(a["clock:before"], 64)
				at := time.UnixMicro(int64(s * 1e6))
				if err != nil || at.Before(begins[i].Add(-tolerance)) || at.After(ends[i].Add(tolerance)) {
					t.Errorf("a clone's clock showed %v between %v and %v", at, begins[i], ends[i])
				}
			}
		}
	})
	t.Run("timers", func(t *testing.T) {
		for _, a := range append(jobs[0], jobs[1]...) {
			before, err1 := strconv.ParseFloat(a["clock:before"], 64)
			after, err2 := strconv.ParseFloat(a["clock:after"], 64)
			if took := after - before; err1 != nil || err2 != nil || took < 0.99 || took > 4 {
				t.Errorf("a second's sleep took %v s", took)
			}
		}
	})
	t.Run("MAC and IP addresses", func(t *testing.T) {
		ips, macs := map[string]bool{}, map[string]bool{}
		for _, a := range clones {
			ips[a["ip"]], macs[a["mac"]] = true, true
			if net.ParseIP(a["ip"]) == nil {
				t.Errorf("%q is no address", a["ip"])
			}
		}
		if len(ips) != np || len(macs) != np {
			t.Errorf("%d clones have the addresses %v and %v", np, ips, macs)
		}
	})
	t.Run("neighbour tables", func(t *testing.T) {
		for rank, a := range clones {
			table := a["file:/proc/net/arp"]
			for other, b := range clones {
				if other != rank && !strings.Contains(table, neighbour(b)) {
					t.Errorf("rank %d has no permanent neighbour %s: %s", rank, neighbour(b), table)
				}
			}
			// Clones, the host, a line of titles: nothing of the parent's.
			if n := strings.Count(table, "|"); n != np {
				t.Errorf("rank %d has %d neighbours, want %d: %s", rank, n, np, table)
			}
		}
	})
	t.Run("host name", func(t *testing.T) {
		for rank, a := range clones {
			want := fmt.Sprintf("clone-%d", rank+1)
			if a["hostname"] != want || a["file:/etc/hostname"] != want {
				t.Errorf("rank %d is on %s, by its file %s", rank, a["hostname"], a["file:/etc/hostname"])
			}
			for other, b := range clones {
				if ip := a[fmt.Sprintf("resolve:clone-%d", other+1)]; ip != b["ip"] {
					t.Errorf("to rank %d, clone-%d is %s instead of %s", rank, other+1, ip, b["ip"])
				}
			}
		}
	})
	t.Run("machine-id", func(t *testing.T) { differ(t, jobs, "file:/etc/machine-id") })
	t.Run("boot_id", func(t *testing.T) { differ(t, jobs, "file:/proc/sys/kernel/random/boot_id") })
	t.Run("sockets", func(t *testing.T) {
		for rank, a := range clones {
			// What a rank inherits is its PMI connection alone, and what the clone has
			// are its own mounts' connections to the host.
			if open := strings.Fields(a["descriptors"]); len(open) != 1 || !strings.HasPrefix(open[0], "3:socket:") {
				t.Errorf("rank %d has open: %s", rank, a["descriptors"])
			}
			for _, kind := range []string{"tcp", "udp"} {
				for i, line := range strings.Split(a["file:/proc/net/"+kind], "|") {
					if f := strings.Fields(line); i > 0 && len(f) > 2 && f[1] != hexAddress(a["ip"], f[1]) {
						t.Errorf("rank %d has a socket of another address: %s", rank, line)
					}
				}
			}
		}
	})
	t.Run("mounts", func(t *testing.T) {
		for rank, a := range clones {
			n := 0
			for _, m := range strings.Split(a["file:/proc/mounts"], "|") {
				if f := strings.Fields(m); len(f) > 2 && f[2] == "9p" {
					n++
				}
			}
			// The working directory and the program's copy, each with its own server.
			if n != 2 {
				t.Errorf("rank %d has %d mounts of 9P, want 2: %s", rank, n, a["file:/proc/mounts"])
			}
		}
	})
	t.Run("no way out", func(t *testing.T) {
		for rank, a := range clones {
			for i, line := range strings.Split(a["file:/proc/net/route"], "|") {
				if f := strings.Fields(line); i > 0 && len(f) > 2 && (f[1] == "00000000" || f[2] != "00000000") {
					t.Errorf("rank %d has a route out: %s", rank, line)
				}
			}
			for q, v := range a {
				if strings.HasPrefix(q, "reach:") && !strings.HasPrefix(v, "failed: Network is unreachable") {
					t.Errorf("rank %d, %s: %s", rank, q, v)
				}
			}
		}
	})
}

// neighbour is a line of /proc/net/arp, up to the mask: 0x6 is complete and permanent.
func neighbour(a answers) string {
	var mac []string
	for i := 0; i+2 <= len(a["mac"]); i += 2 {
		mac = append(mac, a["mac"][i:i+2])
	}
	return fmt.Sprintf("%-17s0x1         0x6         %s", a["ip"], strings.Join(mac, ":"))
}

// hexAddress is an IPv4 address as /proc/net/tcp has it, with the port of like.
func hexAddress(ip, like string) string {
	a := net.ParseIP(ip).To4()
	_, port, _ := strings.Cut(like, ":")
	return fmt.Sprintf("%02X%02X%02X%02X:%s", a[3], a[2], a[1], a[0], port)
}

// hostAddresses are this machine's, without loopback's.
func hostAddresses(t *testing.T) (out []string) {
	t.Helper()
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			out = append(out, n.IP.String())
		}
	}
	return append(out, "192.0.2.1") // of no network, where there is only loopback
}
