package slurm

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

func TestExpand(t *testing.T) {
	for list, want := range map[string]string{
		"n1":                     "n1",
		"n[01-03,7],m5":          "n01 n02 n03 n7 m5",
		"n[1]":                   "n1",
		"n[8-11]":                "n8 n9 n10 n11",
		"n[098-101]":             "n098 n099 n100 n101",
		"rack[1-2]n[0-1]":        "rack1n0 rack1n1 rack2n0 rack2n1",
		"r[1-2]-gpu,x.cluster.c": "r1-gpu r2-gpu x.cluster.c",
		"[1-2]n":                 "1n 2n",
		"n[1-2]p[1,3]q":          "n1p1q n1p3q n2p1q n2p3q",
	} {
		got, err := expand(list)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v, want %s", list, got, err, want)
		}
	}
	for _, list := range []string{
		"", ",", "n1,", ",n1", "n[", "n]", "n[]", "n[1", "n[1]]", "n[1[2-3]]", "n[2-1]", "n[1-]", "n[-1]", "n[a]", "n[1-2-3]",
		"n1,n1", "n[1,1]", "-n1", "n1,-oProxyCommand=x", "n 1", "n;1", "n\n1", "$(id)", "n[1-99999]", "n[1-1000]m[1-1000]",
		"n[9999999999999999999]", "n[0-18446744073709551615]", ".n", strings.Repeat("n", 300), "[-1]",
	} {
		if got, err := expand(list); err == nil {
			t.Errorf("%.40q was expanded to %d hosts: %.60v", list, len(got), got)
		}
	}
	if got, err := expand("n[1-65533]"); err != nil || len(got) != 65533 {
		t.Errorf("as many as Slurm has: %d, %v", len(got), err)
	}
}

