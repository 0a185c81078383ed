package mpichshim

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// System is what Parse may look at beside the command line.
type System struct {
	LookupEnv func(name string) (string, bool)
	ReadFile  func(name string) ([]byte, error)
	Dir       string // the working directory, absolute
}

// maxWords bounds a command line with its files, beyond what a kernel takes.
const maxWords = 1 << 20

// Parse reads a command line, without the name of the program that was called.
// Errors are one line, and the exit status that goes with them is 255.
func Parse(args []string, sys System) (*Command, error) {
	p := &parser{sys: sys, c: &Command{
		OutputFrom: -1, AutoCleanup: true, Universe: UniverseInfinite, Propagate: true, GPUs: -1,
	}, said: map[string]bool{}, ofApp: map[string]bool{}}
	if s, ok := singleton(args); ok {
		p.c.Singleton = s
		return p.c, p.variables() // which may name hosts
	}
	for _, read := range []func() error{
		func() error { return p.words(args) }, p.file, p.variables, p.finish,
	} {
		if err := read(); err != nil {
			return nil, err
		}
		if p.c.Show != "" {
			return p.c, nil
		}
	}
	return p.c, nil
}

// parser is a command line under way.
type parser struct {
	sys    System
	c      *Command
	said   map[string]bool // settings that are made, by the option's first name
	ofApp  map[string]bool // the same, of the program that words are about
	config string          // -configfile
	inFile bool            // what the command line has set stays
}

// app is the program that words are about.
func (p *parser) app() *App {
	if len(p.c.Apps) == 0 {
		p.c.Apps = []App{{}}
	}
	return &p.c.Apps[len(p.c.Apps)-1]
}

