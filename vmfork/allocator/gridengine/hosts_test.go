package gridengine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

func TestParseHosts(t *testing.T) {
	got, err := parseHosts(strings.NewReader("n1.cluster 2 all.q@n1.cluster UNDEFINED\nn2 4 all.q@n2 0,0:0,1\n\nn1.cluster 1 long.q@n1.cluster <NULL>\n"))
	want := []allocator.Host{{Name: "n1.cluster", Slots: 3, CPUs: 3}, {Name: "n2", Slots: 4, CPUs: 4}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, s := range []string{"", "\n", "n1", "n1 x", "n1 0", "n1 -1", "n1 65536", "n1 65535\nn1 1", "-n1 1", "n;1 1", "$(id) 1", strings.Repeat("n", 300) + " 1", strings.Repeat("n1 1\n", 1<<20)} {
		if got, err := parseHosts(strings.NewReader(s)); err == nil {
			t.Errorf("%.40q is %v", s, got)
		}
	}
}

func TestParseMemory(t *testing.T) {
	for job, want := range map[string]int64{
		"job_number: 1\nhard resource_list:         h_vmem=20G\nowner: x\n": 20 << 30,
		"hard resource_list:  mem_free=1.5G,h_vmem=2G,num_proc=2\n":         2 << 30,
		"hard resource_list:  mem_free=1.5G\n":                              3 << 29,
		"hard resource_list:  h_vmem=500m":                                  500e6,
		"hard resource_list:  h_vmem=INFINITY\n":                            0,
		"hard resource_list:  h_vmem=1e9\n":                                 0,
		"hard resource_list:  h_vmem=99999T\n":                              0,
		"hard resource_list:  h_vmem=\n":                                    0,
		"soft resource_list:  h_vmem=1G\n":                                  0,
		"":                                                                  0,
	} {
		if got := parseMemory(job); got != want {
			t.Errorf("%q: %d, want %d", job, got, want)
		}
	}
}

func TestNoJob(t *testing.T) {
	none := func(string) string { return "" }
	if a, found, err := Detect(none); found || a != nil || err != nil {
		t.Errorf("outside of a job: %v, %v, %v", a, found, err)
	}
	missing := filepath.Join(t.TempDir(), "missing")
	for _, test := range []struct{ id, file, want string }{{"x", missing, "JOB_ID"}, {"7", missing, "PE_HOSTFILE"}, {"7", os.DevNull, "PE_HOSTFILE"}} {
		_, found, err := Detect(func(name string) string { return map[string]string{"JOB_ID": test.id, "PE_HOSTFILE": test.file}[name] })
		if !found || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("job %s with %s: %v, %v", test.id, test.file, found, err)
		}
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add("n1 2 all.q@n1 UNDEFINED\nn2 4 all.q@n2 0,0:0,1\n")
	f.Add("n1 1\nn1 65535\n")
	f.Fuzz(func(t *testing.T, s string) {
		hosts, err := parseHosts(strings.NewReader(s))
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, h := range hosts {
			if checkName(h.Name) != nil || h.Name == "" || h.Slots < 1 || h.Slots > maxSlots || seen[h.Name] {
				t.Fatalf("%q has %+v", s, h)
			}
			seen[h.Name] = true
		}
	})
}

func FuzzParseMemory(f *testing.F) {
	f.Add("hard resource_list:  mem_free=1.5G,h_vmem=2G\n")
	f.Fuzz(func(t *testing.T, s string) {
		if n := parseMemory(s); n < 0 || n > 1<<46 {
			t.Fatalf("%q: %d", s, n)
		}
	})
}