func TestParseCounts(t *testing.T) {
	for s, want := range map[string][]int{
		"1":               {1},
		"2(x3),1":         {2, 2, 2, 1},
		"72(x2),36,1(x1)": {72, 72, 36, 1},
	} {
		if got, err := parseCounts(s); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", ",", "x", "2(", "2(x", "2(x)", "2(x0)", "2(3)", "-1", "2(x-1)", "+1", "65536", "1(x65534)", "1(x65000),1(x65000)", "1 "} {
		if got, err := parseCounts(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func from(pairs ...string) func(string) string {
	return func(name string) string {
		for _, pair := range pairs {
			if value, ok := strings.CutPrefix(pair, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

func TestReadJob(t *testing.T) {
	got, err := readJob(from("SLURM_JOB_ID=7", "SLURM_JOB_NODELIST=n[1-2]", "SLURM_TASKS_PER_NODE=4,2", "SLURM_JOB_CPUS_PER_NODE=8(x2)", "SLURM_MEM_PER_CPU=100"))
	want := job{"7", []allocator.Host{
		{Name: "n1", Slots: 4, CPUs: 8, Memory: 800 << 20},
		{Name: "n2", Slots: 2, CPUs: 8, Memory: 800 << 20},
	}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	got, err = readJob(from("SLURM_JOB_ID=7", "SLURM_JOB_NODELIST=n1", "SLURM_MEM_PER_NODE=2048"))
	want = job{"7", []allocator.Host{{Name: "n1", Memory: 2 << 30}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range [][2]string{
		{"SLURM_JOB_ID", "x"},
		{"SLURM_HET_SIZE", "2"},
		{"SLURM_PACK_SIZE", "2"},
		{"SLURM_STEP_NUM_TASKS", "4"},
		{"SLURM_JOB_NODELIST", "n[1-"},
		{"SLURM_TASKS_PER_NODE", "1(x3)"},
		{"SLURM_JOB_CPUS_PER_NODE", "many"},
		{"SLURM_MEM_PER_NODE", "2G"},
		{"SLURM_MEM_PER_CPU", "99999999999999999999"},
	} {
		_, err := readJob(from(bad[0]+"="+bad[1], "SLURM_JOB_ID=7", "SLURM_JOB_NODELIST=n[1-2]"))
		if err == nil || !strings.Contains(err.Error(), bad[0]) || !strings.Contains(err.Error(), bad[1]) {
			t.Errorf("%s=%s: %v does not say so", bad[0], bad[1], err)
		}
	}
}

func TestNoJob(t *testing.T) {
	if a, found, err := Detect(from()); found || a != nil || err != nil {
		t.Errorf("outside of a job: %v, %v, %v", a, found, err)
	}
	if _, found, err := Detect(from("SLURM_JOB_ID=1")); !found || err == nil {
		t.Errorf("a job without hosts: %v, %v", found, err)
	}
}

func TestWords(t *testing.T) {
	for s, want := range map[string][]string{
		"":                             nil,
		"  ":                           nil,
		"-p debug -t 10":               {"-p", "debug", "-t", "10"},
		` --comment="two words"  -N2 `: {"--comment=two words", "-N2"},
		`'a "b"' "c 'd'" e\ f "g\"h"`:  {`a "b"`, `c 'd'`, "e f", `g"h`},
		`'' ""`:                        {"", ""},
		`$HOME *`:                      {"$HOME", "*"},
	} {
		if got, err := Words(s); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{`"`, `'a`, `\`, `"a\"`} {
		if got, err := Words(s); err == nil {
			t.Errorf("%q: %q", s, got)
		}
	}
}

func TestOptionsThatDoHarm(t *testing.T) {
	for _, o := range []string{"--no-shell", "--no-s", ":", "--", "a\x00b"} {
		if checkOptions([]string{"-N2", o}) == nil {
			t.Errorf("%q is passed to salloc", o)
		}
	}
	if err := checkOptions([]string{"-p", "debug", "--no-kill", "--nodes=2", "-t10"}); err != nil {
		t.Error(err)
	}
}

func TestCommandEnvironment(t *testing.T) {
	got := commandEnvironment([]string{"PATH=/bin", "SLURM_CONF=/c", "SLURM_LABELIO=1", "SLURM_JOB_ID=1", "SRUN_CPUS_PER_TASK=1", "SALLOC_PARTITION=p"})
	if want := []string{"PATH=/bin", "SLURM_CONF=/c", "SALLOC_PARTITION=p"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestParseMemory(t *testing.T) {
	for job, want := range map[string][2]int64{
		"JobId=1 MinCPUsNode=1 MinMemoryNode=2G MinTmpDiskNode=0": {2 << 30, 0},
		"MinMemoryCPU=100M":       {0, 100 << 20},
		"MinMemoryCPU=1.50G":      {0, 3 << 29},
		"MinMemoryNode=0":         {},
		"MinMemoryNode=":          {},
		"MinMemoryNode=1.x2G":     {},
		"MinMemoryNode=-1G":       {},
		"MinMemoryNode=9999999P":  {},
		"MinMemoryNode=M":         {},
		"MinMemoryNode=1048576P":  {},
		"Comment=MinMemoryNode=1": {},
	} {
		if perNode, perCPU := parseMemory(job); perNode != want[0] || perCPU != want[1] {
			t.Errorf("%s: %d, %d", job, perNode, perCPU)
		}
	}
}

func FuzzParseMemory(f *testing.F) {
	f.Add("MinMemoryNode=2G MinMemoryCPU=1.5T")
	f.Fuzz(func(t *testing.T, s string) {
		if perNode, perCPU := parseMemory(s); perNode < 0 || perCPU < 0 || perNode > 1<<60 || perCPU > 1<<60 {
			t.Fatalf("%q: %d, %d", s, perNode, perCPU)
		}
	})
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"n[01-03,7],m5", "r[1-2]n[0-1]", "n1,n2", "n[1[2]]", "-x", "[0-9][0-9][0-9]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		names, err := expand(s)
		if err != nil {
			return
		}
		if len(names) == 0 || len(names) > maxHosts {
			t.Fatalf("%d hosts", len(names))
		}
		for _, name := range names {
			if checkName(name) != nil || strings.ContainsAny(name, "[], \n") {
				t.Fatalf("%q is a host", name)
			}
		}
		// What is expanded is a list of its own names.
		if again, err := expand(strings.Join(names, ",")); err != nil || !slices.Equal(again, names) {
			t.Fatalf("%v is expanded to %v, %v", names, again, err)
		}
	})
}

func FuzzParseCounts(f *testing.F) {
	for _, s := range []string{"2(x3),1", "1", "1(x65533)", "0", "3(x", "(x1)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		all, err := parseCounts(s)
		if err == nil && (len(all) == 0 || len(all) > maxHosts || slices.Min(all) < 0 || slices.Max(all) > maxCount) {
			t.Fatalf("%q is %v", s, all)
		}
	})
}

func FuzzWords(f *testing.F) {
	f.Add(`-p debug --comment="two words" 'x\' \y`)
	f.Fuzz(func(t *testing.T, s string) {
		words, err := Words(s)
		if err != nil {
			return
		}
		quoted := make([]string, len(words))
		for i, w := range words {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		if again, err := Words(strings.Join(quoted, " ")); err != nil || !slices.Equal(again, words) {
			t.Fatalf("%q are %q, %v", words, again, err)
		}
	})
}