// words reads options and programs.
func (p *parser) words(args []string) error {
	for len(args) > 0 && p.c.Show == "" {
		var err error
		if strings.HasPrefix(args[0], "-") {
			args, err = p.option(args)
		} else {
			args, err = p.program(args)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// program reads a program with its arguments, up to a ":".
func (p *parser) program(args []string) (rest []string, err error) {
	app := p.app()
	for i, a := range args {
		if a == ":" {
			if len(app.Argv) == 0 {
				return nil, errors.New(`no program before ":"; mpiexec -h shows how to give one`)
			}
			p.c.Apps = append(p.c.Apps, App{})
			clear(p.ofApp)
			return args[i+1:], nil
		}
		app.Argv = append(app.Argv, a)
	}
	return nil, nil
}

// option reads one option with its value: -name value, --name value, -name=value.
func (p *parser) option(args []string) (rest []string, err error) {
	name, value, joined := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
	rest = args[1:]
	if joined {
		rest = append([]string{value}, rest...)
	}
	o := findOption(name)
	if o == nil {
		return nil, fmt.Errorf("unrecognized argument %s; mpiexec -h shows those that there are", args[0])
	}
	if len(rest) > 0 && (rest[0] == "-h" || rest[0] == "-help" || rest[0] == "--help") && o.first() != "h" {
		p.c.Show = o.help()
		return nil, nil
	}
	var values []string
	if o.value != "" {
		if len(rest) == 0 {
			return nil, fmt.Errorf("-%s: its value is missing: %s; mpiexec -%s -h says more", name, o.use(), name)
		}
		values, rest = rest[:1], rest[1:]
		if o.pair && !strings.Contains(values[0], "=") {
			if len(rest) == 0 {
				return nil, fmt.Errorf("-%s %s: the variable's value is missing: %s", name, values[0], o.use())
			}
			values, rest = []string{values[0] + "=" + rest[0]}, rest[1:]
		}
	}
	said, set := p.said, o.setting()
	if o.local {
		said = p.ofApp
	}
	switch {
	case o.repeats:
	case said[set] && p.inFile && !o.local:
		return rest, nil
	case said[set]:
		return nil, fmt.Errorf("-%s: that was set before; give it once", name)
	}
	if !o.repeats {
		said[set] = true
	}
	p.c.given = append(p.c.given, o.first())
	if err := o.set(p, strings.ToLower(name), strings.Join(values, "")); err != nil {
		return nil, fmt.Errorf("-%s: %w", name, err)
	}
	return rest, nil
}

// file reads the file of options, if there is one.
func (p *parser) file() error {
	names := []string{p.config}
	if p.config == "" {
		names = nil
		if name, ok := p.sys.LookupEnv("HYDRA_CONFIG_FILE"); ok {
			names = append(names, name)
		}
		if home, ok := p.sys.LookupEnv("HOME"); ok {
			names = append(names, home+"/.mpiexec.hydra.conf")
		}
		names = append(names, "/etc/mpiexec.hydra.conf")
	}
	for _, name := range names {
		data, err := p.sys.ReadFile(name)
		if p.config == "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read options from a file: %w", err)
		}
		words, err := configWords(data)
		if err != nil {
			return fmt.Errorf("read options from %s: %w", name, err)
		}
		p.inFile = true
		defer func() { p.inFile = false }()
		if err := p.words(words); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	return nil
}

// variables reads what stands for options that were not given.
func (p *parser) variables() error {
	if name, ok := p.sys.LookupEnv("HYDRA_HOST_FILE"); ok && len(p.c.Hosts) == 0 {
		if err := p.hostFile(name); err != nil {
			return fmt.Errorf("HYDRA_HOST_FILE: %w", err)
		}
	}
	first := func(to *string, names ...string) {
		for _, name := range names {
			if v, ok := p.sys.LookupEnv(name); ok && *to == "" {
				*to = v
			}
		}
	}
	first(&p.c.Interface, "HYDRA_IFACE")
	first(&p.c.Launcher, "HYDRA_LAUNCHER", "HYDRA_BOOTSTRAP")
	first(&p.c.Manager, "HYDRA_RMK")
	first(&p.c.Binding, "HYDRA_BINDING")
	first(&p.c.Mapping, "HYDRA_MAPPING")
	if v, ok := p.sys.LookupEnv("HYDRA_ENV"); ok && p.c.Inherit.Mode == InheritUnset {
		p.c.Inherit.Mode = InheritNone
		if v == "all" {
			p.c.Inherit.Mode = InheritAll
		}
	}
	for name, to := range map[string]*bool{"HYDRA_DEBUG": &p.c.Verbose, "MPIRUN_SF_NO_CLONE": &p.c.NoClone} {
		if v, ok := p.sys.LookupEnv(name); ok && !*to {
			var err error
			if *to, err = truth(v); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	forced := p.said["propagation"] && p.c.Propagate
	if v, ok := p.sys.LookupEnv("HYDRA_HOSTNAME_PROPAGATION"); ok && !p.said["propagation"] {
		var err error
		if p.c.Propagate, err = truth(v); err != nil {
			return fmt.Errorf("HYDRA_HOSTNAME_PROPAGATION: %w", err)
		}
		forced = p.c.Propagate
	}
	if p.c.Interface != "" {
		if forced {
			return errors.New("-iface and -enable-hostname-propagation: an interface has no host name; give one of them")
		}
		p.c.Propagate = false
	}
	if v, ok := p.sys.LookupEnv("MPIEXEC_TIMEOUT"); ok {
		n, err := strconv.Atoi(strings.TrimSpace(v))
		if err != nil || int64(n) > int64(1<<62)/int64(time.Second) {
			return fmt.Errorf("MPIEXEC_TIMEOUT: %q is not a number of seconds", v)
		}
		p.c.Timeout = max(0, time.Duration(n)*time.Second)
	}
	return nil
}

// finish checks what can only be known at the end.
func (p *parser) finish() error {
	for i := range p.c.Apps {
		a := &p.c.Apps[i]
		if len(a.Argv) == 0 {
			return errors.New("missing executable; for example: mpiexec -n 4 ./hello (mpiexec -h shows the options)")
		}
		switch {
		case a.Dir == "":
			a.Dir = p.sys.Dir
		case !filepath.IsAbs(a.Dir):
			a.Dir = filepath.Join(p.sys.Dir, a.Dir)
		}
	}
	if len(p.c.Apps) == 0 {
		return errors.New("missing executable; for example: mpiexec -n 4 ./hello (mpiexec -h shows the options)")
	}
	for _, known := range []struct {
		option, name string
		names        []string
	}{
		{"-launcher", p.c.Launcher, launchers},
		{"-rmk", p.c.Manager, managers},
	} {
		if err := oneOf(known.name, known.names); err != nil {
			return fmt.Errorf("%s: %w", known.option, err)
		}
	}
	return nil
}

// singleton recognises what a process says that was started without mpiexec.
func singleton(args []string) (*Singleton, bool) {
	if len(args) != 5 || args[0] != "-pmi_args" {
		return nil, false
	}
	pid, err := strconv.Atoi(args[4])
	return &Singleton{Port: args[1], Interface: args[2], Key: args[3], PID: pid}, err == nil
}

// truth reads a variable that is on or off.
func truth(s string) (bool, error) {
	switch s {
	case "yes", "YES", "true", "TRUE", "on", "ON", "1":
		return true, nil
	case "no", "NO", "false", "FALSE", "off", "OFF", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither yes nor no", s)
}
