package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Step is one program of a build.
type Step struct {
	Name    string // of its log, without .log
	Dir     string // where it runs
	Program string
	Args    []string
}

// Run runs steps one after the other, each with its output in a file in dir. An error ends with the last lines of that.
// progress is told of each.
func Run(ctx context.Context, dir string, steps []Step, progress func(format string, args ...any)) error {
	if err := need(map[string]string{"gcc": "gcc", "make": "make"}); err != nil {
		return err
	}
	for _, s := range steps {
		progress("%s", s.Name)
		if err := command(ctx, s.Dir, filepath.Join(dir, s.Name+".log"), s.Program, s.Args...); err != nil {
			return err
		}
	}
	return nil
}

// need looks for tools, whose packages it is given.
func need(tools map[string]string) error {
	for tool, pkg := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not there: apt install %s", tool, pkg)
		}
	}
	return nil
}

// command runs a program in dir with its output in a file, whose last lines an error has.
func command(ctx context.Context, dir, log, name string, args ...string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, f, f
	err = errors.Join(cmd.Run(), f.Close())
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	said, _ := os.ReadFile(log)
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	return fmt.Errorf("%s %s: %w; %s ends with:\n%s", name, strings.Join(args, " "), err, log, strings.Join(lines[max(0, len(lines)-5):], "\n"))
}
