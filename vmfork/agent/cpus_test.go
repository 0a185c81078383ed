package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cpuTree makes a machine's CPUs, of which those in files can be switched.
func cpuTree(t *testing.T, present, online string, files ...int) string {
	t.Helper()
	root := t.TempDir()
	write := func(name, content string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("present", present+"\n")
	write("online", online+"\n")
	for _, cpu := range files {
		write(fmt.Sprintf("cpu%d/online", cpu), "-")
	}
	return root
}

func TestSetOnline(t *testing.T) {
	for name, c := range map[string]struct {
		present, online string
		n               int
		want            map[int]string // what is written; "-" is untouched
	}{
		"up":          {"0-3", "0", 3, map[int]string{1: "1", 2: "1", 3: "-"}},
		"down":        {"0-3", "0-3", 1, map[int]string{1: "0", 2: "0", 3: "0"}},
		"as it is":    {"0-3", "0-1", 2, map[int]string{1: "-", 2: "-", 3: "-"}},
		"up and down": {"0-3", "0,2-3", 2, map[int]string{1: "1", 2: "0", 3: "0"}},
		"all":         {"0-3", "0-2", 4, map[int]string{1: "-", 2: "-", 3: "1"}},
		"one CPU":     {"0", "0", 1, nil},
		"with holes":  {"0,4,6-7", "0", 3, map[int]string{4: "1", 6: "1", 7: "-"}},
	} {
		t.Run(name, func(t *testing.T) {
			var files []int
			for cpu := range c.want {
				files = append(files, cpu)
			}
			root := cpuTree(t, c.present, c.online, files...)
			if err := setOnlineAt(root, c.n); err != nil {
				t.Fatal(err)
			}
			for cpu, want := range c.want {
				got, err := os.ReadFile(filepath.Join(root, fmt.Sprintf("cpu%d/online", cpu)))
				if err != nil {
					t.Fatal(err)
				}
				if string(got) != want {
					t.Errorf("CPU %d was told %q, want %q", cpu, got, want)
				}
			}
		})
	}
}

func TestSetOnlineErrors(t *testing.T) {
	for name, c := range map[string]struct {
		root string
		n    int
		want string
	}{
		"too many":    {cpuTree(t, "0-1", "0-1", 1), 3, "bring 3 CPUs online: the machine has 2"},
		"none":        {cpuTree(t, "0-1", "0-1", 1), 0, "bring 0 CPUs online"},
		"fixed":       {cpuTree(t, "0-1", "0-1"), 1, "bring CPU 1 offline"},
		"no list":     {t.TempDir(), 1, "list the CPUs"},
		"not a list":  {cpuTree(t, "0-", "0"), 1, `"0-"`},
		"empty":       {cpuTree(t, "", "0"), 1, `""`},
		"backwards":   {cpuTree(t, "3-0", "0"), 1, `"3-0"`},
		"huge":        {cpuTree(t, "0-9999999999", "0"), 1, "list the CPUs"},
		"online: odd": {cpuTree(t, "0-1", "x"), 1, `"x"`},
	} {
		t.Run(name, func(t *testing.T) {
			if err := setOnlineAt(c.root, c.n); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, and should say %q", err, c.want)
			}
		})
	}
}

// The kernel's own lists can be read.
func TestReadCPUs(t *testing.T) {
	for _, list := range []string{"present", "online"} {
		cpus, err := readCPUs(filepath.Join(cpuRoot, list))
		if err != nil || len(cpus) == 0 {
			t.Errorf("%s: %v, %v", list, cpus, err)
		}
	}
}
