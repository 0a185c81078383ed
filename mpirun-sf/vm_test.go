package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
)

// parseVM is what vm run makes of a command line.
func parseVM(t *testing.T, args ...string) (o vmOptions, err error) {
	t.Helper()
	app := commandsApp()
	run := app.Command("vm").Subcommands[0]
	run.Action = func(c *cli.Context) (err error) {
		o, err = parseVMOptions(c)
		return err
	}
	err = app.Run(normaliseVM(append([]string{"mpirun-sf", "vm", "run"}, args...)))
	return o, err
}

func TestVMOptions(t *testing.T) {
	dir := t.TempDir()
	hook := filepath.Join(dir, "hook")
	if err := os.WriteFile(hook, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for line, check := range map[string]func(o vmOptions) bool{
		"":                      func(o vmOptions) bool { return o.name == "parent" && o.memory == 1<<30 && len(o.argv) == 0 },
		"--cpus 3 --memory 2G":  func(o vmOptions) bool { return o.ppn == 3 && o.memory == 2<<30 },
		"--name build.1":        func(o vmOptions) bool { return o.name == "build.1" },
		"--free 2G":             func(o vmOptions) bool { return o.free == 2<<30 },
		"-env A 1 -env B=2 env": func(o vmOptions) bool { return slices.Equal(o.env, []string{"A=1", "B=2"}) && o.argv[0] == "env" },
		"-env A=1,2 -env B=":    func(o vmOptions) bool { return slices.Equal(o.env, []string{"A=1,2", "B="}) },
		"-wdir / ls":            func(o vmOptions) bool { return o.dirGiven && o.dir == "/" },
		"ls -l --name x":        func(o vmOptions) bool { return slices.Equal(o.argv, []string{"ls", "-l", "--name", "x"}) },
		"--cpus 1 -- ls -q":     func(o vmOptions) bool { return slices.Equal(o.argv, []string{"ls", "-q"}) && tui.level == normal },
		"--with " + dir + " --with /etc --hook " + hook: func(o vmOptions) bool {
			return slices.Equal(o.with, []string{dir, "/etc"}) && slices.Equal(o.hooks, []string{hook})
		},
		"--share " + dir + ":ro": func(o vmOptions) bool { return slices.Equal(o.shares, []shareOption{{dir, true}}) },
	} {
		o, err := parseVM(t, strings.Fields(line)...)
		if err != nil || !check(o) {
			t.Errorf("%s: made %+v (%v)", line, o, err)
		}
	}
	for line, says := range map[string]string{
		"--name ../x":    "--name ../x: it is letters",
		"--name ..":      "--name ..: it is letters",
		"--name clone-1": "--name clone-1: it is letters",
		"--cpus 0":       "--cpus 0: a machine has",
		"--memory 1M":    "--memory 1M: it is a size",
		"--free much":    "--free much: it is a size",
		"--with nothing": "--with nothing: there is no such",
		"--hook nothing": "--hook nothing: there is no such",
		"--hook " + dir:  "--hook " + dir + ": it is not an executable file",
	} {
		if _, err := parseVM(t, strings.Fields(line)...); err == nil || !strings.HasPrefix(err.Error(), says) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestTakeVM(t *testing.T) {
	for line, want := range map[string]string{
		"t1": "parent t1", "--vm a t1 2": "a t1 2", "t1 --vm a 2": "a t1 2", "t1 2 --vm=a": "a t1 2", "t1 --vm": "parent t1 --vm",
	} {
		args := strings.Fields(line)
		name, rest := takeVM(args)
		if got := strings.Join(append([]string{name}, rest...), " "); got != want || strings.Join(args, " ") != line {
			t.Errorf("%s is %s", line, got)
		}
	}
}

// A name is one machine's at a time, and free again however its launcher ended.
func TestVMNames(t *testing.T) {
	defer func(f string) { vmFolder = f }(vmFolder)
	vmFolder = filepath.Join(t.TempDir(), "vm")
	v := vmName{"a"}
	if v.runs() || len(runningVMs()) != 0 {
		t.Error("there is a machine already")
	}
	for range 2 {
		release, err := v.lock()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.lock(); err == nil || !strings.Contains(err.Error(), "runs already") {
			t.Errorf("the name could be taken twice: %v", err)
		}
		if got := runningVMs(); !slices.Equal(got, []vmName{v}) {
			t.Errorf("running: %v", got)
		}
		release()
		if v.runs() {
			t.Error("it is not free")
		}
	}
	// What a killed launcher leaves is no machine.
	if err := os.MkdirAll(v.folder(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.folder(), "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if v.runs() {
		t.Error("a folder alone is a machine")
	}
	if _, _, err := findMachine(t.Context(), "a"); err == nil {
		t.Error("it was found")
	}
	if release, err := v.lock(); err != nil {
		t.Error(err)
	} else {
		release()
	}
}

// Inside a machine, options that were decided when it was started are said to
// be without meaning, or wrong.
func TestInsideOptions(t *testing.T) {
	defer func(l level) { tui.level = l }(tui.level)
	for line, want := range map[string]struct {
		slots int
		says  string
	}{
		"-np 4":                            {0, ""},
		"-np 4 --parent-ranks":             {1, ""},
		"-np 4 -ppn 2 --parent-ranks":      {2, ""},
		"-np 9 -ppn 8 --parent-ranks":      {4, ""},
		"--parent-ranks":                   {1, ""},
		"-np 4 --memory 2G --accel tcg":    {0, ""},
		"-np 4 --image disk.img":           {0, "--image: inside a virtual machine"},
		"-np 4 --share /tmp":               {0, "--share: inside a virtual machine"},
		"-np 4 -wdir /no/such/folder":      {0, "the working directory /no/such/folder does not exist"},
		"-q -np 2 --strict --window 4K -l": {0, ""},
	} {
		o, err := parse(t, append(strings.Fields(line), "/bin/true")...)
		if err != nil {
			t.Fatal(err)
		}
		tui.level = quiet
		j := &inside{job: newJob(o), self: launch.Self{IP: netip.MustParseAddr("10.0.0.1"), VCPUs: 4}}
		j.program = "/bin/true"
		err = j.check()
		if want.says == "" && err != nil || want.says != "" && (err == nil || !strings.HasPrefix(err.Error(), want.says)) {
			t.Errorf("%s: %v", line, err)
		}
		if j.slots != want.slots {
			t.Errorf("%s: %d ranks in the machine itself, want %d", line, j.slots, want.slots)
		}
	}
}

// Without an agent there is no machine, and with parent ranks no job then.
func TestOutside(t *testing.T) {
	t.Setenv("SF_SOCKET", filepath.Join(t.TempDir(), "none"))
	begin := time.Now()
	if _, ok := findVM(t.Context(), newJob(options{})); ok || time.Since(begin) > 5*time.Second {
		t.Error("a machine was found")
	}
	if err := (&host{job: newJob(options{parentRanks: true})}).check(); !errors.Is(err, errParentRanks) {
		t.Errorf("parent ranks on the host: %v", err)
	}
}
