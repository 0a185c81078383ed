package main

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
)

// entry is a line of a testlist: a program that is run, and what is expected of it.
type entry struct {
	Folder  string // below test/mpi: "errors/spawn"
	Program string
	Ranks   int
	Args    []string      // of the program
	Env     []string      // "NAME=VALUE"
	Options []string      // of mpiexec
	Rule    rule          // by which it is judged
	Limit   time.Duration // for which it may run
	// ExpectedToFail is why MPICH's own authors expect that it fails with their launcher, or "".
	ExpectedToFail string
}

// name tells entries of all folders apart.
func (e entry) name() string {
	name := fmt.Sprintf("%s/%s %d", e.Folder, e.Program, e.Ranks)
	for _, a := range e.Args {
		name += " " + a
	}
	return name
}

const (
	usualRanks = 2               // where a line has no number
	usualLimit = 3 * time.Minute // where a line has none
	mostRanks  = 64              // of a line that can be believed
)

var (
	word    = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
	program = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
)

// readTestlist reads the testlist of a folder. A line is
//
//	program [ranks [name=value ...]]
//
// and # begins a comment.
func readTestlist(folder string, r io.Reader) (entries []entry, err error) {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		e, err := readEntry(fields)
		if err != nil {
			return nil, fmt.Errorf("testlist of %s, line %d: %w", folder, n, err)
		}
		e.Folder = folder
		entries = append(entries, e)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("testlist of %s: %w", folder, err)
	}
	return entries, nil
}

func readEntry(fields []string) (entry, error) {
	e := entry{Program: fields[0], Ranks: usualRanks, Limit: usualLimit}
	if !program.MatchString(e.Program) {
		return e, fmt.Errorf("%q is no program of the folder", e.Program)
	}
	if len(fields) == 1 {
		return e, nil
	}
	var err error
	if e.Ranks, err = strconv.Atoi(fields[1]); err != nil || e.Ranks < 1 || e.Ranks > mostRanks {
		return e, fmt.Errorf("%q is not a number of ranks from 1 to %d", fields[1], mostRanks)
	}
	for _, field := range fields[2:] {
		name, value, ok := strings.Cut(field, "=")
		if !ok || value == "" {
			return e, fmt.Errorf("%q is not name=value", field)
		}
		switch name {
		case "arg":
			e.Args = append(e.Args, value)
		case "env":
			if n, _, ok := strings.Cut(value, "="); !ok || n == "" {
				return e, fmt.Errorf("env=%s is not a variable with a value", value)
			}
			e.Env = append(e.Env, value)
		case "mpiexecarg":
			e.Options = append(e.Options, value)
		case "resultTest":
			if e.Rule = rule(value); rules[e.Rule] == nil {
				return e, fmt.Errorf("resultTest=%s is no rule that runtests has", value)
			}
		case "timeLimit":
			seconds, err := strconv.Atoi(value)
			if err != nil || seconds < 1 || seconds > 3600 {
				return e, fmt.Errorf("timeLimit=%s is not a number of seconds up to an hour", value)
			}
			e.Limit = time.Duration(seconds) * time.Second
		case "xfail":
			if !word.MatchString(value) {
				return e, fmt.Errorf("xfail=%s is not the name of a ticket", value)
			}
			e.ExpectedToFail = value
		case "strict", "mpix", "lock", "mem":
			// They leave entries out on MPIs that are not MPICH, or on machines with less than 20 GB.
		default:
			return e, fmt.Errorf("%s= is unknown", name)
		}
	}
	return e, nil
}

// bindingProgram is the script of the folder that has no testlist.
const bindingProgram = "proc_binding.sh"

// bindingLine is where it runs the launcher.
var bindingLine = regexp.MustCompile(`(?m)^\s*(\S+) -bind-to `)

// bindings is the script as an entry. It runs the launcher 400 times.
func bindings() entry {
	return entry{Folder: mpich.BindingFolder, Program: bindingProgram, Ranks: 16, Limit: 10 * time.Minute}
}
