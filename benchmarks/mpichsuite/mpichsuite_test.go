package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
)

func TestTestlist(t *testing.T) {
	const list = `# of a folder
plain
two 4   # with a comment

session_mult_init 4 arg=5
connect 5 env=A=20 env=B=C=D
die 4 env=FT=1 mpiexecarg=-disable-auto-cleanup timeLimit=10 strict=false resultTest=TestStatusNoErrors xfail=ticket2237
`
	got, err := readTestlist("errors/x", strings.NewReader(list))
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{Folder: "errors/x", Program: "plain", Ranks: 2, Limit: 3 * time.Minute},
		{Folder: "errors/x", Program: "two", Ranks: 4, Limit: 3 * time.Minute},
		{Folder: "errors/x", Program: "session_mult_init", Ranks: 4, Args: []string{"5"}, Limit: 3 * time.Minute},
		{Folder: "errors/x", Program: "connect", Ranks: 5, Env: []string{"A=20", "B=C=D"}, Limit: 3 * time.Minute},
		{
			Folder: "errors/x", Program: "die", Ranks: 4, Env: []string{"FT=1"}, Options: []string{"-disable-auto-cleanup"},
			Rule: "TestStatusNoErrors", Limit: 10 * time.Second, ExpectedToFail: "ticket2237",
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if name := got[2].name(); name != "errors/x/session_mult_init 4 5" {
		t.Errorf("its name is %q", name)
	}
}

func TestBadTestlists(t *testing.T) {
	for line, says := range map[string]string{
		"a b":                  "not a number of ranks",
		"a 0":                  "not a number of ranks",
		"a 9999":               "not a number of ranks",
		"../a 2":               "no program",
		"a 2 timeLimit=x":      "number of seconds",
		"a 2 resultTest=Other": "no rule",
		"a 2 env=A":            "not a variable",
		"a 2 new=1":            "new= is unknown",
		"a 2 word":             "not name=value",
		"a 2 xfail=":           "not name=value",
	} {
		if _, err := readTestlist("x", strings.NewReader("ok 1\n"+line)); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func FuzzTestlist(f *testing.F) {
	f.Add("spawn1 1\n")
	f.Add("die 4 env=A=1 mpiexecarg=-x timeLimit=10 resultTest=TestStatus xfail=t1 # why")
	f.Add("a 2 env==\n\x00")
	f.Fuzz(func(t *testing.T, list string) {
		entries, err := readTestlist("f", strings.NewReader(list))
		if err != nil {
			return
		}
		for _, e := range entries {
			if e.Ranks < 1 || e.Ranks > mostRanks || e.Limit <= 0 || rules[e.Rule] == nil || strings.ContainsAny(e.Program, "/\x00 ") {
				t.Errorf("%q was taken for %+v", list, e)
			}
		}
	})
}

// What runtests makes of these was read in its source.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		rule   rule
		lines  []string
		status int
		wrong  string
	}{
		{"", []string{" No Errors"}, 0, ""},
		{"", []string{"No errors"}, 0, ""},
		{"", []string{"Test Passed", " No Errors"}, 0, ""},
		{"", []string{" No Errors", " No Errors"}, 0, `it wrote " No Errors"`},
		{"", []string{" No Errors", "warning"}, 0, `it wrote "warning"`},
		{"", []string{" No Errors"}, 3, "exit status 3"},
		{"", nil, 0, "it ended without No Errors"},
		{"", nil, 1, "it ended without No Errors, exit status 1"},
		{"TestStatus", []string{"anything"}, 1, ""},
		{"TestStatus", nil, 0, "exit status 0, where another is wanted"},
		{"TestErrFatal", []string{"anything"}, 1, ""},
		{"TestErrFatal", nil, 0, "exit status 0, where another is wanted"},
		{"TestStatusNoErrors", []string{" No Errors", " No Errors"}, 9, ""},
		{"TestStatusNoErrors", []string{" No Errors"}, 0, "exit status 0, where another is wanted"},
		{"TestStatusNoErrors", []string{"BAD"}, 9, `it wrote "BAD"`},
		{"TestStatusNoErrors", nil, 9, "it ended without No Errors, exit status 9"},
	} {
		if got := rules[c.rule](c.lines, c.status); got != c.wrong {
			t.Errorf("%q with %q and status %d: %q, not %q", c.rule, c.lines, c.status, got, c.wrong)
		}
	}
}

// fakeSuite has a folder with a launcher that is a script.
func fakeSuite(t *testing.T, launcher string) (*mpich.Build, side) {
	t.Helper()
	of := &mpich.Build{Prefix: t.TempDir(), Tests: t.TempDir()}
	path := filepath.Join(of.Prefix, "launcher")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+launcher), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"init", mpich.BindingFolder} {
		if err := os.MkdirAll(of.Folder(f), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return of, side{name: "fake", command: []string{path, "-q"}, ranks: "-np", own: "fake: ", options: true, stretch: 1}
}

func TestRunOfAnEntry(t *testing.T) {
	of, s := fakeSuite(t, `echo "$@ $X $Y $MPIEXEC_TIMEOUT" >args; pwd >>args; echo "fake: hello" >&2; echo " No Errors"`)
	e := entry{Folder: "init", Program: "p", Ranks: 3, Args: []string{"a"}, Env: []string{"X=y"}, Options: []string{"-o"}, Limit: time.Minute}
	s.env = []string{"X=other", "Y=z"}
	o, err := s.run(t.Context(), of, e, 2)
	if err != nil || !o.Passed || o.Runs != 2 || o.Failed != 0 {
		t.Fatalf("%+v, %v", o, err)
	}
	args, err := os.ReadFile(filepath.Join(of.Folder("init"), "args"))
	if want := "-q -np 3 -o ./p a y z 60\n" + of.Folder("init") + "\n"; err != nil || string(args) != want {
		t.Errorf("the launcher was given %q, %v", args, err)
	}
}

func TestRunThatFails(t *testing.T) {
	of, s := fakeSuite(t, `echo " No Errors"; kill -TERM $$`)
	o, err := s.run(t.Context(), of, entry{Folder: "init", Program: "p", Ranks: 1, Limit: time.Minute}, 1)
	if err != nil || o.Passed || o.Wrong != "exit status 143" {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestRunIsStoppedWithItsContext(t *testing.T) {
	of, s := fakeSuite(t, `exec sleep 100`)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := s.run(ctx, of, entry{Folder: "init", Program: "p", Ranks: 1, Limit: time.Minute}, 1); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("it ended with %v after %v", err, time.Since(began))
	}
}

func TestBindingScriptRunsTheSidesLauncher(t *testing.T) {
	of, s := fakeSuite(t, `echo "$@"`)
	const script = "for i in 1 2 ; do\n\t/build/bin/mpiexec -bind-to $i -n 16 ./dummy | sort\ndone\n"
	if err := os.WriteFile(filepath.Join(of.Folder(mpich.BindingFolder), bindingProgram), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := s.bindingScript(of)
	if want := strings.Replace(script, "/build/bin/mpiexec", s.command[0]+" -q", 1); err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
}

func TestBindingScriptEndsWhenItIsDecided(t *testing.T) {
	of, s := fakeSuite(t, `echo run >>runs; echo wrong; exec >/dev/null 2>&1; sleep 60`)
	const script = "for i in 1 2 ; do\n\t/build/bin/mpiexec -bind-to $i -n 16 ./dummy\ndone\n"
	if err := os.WriteFile(filepath.Join(of.Folder(mpich.BindingFolder), bindingProgram), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	o, err := s.run(t.Context(), of, bindings(), 1)
	if err != nil || o.Passed || o.Wrong != `it wrote "wrong"` || time.Since(began) > 50*time.Second {
		t.Errorf("%+v, %v after %v", o, err, time.Since(began))
	}
	if runs, err := os.ReadFile(filepath.Join(of.Folder(mpich.BindingFolder), "runs")); string(runs) != "run\n" {
		t.Errorf("it launched %q, %v", runs, err)
	}
}

func TestOutputIsCapped(t *testing.T) {
	c := &capped{limit: 5}
	for range 3 {
		if n, err := io.Copy(c, strings.NewReader("abc")); n != 3 || err != nil {
			t.Fatal(n, err)
		}
	}
	if c.kept.String() != "abcab" {
		t.Errorf("%q", c.kept.String())
	}
}

func TestResultsOfOtherEntriesAndSidesStay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results", "x.json")
	entries := []entry{{Folder: "a", Program: "x", Ranks: 1}, {Folder: "a", Program: "y", Ranks: 2, ExpectedToFail: "ticket1"}, {Folder: "b", Program: "z", Ranks: 1}}
	good, bad := outcome{Passed: true, Runs: 1}, outcome{Wrong: "it wrote \"a|b\"", Runs: 3, Failed: 1}
	r, err := loadResults(path, entries)
	if err != nil {
		t.Fatal(err)
	}
	r.add("a/x 1", "hydra", good)
	r.add("a/y 2", "hydra", good)
	r.add("b/z 1", "hydra", bad)
	if err := r.save(path); err != nil {
		t.Fatal(err)
	}
	if r, err = loadResults(path, entries); err != nil {
		t.Fatal(err)
	}
	r.add("a/x 1", "clones", good)
	r.add("a/y 2", "clones", bad)
	if both, hydra, clones := r.passed("hydra", "clones", func(result) bool { return true }); both != 2 || hydra != 2 || clones != 1 {
		t.Errorf("of %d entries %d and %d", both, hydra, clones)
	}

	doc := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(doc, []byte("# By hand\n\n## Results\nstale\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	all := []side{{name: "hydra", about: "here"}, {name: "clones", about: "there"}, {name: "other", about: "left out"}}
	if err := r.document(doc, all); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for _, want := range []string{
		"# By hand", "- **hydra**: here", "| `a` | 2 of 2 | 1 of 2 |", "| `b` | 0 of 1 | 0 of 0 |", "| all | 2 of 3 | 1 of 2 |",
		"| `a/y 2` (ticket1) | passes | 1 of 3 runs fail: it wrote \"a\\|b\" |", "| `b/z 1` | 1 of 3 runs fail: it wrote \"a\\|b\" | not run |",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the document has no line %q:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "stale") || strings.Contains(string(text), "left out") {
		t.Errorf("the document has what it should not have:\n%s", text)
	}
}
