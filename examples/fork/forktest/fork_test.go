package forktest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// An example is how one of them is run.
type example struct {
	t    *testing.T
	env  []string
	dir  string // working directory
	argv []string
}

// run returns what it printed, and its exit status.
func (e example) run() (stdout, stderr string, status int) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Minute)
	defer cancel()
	fakes, err := filepath.Abs("testdata/fake")
	if err != nil {
		e.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, e.argv[0], e.argv[1:]...)
	cmd.Dir = e.dir
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "PATH="+fakes+":"+os.Getenv("PATH"), "PYTHONPATH="+fakes, "PYTHONDONTWRITEBYTECODE=1",
		"FAKE_STATE="+e.t.TempDir())
	cmd.Env = append(cmd.Env, e.env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		e.t.Fatalf("%v: %v\n%s%s", e.argv, err, out.String(), errs.String())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func path(t *testing.T, name string) string {
	t.Helper()
	p, err := filepath.Abs(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPairs(t *testing.T) {
	prog := filepath.Join(t.TempDir(), "pairs")
	binding, err := filepath.Abs("../../../vmfork/bindings/c")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("cc", "-Wall", "-Wextra", "-Werror", "-O2", "-I"+binding, "-o", prog, path(t, "pairs.c"), "testdata/fake/sf.c").CombinedOutput()
	if err != nil {
		t.Fatalf("compile pairs: %v\n%s", err, out)
	}
	file := path(t, "sequences.fa")
	serial, _, status := example{t: t, argv: []string{prog, "-serial", file}}.run()
	if !strings.HasPrefix(serial, "24 sequences, 276 pairs, checksum 1bd260f62a5630bd\n") || !strings.HasSuffix(serial, ";\n") || status != 0 {
		t.Fatalf("serial: status %d\n%s", status, serial)
	}
	for _, tt := range []struct {
		args, env string
		stderr    string
		status    int
	}{
		{args: "-n 1", stderr: "2 workers in 1 clones"},
		{args: "-n 3", stderr: "4 workers in 3 clones"},
		{args: "-n 300", env: "FAKE_SLOTS=20", stderr: "21 workers in 20 clones"},
		{args: "-n 7 -hierarchical", env: "FAKE_VCPUS=3", stderr: "10 workers in 3 clones"},
		{args: "-n 2", env: "FAKE_SLOTS=0", stderr: "no room for a clone", status: 1},
		{args: "-n 0", stderr: "usage: pairs", status: 2},
	} {
		argv := append([]string{prog}, append(strings.Fields(tt.args), file)...)
		stdout, stderr, status := example{t: t, argv: argv, env: strings.Fields(tt.env)}.run()
		if status != tt.status || !strings.Contains(stderr, tt.stderr) || status == 0 && stdout != serial {
			t.Errorf("%s: status %d\n%s%s", tt.args, status, stdout, stderr)
		}
	}
}

func TestLoad(t *testing.T) {
	stdout, stderr, status := example{t: t, argv: []string{"/usr/bin/python3", path(t, "load.py")}, env: []string{"FAKE_SLOTS=3"}}.run()
	last := regexp.MustCompile(`(?m)^56 jobs done, sum 5276706; forked (\d+) workers, killed (\d+), ([123]) at once at most$`).FindStringSubmatch(stdout)
	if status != 0 || last == nil {
		t.Fatalf("status %d\n%s%s", status, stdout, stderr)
	}
	// There are two bursts with a silence between.
	if last[1] != last[2] || last[1] < "2" || last[3] < "2" {
		t.Errorf("forked and killed too few:\n%s", stdout)
	}
	if i, j := strings.Index(stdout, "killed a worker"), strings.LastIndex(stdout, "forked a worker"); i > j {
		t.Errorf("it did not fork again after it had killed:\n%s", stdout)
	}
}

func TestOpportunistic(t *testing.T) {
	for slots, rounds := range map[string]string{"1": "16", "5": "4", "100": "1"} {
		stdout, stderr, status := example{t: t, argv: []string{"/usr/bin/python3", path(t, "opportunistic.py")}, env: []string{"FAKE_SLOTS=" + slots}}.run()
		if status != 0 || !strings.HasSuffix(stdout, "\n27608 primes below 320000, in "+rounds+" rounds\n") {
			t.Errorf("%s slots: status %d\n%s%s", slots, status, stdout, stderr)
		}
	}
}

func TestSandbox(t *testing.T) {
	for _, tt := range []struct {
		command        string
		stdout, stderr string
		status         int
	}{
		{"echo out; echo err >&2; exit 3", "out\n", "err\n", 3},
		{"cat; pwd", "/\n", "", 0},
		{"echo begun; sleep 1000", "begun\n", "sf: join: time is over\n", 124},
		{"cd /nonexistent 2>/dev/null", "", "", 2},
	} {
		dir := t.TempDir()
		e := example{t: t, dir: dir, argv: []string{path(t, "sandbox.sh"), "sh", "-c", tt.command}}
		if tt.status == 124 {
			e.env = []string{"LIMIT=1"}
		}
		stdout, stderr, status := e.run()
		if stdout != tt.stdout || stderr != tt.stderr || status != tt.status {
			t.Errorf("%s: status %d\n%s%s", tt.command, status, stdout, stderr)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind %v, %v", tt.command, left, err)
		}
	}
	if _, stderr, status := (example{t: t, argv: []string{path(t, "sandbox.sh")}}).run(); status != 2 || !strings.HasPrefix(stderr, "usage:") {
		t.Errorf("without arguments: status %d, %s", status, stderr)
	}
	if _, stderr, status := (example{t: t, argv: []string{path(t, "sandbox.sh"), "true"}, env: []string{"FAKE_SLOTS=0"}, dir: t.TempDir()}).run(); status != 1 || stderr != "sf: no room for a clone\n" {
		t.Errorf("without slots: status %d, %s", status, stderr)
	}
}

func TestFrames(t *testing.T) {
	var serial string
	for _, clones := range []string{"0", "1", "3", "20"} {
		dir := t.TempDir()
		stdout, stderr, status := example{t: t, dir: dir, argv: []string{path(t, "frames.sh"), clones, "8"}}.run()
		if status != 0 {
			t.Fatalf("%s clones: status %d\n%s%s", clones, status, stdout, stderr)
		}
		b, err := os.ReadFile(filepath.Join(dir, "frames.txt"))
		if err != nil {
			t.Fatal(err)
		}
		if serial == "" {
			serial = string(b)
		}
		if string(b) != serial || strings.Count(serial, "\f") != 7 || !strings.Contains(serial, "@@@@@@") {
			t.Errorf("%s clones made other frames:\n%s", clones, b)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%s clones left behind %v, %v", clones, left, err)
		}
	}
}

// A clone cannot read the rest of its script from a folder whose connection did
// not survive the fork: everything is in functions, called in the last line.
func TestScriptsAreReadBeforeTheFork(t *testing.T) {
	for _, name := range []string{"sandbox.sh", "frames.sh"} {
		b, err := os.ReadFile(path(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasSuffix(b, []byte("}\nmain \"$@\"\n")) {
			t.Errorf("%s does not end in a call of main", name)
		}
	}
}
