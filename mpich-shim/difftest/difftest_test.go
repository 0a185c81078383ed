package difftest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	hydra = "/usr/bin/mpiexec.hydra"
	// lineLimit is how long a line may take, on a machine that does more.
	lineLimit = 60 * time.Second
	// buildLimit is for the two programs that the test makes.
	buildLimit = 5 * time.Minute
	// tries is how often Hydra is asked before it counts that the two differ.
	tries = 10
	// hangs is how long Hydra is waited for where it is known to hang.
	hangs = 3 * time.Second
)

// tools are the two mpiexecs, each alone in a folder, and the program ends.
type tools struct{ theirs, ours, ends string }

func build(t *testing.T) tools {
	t.Helper()
	if _, err := os.Stat(hydra); err != nil {
		t.Fatalf("%v: apt install mpich", err)
	}
	dir := t.TempDir()
	made := tools{filepath.Join(dir, "theirs"), filepath.Join(dir, "ours"), filepath.Join(dir, "ends")}
	for _, d := range []string{made.theirs, made.ours} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// By a link Hydra would look for its helpers beside the link.
	if err := os.WriteFile(made.theirs+"/mpiexec", []byte("#!/bin/sh\nexec "+hydra+` "$@"`+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), buildLimit)
	defer cancel()
	program := filepath.Join(dir, "mpirun-sf")
	for _, args := range [][]string{
		{"go", "build", "-o", program, "github.com/mpirun-sf/mpirun-sf/mpirun-sf"},
		{"mpicc.mpich", "-O1", "-o", made.ends, "testdata/ends.c"},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if err := os.Symlink(program, made.ours+"/mpiexec"); err != nil {
		t.Fatal(err)
	}
	return made
}

func TestHydra(t *testing.T) {
	made := build(t)
	if n := len(table); n < 60 {
		t.Errorf("the table has %d lines", n)
	}
	// Beside each other, for most of what they take is waiting.
	for _, r := range table {
		t.Run(r.line, func(t *testing.T) {
			t.Parallel()
			theirs, ours := run(t, made, made.theirs, r), run(t, made, made.ours, r)
			if r.why == "" {
				// On a busy machine Hydra itself fails now and then, in its own proxy.
				for n := 1; ours != theirs && n < tries; n++ {
					theirs = run(t, made, made.theirs, r)
				}
				if ours != theirs {
					t.Errorf("Hydra: %+v\nours:  %+v", theirs, ours)
				}
				return
			}
			if ours == theirs && !r.sometimes {
				t.Errorf("they do not differ any more, and were to: %s", r.why)
			}
			want := *r.ours
			want.stdout = hostWord.ReplaceAllString(want.stdout, hostName(t))
			if ours != want {
				t.Errorf("ours: %+v\nwant: %+v", ours, want)
			}
		})
	}
}

// processNumber is in the banners.
var processNumber = regexp.MustCompile(`PID \d+`)

// run runs a line with the mpiexec of a folder.
func run(t *testing.T, made tools, folder string, r row) outcome {
	t.Helper()
	host, dir := hostName(t), t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "HOST", host)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(made.ends, filepath.Join(dir, "ends")); err != nil {
		t.Fatal(err)
	}
	limit := lineLimit
	if folder == made.theirs && r.why != "" {
		limit = hangs
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", hostWord.ReplaceAllString(r.line, host))
	cmd.Dir = dir
	cmd.Env = environment(folder, dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Run() // its state says all
	if ctx.Err() != nil {
		if limit == hangs {
			return outcome{status: -1}
		}
		t.Fatalf("%s took more than %v; stdout %q, stderr %q", folder, limit, out.String(), errs.String())
	}
	o := outcome{stdout: lines(processNumber.ReplaceAllString(out.String(), "PID"))}
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		o.status = 128 + int(status.Signal())
	} else {
		o.status = status.ExitStatus()
	}
	var ranks strings.Builder
	for line := range strings.Lines(errs.String()) {
		if strings.HasPrefix(line, "[mpiexec@") || strings.HasPrefix(line, "[proxy:") {
			o.said = true
		} else {
			ranks.WriteString(line)
		}
	}
	o.ranks = lines(ranks.String())
	return o
}

func hostName(t *testing.T) string {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// hostWord stands for this machine's name.
var hostWord = regexp.MustCompile(`\bHOST\b`)

// environment is what both find in theirs.
func environment(folder, home string) []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		for _, prefix := range []string{"HYDRA_", "MPIEXEC_", "MPIRUN_SF_", "PMI_", "MPIR_", "PATH=", "HOME=", "A=", "B="} {
			if strings.HasPrefix(e, prefix) {
				return true
			}
		}
		return false
	})
	return append(env, "MPIRUN_SF_NO_CLONE=1", "HOME="+home, fmt.Sprintf("PATH=%s:/usr/local/bin:/usr/bin:/bin", folder))
}

// lines sorts a text by lines.
func lines(s string) string {
	if s == "" {
		return ""
	}
	all := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	slices.Sort(all)
	end := ""
	if strings.HasSuffix(s, "\n") {
		end = "\n"
	}
	return strings.Join(all, "\n") + end
}
