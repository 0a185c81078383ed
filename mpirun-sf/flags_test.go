package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

// parse is what the launcher makes of a command line.
func parse(t *testing.T, args ...string) (o options, err error) {
	t.Helper()
	app := launcherApp()
	app.Action = func(c *cli.Context) (err error) {
		o, err = parseOptions(c)
		return err
	}
	err = app.Run(normalise(app.Flags, append([]string{"mpirun-sf"}, args...)))
	return o, err
}

func TestOptions(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for line, check := range map[string]func(o options) bool{
		"./a":                          func(o options) bool { return o.np == 1 && o.ppn == 1 && o.memory == 512<<20 && o.dir == wd },
		"-np 4 ./a":                    func(o options) bool { return o.np == 4 },
		"--np 4 ./a":                   func(o options) bool { return o.np == 4 },
		"-n 4 ./a":                     func(o options) bool { return o.np == 4 },
		"-np=4 ./a":                    func(o options) bool { return o.np == 4 },
		"--n=4 ./a":                    func(o options) bool { return o.np == 4 },
		"-np 2 -n 4 ./a":               func(o options) bool { return o.np == 4 },
		"-np 4 -ppn 2 ./a":             func(o options) bool { return o.ppn == 2 },
		"-np 4 -ppn 9 ./a":             func(o options) bool { return o.ppn == 4 },
		"-memory 2G ./a":               func(o options) bool { return o.memory == 2<<30 },
		"--memory 2G ./a":              func(o options) bool { return o.memory == 2<<30 },
		"--window 4K ./a":              func(o options) bool { return o.window == 4096 },
		"-start-timeout 90s ./a":       func(o options) bool { return o.startLimit == 90*time.Second },
		"-l ./a":                       func(o options) bool { return o.label },
		"-prepend-rank ./a":            func(o options) bool { return o.label },
		"--parent-ranks ./a":           func(o options) bool { return o.parentRanks && slices.Equal(o.given, []string{"parent-ranks"}) },
		"--strict --oversubscribe ./a": func(o options) bool { return o.strict && o.oversubscribe },
		"--accel tcg ./a":              func(o options) bool { return o.accel == "tcg" },
		"./a -h":                       func(o options) bool { return o.hypervisor == "qemu" },
		"--hypervisor auto ./a":        func(o options) bool { return o.hypervisor == "qemu" },
		"--hypervisor qemu ./a":        func(o options) bool { return o.hypervisor == "qemu" },
		"--hypervisor xen ./a":         func(o options) bool { return o.hypervisor == "xen" },
		"--hypervisor xen-pv ./a":      func(o options) bool { return o.hypervisor == "xen-pv" },
		"-wdir / ./a":                  func(o options) bool { return o.dir == "/" },
		"-wdir .. ./a":                 func(o options) bool { return o.dir == filepath.Dir(wd) },
		"--share " + dir + " ./a":      func(o options) bool { return slices.Equal(o.shares, []shareOption{{dir, false}}) },
		"--share / --share " + dir + ":ro ./a": func(o options) bool {
			return slices.Equal(o.shares, []shareOption{{"/", false}, {dir, true}})
		},
		"-env A 1 -env B x,y ./a": func(o options) bool { return slices.Equal(o.env, []string{"A=1", "B=x,y"}) },
		"-env A 1 -genv B 2 ./a":  func(o options) bool { return slices.Equal(o.env, []string{"A=1", "B=2"}) },
		"-env A=1 ./a":            func(o options) bool { return slices.Equal(o.env, []string{"A=1"}) },
		"-env=A=1 ./a":            func(o options) bool { return slices.Equal(o.env, []string{"A=1"}) },
		"-env A -v ./a": func(o options) bool {
			return slices.Equal(o.env, []string{"A=-v"}) && slices.Equal(o.argv, []string{"./a"})
		},
		"-env A b=c ./a":                 func(o options) bool { return slices.Equal(o.env, []string{"A=b=c"}) },
		"-np 4 ./a --prog-flag -v":       func(o options) bool { return slices.Equal(o.argv, []string{"./a", "--prog-flag", "-v"}) },
		"-np 4 -- ./a -np 2":             func(o options) bool { return o.np == 4 && slices.Equal(o.argv, []string{"./a", "-np", "2"}) },
		"./a -- -np 2":                   func(o options) bool { return o.np == 1 && slices.Equal(o.argv, []string{"./a", "--", "-np", "2"}) },
		"-np 4 a -env A 1 -h --version":  func(o options) bool { return len(o.argv) == 6 && len(o.env) == 0 },
		"-- doctor":                      func(o options) bool { return slices.Equal(o.argv, []string{"doctor"}) },
		"-np 2 doctor":                   func(o options) bool { return slices.Equal(o.argv, []string{"doctor"}) },
		"-l=false ./a":                   func(o options) bool { return !o.label },
		"--image disk.qcow2 ./a":         func(o options) bool { return o.image == "disk.qcow2" },
		"--log-format text ./a":          func(o options) bool { return tui.json == nil },
		"-n 3 ./a -n 5 --memory 1M -x y": func(o options) bool { return o.np == 3 && len(o.argv) == 7 },
	} {
		o, err := parse(t, strings.Fields(line)...)
		if err != nil {
			t.Errorf("%s: %v", line, err)
		} else if !check(o) {
			t.Errorf("%s: made %+v", line, o)
		}
	}
}

