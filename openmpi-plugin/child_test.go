package plugin

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// harness is the program that uses the component's half of the protocol.
var harness = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "openmpi-plugin")
	if err != nil {
		return "", err
	}
	folders = append(folders, dir)
	path := filepath.Join(dir, "child")
	out, err := exec.Command("cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1",
		"-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Icomponent",
		"-o", path, "testdata/child.c", "component/allocation.c").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build testdata/child.c: %w\n%s", err, out)
	}
	return path, nil
})

// What the command says is taken for what it means, or for nothing; a line that
// means something is said again as it was.
func FuzzParse(f *testing.F) {
	for _, line := range []string{
		"host clone-1 2 10.1.2.3", "host clone-1 2 10.1.2.3 x", "host -oProxyCommand=x 2 10.1.2.3", "host a 0 10.1.2.3",
		"host a 65536 10.1.2.3", "host a 65537 10.1.2.3", "host a +2 10.1.2.3", "host a 2 ::1", "host  a 2 10.1.2.3",
		"mca plm_rsh_agent /usr/bin/mpirun-sf ompi agent", "mca x ", "mca x", "mca a-b c", "env A b  c ", "env 1A b", "env A=b c",
		"ready", "ready ", "ready x", "error", "error ", "error it is late", "", " ", "hosts a 2 10.1.2.3", "host \xff 2 10.1.2.3",
	} {
		f.Add(line)
	}
	path, err := harness()
	if err != nil {
		f.Fatal(err)
	}
	cmd := exec.Command(path, "parse")
	in, err := cmd.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			f.Errorf("%v\n%s", err, stderr.String())
		}
	})
	answers := bufio.NewReader(out)
	f.Fuzz(func(t *testing.T, line string) {
		if strings.ContainsAny(line, "\n\x00") {
			t.Skip("no line has these")
		}
		if _, err := io.WriteString(in, line+"\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := answers.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		answer = strings.TrimSuffix(answer, "\n")
		kind, _, _ := strings.Cut(line, " ")
		switch {
		case answer == "nothing":
		case kind == "host":
			// A number may be written with zeros before it.
			if f, g := strings.Fields(line), strings.Fields(answer); len(f) != 4 || len(g) != 4 ||
				strings.TrimLeft(f[2], "0") != g[2] || f[1] != g[1] || f[3] != g[3] {
				t.Errorf("%q is taken for %q", line, answer)
			}
		case answer != line:
			t.Errorf("%q is taken for %q", line, answer)
		}
	})
}

func TestMeaning(t *testing.T) {
	lines := []struct{ line, want string }{
		{"host clone-1 2 10.1.2.3", "host clone-1 2 10.1.2.3"},
		{"host clone-1 65537 10.1.2.3", "nothing"},
		{"host -oProxyCommand=x 2 10.1.2.3", "nothing"},
		{"host a 2 10.1.2.3 more", "nothing"},
		{"mca plm_rsh_agent /x/mpirun-sf ompi agent", "mca plm_rsh_agent /x/mpirun-sf ompi agent"},
		{"env SECRET a  b ", "env SECRET a  b "},
		{"env 1A b", "nothing"},
		{"mca a", "nothing"},
		{"ready", "ready"},
		{"ready or not", "nothing"},
		{"error it is late", "error it is late"},
		{"error", "nothing"},
		{"", "nothing"},
	}
	var in, want strings.Builder
	for _, l := range lines {
		in.WriteString(l.line + "\n")
		want.WriteString(l.want + "\n")
	}
	path, err := harness()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "parse")
	cmd.Stdin = strings.NewReader(in.String())
	out, err := cmd.Output()
	if err != nil || string(out) != want.String() {
		t.Errorf("%v, it says\n%swant\n%s", err, out, want.String())
	}
}

func TestChild(t *testing.T) {
	path, err := harness()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, limit string
		command     []string
		want        string
	}{
		{"joins when its stdin closes", "20", []string{"/bin/sh", "-c", "echo a; printf 'b\nenough\n'; exec cat"},
			"line of 1: a\nline of 1: b\nline of 6: enough\nend: Operation canceled\njoined\n"},
		{"says more while it joins", "20", []string{"/bin/sh", "-c", "echo enough; cat; head -c 300000 /dev/zero; echo"},
			"line of 6: enough\nend: Operation canceled\njoined\n"},
		{"does not join", "1", []string{"/bin/sh", "-c", "trap '' TERM; echo enough; exec sleep 60"},
			"line of 6: enough\nend: Operation canceled\nkilled\n"},
		{"has closed its stdout", "20", []string{"/bin/sh", "-c", "exec cat >/dev/null"}, "end: closed\njoined\n"},
		{"says a line without an end", "20", []string{"/bin/sh", "-c", "echo a; printf b"}, "line of 1: a\nend: closed\njoined\n"},
		{"says an endless line", "20", []string{"/bin/sh", "-c", "exec head -c 200000 /dev/zero"}, "end: Message too long\njoined\n"},
		{"says a zero byte", "20", []string{"/bin/sh", "-c", `printf 'a\0b\n'`}, "end: Bad message\njoined\n"},
		{"says the longest line", "20", []string{"/bin/sh", "-c", "printf '%065535d\nenough\n' 1"},
			"line of 65535: " + strings.Repeat("0", 60) + "\nline of 6: enough\nend: Operation canceled\njoined\n"},
		{"is not there", "20", []string{"/nonexistent"}, "start: No such file or directory\n"},
		{"is a group of its own, elsewhere", "20", []string{"/bin/sh", "-c", `[ "$(ps -o pgid= $$ | tr -d ' ')" = $$ ] && pwd`},
			"line of 1: /\nend: closed\njoined\n"},
		{"has the three streams alone", "20", []string{"/bin/sh", "-c", `for f in 3 4 5 6 7 8 9 10 11 12; do [ ! -e /proc/$$/fd/$f ] || echo $f; done`},
			"end: closed\njoined\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, err := exec.Command(path, append([]string{"run", test.limit}, test.command...)...).CombinedOutput()
			if err != nil || string(out) != test.want {
				t.Errorf("%v, it says\n%swant\n%s", err, out, test.want)
			}
		})
	}
}
