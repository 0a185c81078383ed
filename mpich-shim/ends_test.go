package mpichshim

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEnds(t *testing.T) {
	for name, test := range map[string]struct {
		ends   []End
		keep   bool // without auto-cleanup
		status int
		said   string
		codes  string
	}{
		"well":                  {[]End{{Rank: 0}, {Rank: 1}}, false, 0, "", "Exit codes: [a] 0,0\n"},
		"statuses are ORed":     {[]End{{Rank: 0, Status: 1}, {Rank: 1, Status: 2}}, false, 3, "", "Exit codes: [a] 256,512\n"},
		"one more than a byte":  {[]End{{Rank: 0, Status: 300}}, false, 44, "", "Exit codes: [a] 11264,0\n"},
		"a signal":              {[]End{{Rank: 1, Signal: 9, PID: 7, Host: "a"}}, false, 9, "Killed (signal 9)", "Exit codes: [a] 0,9\n"},
		"a signal and a status": {[]End{{Rank: 0, Status: 1}, {Rank: 1, Signal: 11, Core: true}}, false, 139, "Segmentation fault (signal 11)", "Exit codes: [a] 256,139\n"},
		"signals are ORed":      {[]End{{Rank: 0, Signal: 1}, {Rank: 1, Signal: 2}}, false, 3, "Quit (signal 3)", "Exit codes: [a] 1,2\n"},
		"without cleaning up":   {[]End{{Rank: 0, Signal: 9}}, true, 9, "Killed (signal 9)", "Exit codes: [a] 9,0\n"},
		"real-time signal":      {[]End{{Rank: 0, Signal: 40}}, false, 40, "Unknown signal 40 (signal 40)", "Exit codes: [a] 40,0\n"},
	} {
		e := Ends{AutoCleanup: !test.keep}
		banners := 0
		for _, one := range test.ends {
			if text := e.Add(one); text != "" {
				banners++
				if one.Signal == 0 || !strings.Contains(text, "=   PID ") || !strings.HasPrefix(text, "\n=====") {
					t.Errorf("%s: the banner is %q", name, text)
				}
			}
		}
		status, said := e.Status()
		if status != test.status || test.said == "" != (said == "") || !strings.Contains(said, test.said) {
			t.Errorf("%s: status %d and %q, want %d and %q", name, status, said, test.status, test.said)
		}
		signalled := test.said != "" && !test.keep
		if (banners == 1) != signalled {
			t.Errorf("%s: %d banners", name, banners)
		}
		if got := e.ExitCodes([]Host{{Name: "a"}, {Name: "idle"}}, [][]int{{0, 1}, nil}); got != test.codes {
			t.Errorf("%s: %q, want %q", name, got, test.codes)
		}
	}
}

func TestLayout(t *testing.T) {
	node := func(slots int) Host { return Host{Name: "h", Slots: slots} }
	for _, test := range []struct {
		nodes []Host
		np    int
		want  [][]int
	}{
		{[]Host{node(1)}, 3, [][]int{{0, 1, 2}}},
		{[]Host{node(1), node(1)}, 4, [][]int{{0, 2}, {1, 3}}},
		{[]Host{node(2), node(1)}, 6, [][]int{{0, 1, 3, 4}, {2, 5}}},
		{[]Host{node(2), node(2)}, 1, [][]int{{0}, nil}},
		{[]Host{node(0), node(0)}, 1, [][]int{nil, nil}},
		{nil, 1, [][]int{}},
	} {
		if got := Layout(test.nodes, test.np); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%v, %d ranks: %v, want %v", test.nodes, test.np, got, test.want)
		}
	}
}

func TestNodes(t *testing.T) {
	here := func(name string) bool { return name == "me" }
	hosts := []Host{{Name: "me", Slots: 2}, {Name: "a", Slots: 3}, {Name: "b", Slots: 1}}
	names := func(all []Host) (s string) {
		for _, h := range all {
			s += h.Name + strings.Repeat("+", h.Slots) + " "
		}
		return s
	}
	for want, c := range map[string]Command{
		"me++ a+++ b+ ":       {Hosts: hosts},
		"a+++ b+ ":            {Hosts: hosts, SkipLocal: true},
		"b+ me++ a+++ ":       {Hosts: hosts, Order: OrderAscending},
		"a+++ me++ b+ ":       {Hosts: hosts, Order: OrderDescending},
		"me++++ a++++ b++++ ": {Hosts: hosts, PPN: 4},
		"m+ ":                 {},
	} {
		var managed []Host
		if c.Hosts == nil {
			managed = []Host{{Name: "m", Slots: 1}}
		}
		got, err := c.Nodes(managed, "me", here)
		if err != nil || names(got) != want {
			t.Errorf("%+v: %q, %v, want %q", c, names(got), err, want)
		}
	}
	if _, err := (&Command{SkipLocal: true}).Nodes(nil, "me", here); err == nil {
		t.Error("no hosts are left, and that is no error")
	}
	if names(hosts) != "me++ a+++ b+ " {
		t.Error("the command's own hosts have changed")
	}
	c := Command{Apps: []App{{Ranks: -1}, {Ranks: 2}}, Universe: UniverseSystem}
	if np, err := c.Ranks(hosts); np != 8 || err != nil || c.UniverseSize(hosts) != 6 {
		t.Errorf("%d ranks, universe %d, %v", np, c.UniverseSize(hosts), err)
	}
}