func TestLevels(t *testing.T) {
	defer func(l level) { tui.level = l }(tui.level)
	for line, want := range map[string]level{"./a": normal, "-v ./a": verbose, "--verbose ./a": verbose, "-q ./a": quiet, "-v -q ./a": quiet, "./a -v": normal} {
		tui.level = normal
		if _, err := parse(t, strings.Fields(line)...); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		if tui.level != want {
			t.Errorf("%s: level %d, want %d", line, tui.level, want)
		}
	}
}

// An argument that is empty or holds spaces stays one.
func TestOddArguments(t *testing.T) {
	want := []string{"./a", "", "a b", "-", "--"}
	o, err := parse(t, append([]string{"-env", "A", "", "-env", "B", "x y"}, want...)...)
	if err != nil || !slices.Equal(o.argv, want) || !slices.Equal(o.env, []string{"A=", "B=x y"}) {
		t.Errorf("made %+v (%v)", o, err)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"512": 512 << 20, "512M": 512 << 20, "512m": 512 << 20, "512MB": 512 << 20, "4K": 4 << 10, "2g": 2 << 30, "1T": 1 << 40,
		"0": 0, "0K": 0, "1048576T": 1 << 60,
		"": -1, "M": -1, "B": -1, "512B": -1, "512KK": -1, "5G1": -1, "1.5G": -1, "-1G": -1, "1 G": -1, "x": -1, "1048577T": -1, "99999999999999999999": -1,
	} {
		got, err := parseSize(in)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q is %d (%v), want %d", in, got, err, want)
		}
	}
}

func TestParseShare(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	if err := os.Mkdir("a,b", 0o755); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]shareOption{
		dir: {dir, false}, dir + "/": {dir, false}, dir + ":ro": {dir, true}, dir + ":rw": {dir, false},
		".": {dir, false}, "a,b:ro": {filepath.Join(dir, "a,b"), true}, "./a,b/..": {dir, false},
		"": {}, ":ro": {}, ":rw": {}, "nothing": {}, file: {}, dir + ":rx": {},
	} {
		got, err := parseShare(in)
		if got != want || (err == nil) != (want.dir != "") {
			t.Errorf("%q is %+v (%v), want %+v", in, got, err, want)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "--share ") {
			t.Errorf("%q: the error does not name the option: %v", in, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"512M", "4KB", "", "-1", "1T", "99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && (n < 0 || n > 1<<60) {
			t.Errorf("%q is %d", s, n)
		}
	})
}

func FuzzParseShare(f *testing.F) {
	for _, s := range []string{".", "/:ro", ":ro", "a:rw", "..", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if o, err := parseShare(s); err == nil && !filepath.IsAbs(o.dir) {
			t.Errorf("%q is %+v", s, o)
		}
	})
}

// Whatever comes before it: from the program on, arguments are the program's.
func FuzzNormalise(f *testing.F) {
	for _, s := range []string{"-np 4", "-env A 1", "-env", "--", "-l", "-share", "-x -y=z", "-", "-- -n"} {
		f.Add(s)
	}
	flags := launcherApp().Flags
	f.Fuzz(func(t *testing.T, s string) {
		args := append([]string{"mpirun-sf"}, strings.Split(s, " ")...)
		before := slices.Clone(args)
		out := normalise(flags, args)
		if !slices.Equal(args, before) {
			t.Errorf("%q was changed to %q", before, args)
		}
		i := slices.Index(out, "--")
		if i < 0 {
			return // options only
		}
		rest := out[i+1:]
		if len(rest) > len(args) || !slices.Equal(rest, args[len(args)-len(rest):]) {
			t.Errorf("%q: the program is %q", args, rest)
		}
	})
}
