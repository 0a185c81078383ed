package e2e

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestStdin: all of a large input arrives at rank 0, none of it elsewhere, and
// an input that nobody wrote to is at its end.
func TestStdin(t *testing.T) { everywhere(t, testStdin) }

func testStdin(t *testing.T, p place) {
	var in strings.Builder
	for i := range 100000 {
		fmt.Fprintln(&in, i)
	}
	for name, text := range map[string]string{"large": in.String(), "empty": ""} {
		t.Run(name, func(t *testing.T) {
			h := fnv.New64a()
			h.Write([]byte(text))
			r := p.start(t, command{args: []string{"-np", "2", example("stdin")}, stdin: strings.NewReader(text)}).wait().succeeds(t)
			for rank := range 2 {
				has(t, r.stdout, fmt.Sprintf("rank %d of 2: stdin had %d bytes, checksum %016x", rank, len(text), h.Sum64()))
			}
		})
	}
	t.Run("not read", func(t *testing.T) {
		// An input that never ends, as a terminal's, must not keep the job.
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		p.start(t, command{args: []string{"-np", "2", example("hello")}, stdin: r}).wait().succeeds(t)
	})
}

// TestWholeLines: lines of ranks that all write at once, in pieces, arrive
// whole, each on its stream, none lost, with a label if asked.
func TestWholeLines(t *testing.T) { everywhere(t, testWholeLines) }

func testWholeLines(t *testing.T, p place) {
	const lines, length = 200, 1000
	for _, label := range []bool{false, true} {
		args := []string{"-q", "-np", "2", example("spew"), fmt.Sprint(lines), fmt.Sprint(length)}
		if label {
			args = append([]string{"-l"}, args...)
		}
		r := p.run(t, args...)
		if r.status != 0 {
			t.Fatalf("exit status %d: %.2000s", r.status, r.stderr)
		}
		for stream, text := range map[string]string{"out": r.stdout, "err": r.stderr} {
			next := map[string]int{}
			for line := range strings.Lines(text) {
				line = strings.TrimSuffix(line, "\n")
				// Two last lines without an end may share a line; only a label ends them.
				for line != "" {
					var rank string
					if label {
						var ok bool
						if rank, line, ok = strings.Cut(line, "] "); !ok || !strings.HasPrefix(rank, "[") {
							t.Fatalf("no label: %.80s", line)
						}
						rank = rank[1:]
					}
					f := strings.SplitN(line, " ", 3)
					if !label && len(f) > 1 {
						rank = f[1]
					}
					want := fmt.Sprintf("%s %s %d %d %s.", stream, rank, next[rank], length, strings.Repeat("x", length))
					if !strings.HasPrefix(line, want) {
						t.Fatalf("std%s, rank %s, line %d is torn: %.80q…", stream, rank, next[rank], line)
					}
					next[rank]++
					line = line[len(want):]
				}
			}
			if len(next) != 2 || next["0"] != lines || next["1"] != lines {
				t.Errorf("std%s has %v lines by rank, want %d of 2 ranks each", stream, next, lines)
			}
		}
	}
}

// TestLogFormat: as JSON, every line of the launcher's own is one object, and
// stdout is the ranks'.
func TestLogFormat(t *testing.T) { everywhere(t, testLogFormat) }

func testLogFormat(t *testing.T, p place) {
	r := p.run(t, "-v", "--log-format", "json", "-np", "2", example("hello"))
	if r.status != 0 || strings.Count(r.stdout, "hello from rank") != strings.Count(r.stdout, "\n") {
		t.Fatalf("exit status %d, stdout:\n%s\nstderr:\n%s", r.status, r.stdout, r.stderr)
	}
	var said []string
	for line := range strings.Lines(r.stderr) {
		var m struct{ Level, Time, Message string }
		if err := json.Unmarshal([]byte(line), &m); err != nil || m.Level == "" || m.Time == "" {
			t.Errorf("%q is no line of a log: %v", line, err)
		}
		said = append(said, m.Message)
	}
	if !strings.Contains(strings.Join(said, "\n"), "clones ready in") {
		t.Errorf("the log does not tell of clones: %q", said)
	}
	r = p.run(t, "--log-format", "json", example("no-such"))
	var m struct{ Level, Message string }
	if err := json.Unmarshal([]byte(r.stderr), &m); err != nil || m.Level != "error" || !strings.Contains(m.Message, "does not exist") {
		t.Errorf("an error as JSON is %q", r.stderr)
	}
}

// TestVerbose: -v tells of each phase and what was fetched.
func TestVerbose(t *testing.T) {
	r := mpirun(t, "-v", "-np", "2", example("hello")).succeeds(t)
	for _, word := range []string{"ticket for 2 clones", "checkpoint with", "clones ready", "folders mounted", "ranks ended", "KB fetched", "cleaned up"} {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("-v does not say %q:\n%s", word, r.stderr)
		}
	}
}

// TestEnvironment: what ranks find in their environment, and where they run.
func TestEnvironment(t *testing.T) { everywhere(t, testEnvironment) }

func testEnvironment(t *testing.T, p place) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "in here"), 0o755); err != nil {
		t.Fatal(err)
	}
	probe := compile(t, "gcc", "testdata/probe.c")
	r := p.start(t, command{args: []string{"-np", "2", "-env", "GREETING", "a, b = c", "-env", "EMPTY", "", "-wdir", "in here",
		probe, "env:GREETING", "env:EMPTY", "env:FROM_OUTSIDE", "env:LD_PRELOAD", "cwd", "arg:with space"},
		dir: dir, env: []string{"FROM_OUTSIDE=yes"}}).wait().succeeds(t)
	for rank := range 2 {
		has(t, r.stdout,
			fmt.Sprintf("%d env:GREETING = a, b = c", rank), fmt.Sprintf("%d env:EMPTY = ", rank),
			fmt.Sprintf("%d env:FROM_OUTSIDE = yes", rank), fmt.Sprintf("%d env:LD_PRELOAD unset", rank),
			fmt.Sprintf("%d cwd = %s", rank, filepath.Join(dir, "in here")), fmt.Sprintf("%d arg:with space = with space", rank))
	}
}

// TestOversubscribe: what does not fit is refused with the numbers, or shared.
func TestOversubscribe(t *testing.T) {
	half := fmt.Sprintf("%dM", availableMB(t)*3/5)
	mpirun(t, "-np", "2", "--memory", half, example("nompi")).fails(t, 1, "1 clone of", "GB fit into", "GB that are free", "-np 2", "--oversubscribe")
	r := mpirun(t, "-np", "2", "--memory", half, "--oversubscribe", example("nompi")).succeeds(t)
	has(t, r.stdout, "no MPI here: clone-1, PMI_RANK 0 of PMI_SIZE 2", "no MPI here: clone-1, PMI_RANK 1 of PMI_SIZE 2")
}

func availableMB(t *testing.T) (mb int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "MemAvailable:")
	if _, err := fmt.Sscan(rest, &mb); err != nil {
		t.Fatal(err)
	}
	return mb >> 10
}

// TestStrict: cores are soft without it.
func TestStrict(t *testing.T) {
	mpirun(t, "-np", "200", "--strict", "--memory", "128M", example("nompi")).fails(t, 1, "--strict", "cores", "-np 200")
}
