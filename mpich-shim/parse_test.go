package mpichshim

import (
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// system is a machine with these variables and files.
func system(env, files map[string]string) System {
	return System{
		LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		ReadFile: func(name string) ([]byte, error) {
			text, ok := files[name]
			if !ok {
				return nil, fs.ErrNotExist
			}
			return []byte(text), nil
		},
		Dir: "/here",
	}
}

// words parts a command line; two quotes are an empty word.
func words(line string) []string {
	all := strings.Fields(line)
	for i := range all {
		all[i] = strings.ReplaceAll(all[i], "''", "")
	}
	return all
}

func TestParse(t *testing.T) {
	app := func(ranks int, argv string) App { return App{Argv: words(argv), Ranks: ranks, Dir: "/here"} }
	hosts := func(list ...any) (all []Host) {
		for i := 0; i < len(list); i += 2 {
			all = append(all, Host{Name: list[i].(string), Slots: list[i+1].(int)})
		}
		return all
	}
	for _, test := range []struct {
		line  string
		env   map[string]string
		files map[string]string
		want  func(*Command)
	}{
		{line: "true", want: func(c *Command) { c.Apps = []App{app(0, "true")} }},
		{line: "-n 2 ./a -n 3 : x", want: func(c *Command) { c.Apps = []App{app(2, "./a -n 3"), app(0, "x")} }},
		{line: "--np=2 a", want: func(c *Command) { c.Apps = []App{app(2, "a")} }},
		{line: "---NP 2 a", want: func(c *Command) { c.Apps = []App{app(2, "a")} }},
		{line: "-n -1 a", want: func(c *Command) { c.Apps = []App{app(-1, "a")} }},
		{line: "-n 1 a : -n 2 b : c", want: func(c *Command) { c.Apps = []App{app(1, "a"), app(2, "b"), app(0, "c")} }},
		{line: "-n 1 a '' : -wdir /d b", want: func(c *Command) {
			c.Apps = []App{{Argv: []string{"a", ""}, Ranks: 1, Dir: "/here"}, {Argv: []string{"b"}, Dir: "/d"}}
		}},
		{line: "-wdir sub a", want: func(c *Command) { c.Apps = []App{{Argv: []string{"a"}, Dir: "/here/sub"}} }},
		{line: "-hosts a,b:2,,c a", want: func(c *Command) { c.Apps, c.Hosts = []App{app(0, "a")}, hosts("a", 1, "b", 2, "c", 1) }},
		{line: "-hosts a,a:2,b,a a", want: func(c *Command) { c.Apps, c.Hosts = []App{app(0, "a")}, hosts("a", 3, "b", 1, "a", 1) }},
		{line: "-hosts [fe80::1]:2,::1 a", want: func(c *Command) { c.Apps, c.Hosts = []App{app(0, "a")}, hosts("fe80::1", 2, "::1", 1) }},
		{line: "-f m a", files: map[string]string{"m": "# all\n a:2 user=u binding=0,1 # x\n\nb\n"}, want: func(c *Command) {
			c.Apps, c.Hosts = []App{app(0, "a")}, []Host{{"a", 2, "u", "0,1"}, {Name: "b", Slots: 1}}
		}},
		{line: "a", env: map[string]string{"HYDRA_HOST_FILE": "m"}, files: map[string]string{"m": "x:3"}, want: func(c *Command) {
			c.Apps, c.Hosts = []App{app(0, "a")}, hosts("x", 3)
		}},
		{line: "-hosts y a", env: map[string]string{"HYDRA_HOST_FILE": "m"}, want: func(c *Command) {
			c.Apps, c.Hosts = []App{app(0, "a")}, hosts("y", 1)
		}},
		{line: "-f HYDRA_USE_LOCALHOST a", want: func(c *Command) { c.Apps = []App{app(0, "a")} }},
		{line: "-ppn 2 -order-nodes down -skip-launch-node a", want: func(c *Command) {
			c.Apps, c.PPN, c.Order, c.SkipLocal = []App{app(0, "a")}, 2, OrderDescending, true
		}},
		{line: "-genv A 1 -genv B=2=3 -genv C= -env D 4 -env D 5 -envlist X,Y -genvnone a : -envall b", want: func(c *Command) {
			c.GlobalEnv = []string{"A=1", "B=2=3", "C="}
			c.Inherit.Mode = InheritNone
			one, two := app(0, "a"), app(0, "b")
			one.Env, one.Inherit = []string{"D=4", "D=5"}, Inherit{InheritList, []string{"X", "Y"}}
			two.Inherit.Mode = InheritAll
			c.Apps = []App{one, two}
		}},
		{line: "a", env: map[string]string{"HYDRA_ENV": "no"}, want: func(c *Command) { c.Apps, c.Inherit.Mode = []App{app(0, "a")}, InheritNone }},
		{line: "-genvlist A a", env: map[string]string{"HYDRA_ENV": "all"}, want: func(c *Command) {
			c.Apps, c.Inherit = []App{app(0, "a")}, Inherit{InheritList, []string{"A"}}
		}},
		{line: "-configfile f", files: map[string]string{"f": "-n 1 a b # c\n-n 2 d :\n e\n"}, want: func(c *Command) {
			c.Apps = []App{app(1, "a b"), app(2, "d"), app(0, "e")}
		}},
		{line: "-genv A 1 -ppn 3 a", env: map[string]string{"HOME": "/h"}, files: map[string]string{"/h/.mpiexec.hydra.conf": "-ppn 2 -iface lo -n 4 -genv A 2"}, want: func(c *Command) {
			c.Apps, c.PPN, c.Interface, c.Propagate = []App{app(4, "a")}, 3, "lo", false
			c.GlobalEnv = []string{"A=1", "A=2"}
		}},
		{line: "a", env: map[string]string{"HOME": "/h", "HYDRA_CONFIG_FILE": "/f"}, files: map[string]string{"/h/.mpiexec.hydra.conf": "-n 4", "/f": "-n 3"}, want: func(c *Command) {
			c.Apps = []App{app(3, "a")}
		}},
		{line: "a", env: map[string]string{"HOME": "/h", "HYDRA_CONFIG_FILE": "/none"}, files: map[string]string{"/h/.mpiexec.hydra.conf": "-n 4"}, want: func(c *Command) {
			c.Apps = []App{app(4, "a")}
		}},
		{line: "a", files: map[string]string{"/etc/mpiexec.hydra.conf": "-v"}, want: func(c *Command) { c.Apps, c.Verbose = []App{app(0, "a")}, true }},
		{line: "-usize 7 -output-from 1 -print-all-exitcodes -dac a", want: func(c *Command) {
			c.Apps, c.Universe, c.OutputFrom, c.PrintExitCodes, c.AutoCleanup = []App{app(0, "a")}, 7, 1, true, false
		}},
		{line: "-usize SYSTEM -pmi-port -g 2 a", want: func(c *Command) { c.Apps, c.Universe, c.PMIPort, c.GPUs = []App{app(0, "a")}, UniverseSystem, true, 2 }},
		{line: "-usize INFINITE -gpus-per-proc AUTO a", want: func(c *Command) { c.Apps = []App{app(0, "a")} }},
		{line: "-launcher ssh -rmk user -bind-to core -map-by socket -demux poll -topolib x -membind y -nameserver h:1 -launcher-exec e -disable-x -localhost l -profile -v --no-clone a", want: func(c *Command) {
			c.Apps, c.Launcher, c.Manager, c.Binding, c.Mapping = []App{app(0, "a")}, "ssh", "user", "core", "socket"
			c.LocalName, c.Profile, c.Verbose, c.NoClone = "l", true, true, true
		}},
		{line: "a", env: map[string]string{
			"HYDRA_LAUNCHER": "fork", "HYDRA_BOOTSTRAP": "ssh", "HYDRA_RMK": "slurm", "HYDRA_IFACE": "lo", "HYDRA_DEBUG": "yes", "HYDRA_BINDING": "rr",
			"HYDRA_MAPPING": "m", "MPIEXEC_TIMEOUT": "3", "MPIRUN_SF_NO_CLONE": "1",
		}, want: func(c *Command) {
			c.Apps, c.Launcher, c.Manager, c.Interface, c.Verbose, c.Binding = []App{app(0, "a")}, "fork", "slurm", "lo", true, "rr"
			c.Mapping, c.Timeout, c.NoClone, c.Propagate = "m", 3*time.Second, true, false
		}},
		{line: "a", env: map[string]string{"HYDRA_HOSTNAME_PROPAGATION": "0"}, want: func(c *Command) { c.Apps, c.Propagate = []App{app(0, "a")}, false }},
		{line: "-enable-hostname-propagation a", env: map[string]string{"HYDRA_HOSTNAME_PROPAGATION": "0"}, want: func(c *Command) { c.Apps = []App{app(0, "a")} }},
		{line: "-pmi_args 123 default_interface default_key 77", want: func(c *Command) {
			c.Singleton = &Singleton{"123", "default_interface", "default_key", 77}
		}},
	} {
		want := &Command{OutputFrom: -1, AutoCleanup: true, Universe: UniverseInfinite, Propagate: true, GPUs: -1}
		test.want(want)
		got, err := Parse(words(test.line), system(test.env, test.files))
		if err != nil {
			t.Errorf("%s: %v", test.line, err)
			continue
		}
		got.given = nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", test.line, got, want)
		}
	}
}

