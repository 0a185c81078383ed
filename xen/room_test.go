package xen

import (
	"strings"
	"testing"
)

const saidOfMachine = `host                   : rig
release                : 6.1.0-56-amd64
nr_cpus                : 8
max_cpu_id             : 7
nr_nodes               : 1
xen_caps               : xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64
total_memory           : 16383
free_memory            : 2942
xen_commandline        : console=com1 dom0_mem=1024M,max:1024M loglvl=all
`

func TestParseInfo(t *testing.T) {
	for name, c := range map[string]struct {
		said string
		want info
		err  string
	}{
		"domain 0 has its share":   {saidOfMachine, info{cpus: 8, free: 2942 << 20}, ""},
		"domain 0 balloons":        {strings.Replace(saidOfMachine, "dom0_mem=1024M,max:1024M", "placeholder", 1), info{cpus: 8, free: 2942 << 20, balloons: true}, ""},
		"no command line":          {"nr_cpus:1\nfree_memory:0\n", info{cpus: 1, balloons: true}, ""},
		"nothing":                  {"", info{}, `xl info: its nr_cpus is ""`},
		"no processors":            {"nr_cpus : 0\nfree_memory : 1\n", info{}, `xl info: its nr_cpus is "0"`},
		"memory that is no number": {"nr_cpus : 1\nfree_memory : much\n", info{}, `xl info: its free_memory, in MB, is "much"`},
		"memory below nothing":     {"nr_cpus : 1\nfree_memory : -1\n", info{}, `xl info: its free_memory, in MB, is "-1"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseInfo(c.said)
			if got != c.want || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
				t.Errorf("%+v (%v), want %+v (%s)", got, err, c.want, c.err)
			}
		})
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add(saidOfMachine)
	f.Add("nr_cpus:65535\nfree_memory:4294967295\n")
	f.Fuzz(func(t *testing.T, said string) {
		if i, err := parseInfo(said); err == nil && (i.cpus < 1 || i.free < 0) {
			t.Errorf("%q is %+v", said, i)
		}
	})
}
