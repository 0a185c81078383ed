package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// inVM runs a script in a virtual machine, in a folder that has a copy of
// examples/fork, the bindings that they use, and beside.
func inVM(t *testing.T, options []string, script string, beside ...string) result {
	t.Helper()
	nothingIsLeft(t)
	dir := t.TempDir()
	for _, folder := range []string{"examples/fork", "vmfork/bindings/c", "vmfork/bindings/python"} {
		if err := os.CopyFS(filepath.Join(dir, folder), os.DirFS(filepath.Join("../..", folder))); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range beside {
		if out, err := exec.Command("cp", file, dir).CombinedOutput(); err != nil {
			t.Fatalf("copy %s: %v\n%s", file, err, out)
		}
	}
	args := append([]string{"vm", "run", "--name", strings.ToLower(t.Name())}, options...)
	r := command{dir: dir, limit: 4 * time.Minute, args: append(args, "--", "sh", "-c", script)}.run(t)
	t.Logf("%s%s", r.stdout, r.stderr)
	return r
}

// python brings the machine's Python.
func python(t *testing.T) []string {
	t.Helper()
	library, err := filepath.Glob("/usr/lib/python3.[0-9]*")
	if _, e := os.Stat("/usr/bin/python3"); e != nil || err != nil || len(library) == 0 {
		t.Fatal("this test needs /usr/bin/python3: apt install python3")
	}
	return []string{"--with", "/usr/bin/python3", "--with", library[0]}
}

func TestPatternSandbox(t *testing.T) {
	r := inVM(t, nil, `echo precious > /root/file; echo shared > file
examples/fork/sandbox.sh sh -c 'rm -rf /root /usr/share "$0"/*; ls /root "$0" 2>&1 | wc -l; echo err >&2; exit 3' "$PWD"
echo "status $?"; cat /root/file file; ls`)
	want := "2\nstatus 3\nprecious\nshared\nexamples\nfile\nvmfork\n"
	if r.status != 0 || r.stdout != want || !strings.HasSuffix(r.stderr, "err\n") {
		t.Errorf("got %q, want %q", r.stdout, want)
	}
}

func TestPatternSandboxLimit(t *testing.T) {
	slow(t)
	r := inVM(t, nil, "LIMIT=3 examples/fork/sandbox.sh sleep 1000; echo status $?; sf list | wc -l")
	if r.stdout != "status 124\n1\n" {
		t.Errorf("got %q", r.stdout)
	}
}

func TestPatternPairs(t *testing.T) {
	prog := filepath.Join(examples, "fork", "pairs")
	serial, err := exec.Command(prog, "-serial", "../../examples/fork/sequences.fa").Output()
	if err != nil {
		t.Fatal(err)
	}
	r := inVM(t, nil, "cd examples/fork && ../../pairs -n 3 sequences.fa && ../../pairs -n 2 -hierarchical sequences.fa", prog)
	if r.status != 0 || r.stdout != string(serial)+string(serial) {
		t.Errorf("the VMs say other than the serial program:\n%s", serial)
	}
}

func TestPatternLoad(t *testing.T) {
	slow(t)
	r := inVM(t, python(t), "examples/fork/load.py --most 2; sf list | wc -l")
	m := regexp.MustCompile(`(?m)^56 jobs done, sum 5276706; forked (\d+) workers, killed (\d+), ([12]) at once at most\n1\n$`).FindStringSubmatch(r.stdout)
	if r.status != 0 || m == nil || m[1] != m[2] || m[1] < "2" {
		t.Errorf("got %q", r.stdout)
	}
}

func TestPatternOpportunistic(t *testing.T) {
	slow(t)
	r := inVM(t, python(t), "examples/fork/opportunistic.py --tasks 7 --ask 3; sf list | wc -l")
	if r.status != 0 || !strings.Contains(r.stdout, "primes below 140000, in ") || !strings.HasSuffix(r.stdout, " rounds\n1\n") {
		t.Errorf("got %q", r.stdout)
	}
}

func TestPatternFrames(t *testing.T) {
	slow(t)
	r := inVM(t, nil, "examples/fork/frames.sh 3 6; examples/fork/frames.sh 0 6; ls")
	if l := strings.Split(r.stdout, "\n"); r.status != 0 || len(l) < 3 || l[0] != l[1] || !strings.HasSuffix(r.stdout, " frames.txt\nexamples\nframes.txt\nvmfork\n") {
		t.Errorf("got %q", r.stdout)
	}
}