func TestPatternsOfCommand(t *testing.T) {
	c, err := Parse(words("-l -outfile o-%r-%g-%p-%h-%t-%% -errfile-pattern e a"), system(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	from := Source{Rank: 3, Group: 0, Node: 1, Host: "h"}
	for _, got := range []struct{ got, want string }{
		{c.Prefix.Resolve(from, 0), "[3] "},
		{c.Outfile.Resolve(from, 2500*time.Millisecond), "o-3-0-1-h-2-%"},
		{c.Errfile.Resolve(from, 0), "e"},
	} {
		if got.got != got.want {
			t.Errorf("%q, want %q", got.got, got.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for line, want := range map[string]string{
		"":                         "missing executable",
		"-n 2":                     "missing executable",
		"-n 1 :":                   "no program",
		": a":                      "no program",
		"a :":                      "missing executable",
		"-nosuch a":                "unrecognized argument -nosuch",
		"-- a":                     "unrecognized argument --",
		"-n":                       "-n: its value is missing",
		"-n x a":                   `"x" is not a number`,
		"-n 9999999999999999999 a": "is not a number",
		"-n 1 -np 2 a":             "-np: that was set before",
		"-n 1 a : -n 2 -n 3 b":     "-n: that was set before",
		"-genv A":                  "value is missing",
		"-genv =1 a":               "a variable needs a name",
		"-envall -envnone a":       "set before",
		"-hosts a -f b a":          "set before",
		"-hosts , a":               "no host",
		"-hosts a:0 a":             "number of slots",
		"-hosts -x a":              "is not a host",
		"-hosts [::1 a":            "is not a host",
		"-f none a":                "read hosts",
		"-f empty a":               "there is none",
		"-f odd a":                 `"foo=bar"`,
		"-f twice a":               "two of user=",
		"-ppn 0 a":                 "at least one",
		"-usize 0 a":               "is not a size",
		"-order-nodes x a":         "UP or DOWN",
		"-launcher foo a":          `-launcher: "foo" is not known`,
		"-rmk foo a":               `-rmk: "foo" is not known`,
		"-demux foo a":             "is not known",
		"-prepend-pattern %q a":    "%q stands for nothing",
		"-outfile-pattern x% a":    "ends with half",
		"-configfile none":         "read options",
		"-configfile again a":      "another one",
		"-configfile ranks -n 2 a": "set before",
		"-iface lo -enable-hostname-propagation a": "-iface and -enable-hostname-propagation",
		"-gpus-per-proc -2 a":                      "is not a number of GPUs",
	} {
		_, err := Parse(words(line), system(nil, map[string]string{
			"empty": "# nothing\n", "odd": "a foo=bar", "twice": "a user=x user=y", "again": "-configfile x", "ranks": "-n 3",
		}))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
	for name, value := range map[string]string{
		"MPIEXEC_TIMEOUT": "soon", "HYDRA_DEBUG": "maybe", "HYDRA_HOSTNAME_PROPAGATION": "x", "MPIRUN_SF_NO_CLONE": "", "HYDRA_LAUNCHER": "foo", "HYDRA_HOST_FILE": "none",
	} {
		if _, err := Parse([]string{"a"}, system(map[string]string{name: value}, nil)); err == nil {
			t.Errorf("%s=%s: no error", name, value)
		}
	}
}

// Each option says what it does, and none is twice in the table.
func TestOptionsTeach(t *testing.T) {
	seen := map[string]bool{}
	usage, err := Parse([]string{"-h"}, system(nil, nil))
	if err != nil || !strings.Contains(usage.Show, "mpiexec -n 4 ./hello") {
		t.Errorf("-h: %v, %v", usage, err)
	}
	for _, o := range options {
		for _, name := range o.names {
			if seen[name] {
				t.Errorf("-%s is there twice", name)
			}
			seen[name] = true
			if name == "h" || name == "help" {
				continue
			}
			c, err := Parse([]string{"-" + name, "-h"}, system(nil, nil))
			if err != nil || !strings.HasPrefix(c.Show, "\n-"+o.first()) || !strings.Contains(strings.Join(strings.Fields(c.Show), " "), o.text[:10]) {
				t.Errorf("-%s -h: %+v, %v", name, c, err)
			}
		}
	}
	if n := len(seen); n < 65 {
		t.Errorf("there are %d names of options", n)
	}
}

func TestWithout(t *testing.T) {
	c, err := Parse(words("-iface lo -demux poll -launcher rsh -rmk pbs a"), system(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	on, off := strings.Join(c.Without(true), "\n"), strings.Join(c.Without(false), "\n")
	for _, want := range []string{"-demux", "-launcher rsh", "-rmk pbs"} {
		if !strings.Contains(on, want) || !strings.Contains(off, want) {
			t.Errorf("%s is not told of: %q, %q", want, on, off)
		}
	}
	if !strings.Contains(on, "-iface") || strings.Contains(off, "-iface") {
		t.Errorf("-iface: %q on clones, %q without", on, off)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("-n\x002\x00a\x00:\x00-env\x00A\x001\x00b", "-n 1 a\n", "a:2 user=x\n", "3")
	f.Add("-hosts\x00a,b:3\x00-l\x00a", "# x\n: :\n", "[::1]:2 binding=0", "")
	f.Add("-prepend-pattern=%r%%\x00-bind-to\x00user:0+1\x00a", "-configfile f", "a=b", "-1")
	f.Fuzz(func(t *testing.T, line, config, hosts, timeout string) {
		files := map[string]string{"/etc/mpiexec.hydra.conf": config, "m": hosts}
		c, err := Parse(strings.Split(line, "\x00"), system(map[string]string{"MPIEXEC_TIMEOUT": timeout, "HYDRA_HOST_FILE": "m"}, files))
		if err != nil {
			return
		}
		if c.Show != "" || c.Singleton != nil {
			return
		}
		if len(c.Apps) == 0 {
			t.Fatal("a command without a program")
		}
		for _, a := range c.Apps {
			if len(a.Argv) == 0 || !strings.HasPrefix(a.Dir, "/") {
				t.Fatalf("%+v", a)
			}
		}
		for _, h := range c.Hosts {
			if h.Name == "" || h.Slots < 1 {
				t.Fatalf("%+v", h)
			}
		}
		nodes, err := c.Nodes(nil, "here", func(string) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		np, err := c.Ranks(nodes)
		if err != nil || np > 1000 {
			return
		}
		var all []int
		for _, ranks := range Layout(nodes, np) {
			all = append(all, ranks...)
		}
		slices.Sort(all)
		for i, rank := range all {
			if i != rank {
				t.Fatalf("ranks %v of %d", all, np)
			}
		}
		if len(all) != np {
			t.Fatalf("%d ranks of %d", len(all), np)
		}
		for e := range maps.Keys(environOf(c.Environ(c.Apps[0], []string{"A=1"}))) {
			if e == "" {
				t.Fatal("a variable without a name")
			}
		}
	})
}

func environOf(list []string) map[string]string {
	all := map[string]string{}
	for _, e := range list {
		name, value, _ := strings.Cut(e, "=")
		all[name] = value
	}
	return all
}

func FuzzMachines(f *testing.F) {
	f.Add([]byte("a:2\nb user=x\n"))
	f.Add([]byte("# c\n[::1]:3 binding=user:0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		hosts, err := machines(data)
		if (err == nil) != (len(hosts) > 0) {
			t.Fatalf("%v, %v", hosts, err)
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("-n 1 a\n: b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		words, err := configWords(data)
		if err != nil {
			return
		}
		for i, w := range words {
			if w == "" || strings.ContainsAny(w, "\n ") || i > 0 && i < len(words)-1 && w == "" {
				t.Fatalf("%q", words)
			}
		}
	})
}

func FuzzBinding(f *testing.F) {
	f.Add("user:0+2,1")
	f.Add("core:2")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := ParseBinding(s)
		if err != nil || b == nil || b.Ignore {
			return
		}
		if b.Lists == nil && b.Each < 1 {
			t.Fatalf("%q: %+v", s, b)
		}
	})
}