func TestEnviron(t *testing.T) {
	own := []string{"A=1", "B=2", "PATH=/bin", "PMI_RANK=3", "odd"}
	for want, test := range map[string]struct {
		c Command
		a App
	}{
		"A=1 B=2 PATH=/bin":       {},
		"PATH=/bin":               {Command{Inherit: Inherit{Mode: InheritNone}}, App{}},
		"A=1 B=2 PATH=/bin X=1":   {Command{Inherit: Inherit{Mode: InheritNone}, GlobalEnv: []string{"X=1"}}, App{Inherit: Inherit{Mode: InheritAll}}},
		"B=2 PATH=/bin":           {Command{}, App{Inherit: Inherit{InheritList, []string{"B", "Z"}}}},
		"A=3 B=2 PATH=/bin":       {Command{GlobalEnv: []string{"A=2"}}, App{Env: []string{"A=3"}}},
		"A=1 B=2 PATH=/bin IFACE": {Command{Interface: "lo"}, App{}},
	} {
		want = strings.Replace(want, "IFACE", "MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE=lo", 1)
		got := strings.Join(test.c.Environ(test.a, own), " ")
		got = strings.Replace(got, " GFORTRAN_UNBUFFERED_PRECONNECTED=y", "", 1)
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for gpus, want := range map[int]string{-1: "", 0: "CUDA_VISIBLE_DEVICES=-1", 1: "CUDA_VISIBLE_DEVICES=2", 2: "CUDA_VISIBLE_DEVICES=4,5"} {
		if got := (&Command{GPUs: gpus}).GPUVariable(2); got != want {
			t.Errorf("%d GPUs each: %q, want %q", gpus, got, want)
		}
	}
}

func TestBinding(t *testing.T) {
	for s, want := range map[string]*Binding{
		"": nil, "none": nil, "rr": {Unit: "hwthread", Each: 1}, "core:2": {Unit: "core", Each: 2}, "hwthread": {Unit: "hwthread", Each: 1},
		"user:0+2,1,-1": {Lists: [][]int{{0, 2}, {1}, nil}}, "socket": {Ignore: true}, "numa:2": {Ignore: true}, "l3cache": {Ignore: true},
	} {
		if got, err := ParseBinding(s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v, want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"foo", "core:0", "core:x", "user:", "user:a", "user:70000", "corex"} {
		if _, err := ParseBinding(s); err == nil {
			t.Errorf("%q: no error", s)
		}
	}
	c := Command{Binding: "core"}
	if b, err := c.Of(Host{Binding: "0,1"}); err != nil || len(b.Lists) != 2 {
		t.Errorf("%+v, %v", b, err)
	}
	if b, err := c.Of(Host{}); err != nil || b.Unit != "core" {
		t.Errorf("%+v, %v", b, err)
	}
	if b, err := (&Command{Binding: "socket"}).Of(Host{}); b != nil || err != nil {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestPrinter(t *testing.T) {
	for name, test := range map[string]struct {
		line string
		in   []string
		want string
	}{
		"as it is":      {"a", []string{"one\n", "two"}, "one\ntwo"},
		"prefix":        {"-l a", []string{"o", "ne\n\ntwo\nth", "ree"}, "[1] one\n[1] \n[1] two\n[1] three"},
		"another's":     {"-output-from 0 a", []string{"one\n"}, ""},
		"of this alone": {"-output-from 1 a", []string{"one\n"}, "one\n"},
		"empty prefix":  {"-prepend-pattern= a", []string{"one\n"}, "one\n"},
	} {
		c, err := Parse(words(test.line), system(nil, nil))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		p := NewPrinter(c, &out, &out)
		w := p.Stream(Source{Rank: 1}, 1)
		for _, s := range test.in {
			if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
				t.Errorf("%s: wrote %d bytes of %q: %v", name, n, s, err)
			}
		}
		w.Close()
		if out.String() != test.want {
			t.Errorf("%s: %q, want %q", name, out.String(), test.want)
		}
	}
}

// A question has no line end, and is asked all the same; what follows it on its
// line has no prefix of its own.
func TestPrinterPrompts(t *testing.T) {
	c, err := Parse(words("-l a"), system(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	s := NewPrinter(c, w, w).Stream(Source{}, 1)
	buf := make([]byte, 100)
	for _, step := range [][2]string{{"name? ", "[0] name? "}, {"x\n", "x\n"}, {"y\n", "[0] y\n"}} {
		s.Write([]byte(step[0]))
		r.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := r.Read(buf)
		if err != nil || string(buf[:n]) != step[1] {
			t.Errorf("after %q came %q (%v), want %q", step[0], buf[:n], err, step[1])
		}
	}
}

func TestPrinterFiles(t *testing.T) {
	t.Chdir(t.TempDir())
	c, err := Parse(words("-l -outfile-pattern o-%r -errfile-pattern all a"), system(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile("all", []byte("12345678901234567890"), 0o600)
	p := NewPrinter(c, nil, nil)
	for rank := range 2 {
		for fd := 1; fd <= 2; fd++ {
			w := p.Stream(Source{Rank: rank}, fd)
			w.Write([]byte("x\n"))
			w.Close()
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"o-0": "[0] x\n", "o-1": "[1] x\n", "all": "[0] x\n[1] x\n34567890"[:20]} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	bad, err := Parse(words("-outfile-pattern /nonexistent/x a"), system(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPrinter(bad, nil, nil).Stream(Source{}, 1).Write([]byte("x\n")); err == nil {
		t.Error("a file that cannot be written is no error")
	}
}
