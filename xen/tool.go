package xen

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// inheritedFile is the path of the first of a command's extra files.
const inheritedFile = "/proc/self/fd/3"

// command is xl with arguments, to be run by runTool.
func (d *Driver) command(ctx context.Context, file *os.File, args ...string) *exec.Cmd {
	return d.process(ctx, d.tool, file, args...)
}

// process is a command that ends with ctx, and that the driver's owner lives as long as.
func (d *Driver) process(ctx context.Context, program string, file *os.File, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	if file != nil {
		cmd.ExtraFiles = []*os.File{file}
	}
	if d.owner != nil { // nobody takes a driver for dead whose last command still makes a domain
		cmd.ExtraFiles = append(cmd.ExtraFiles, d.owner.lock)
	}
	// Its own group, so that its helper ends with it, and no Ctrl-C of a terminal's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// runTool runs xl and returns what it prints. Its error says what xl complained of.
func (d *Driver) runTool(ctx context.Context, file *os.File, args ...string) (string, error) {
	var out, complaint bytes.Buffer
	cmd := d.command(ctx, file, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", toolError(ctx, args[0], err, complaint.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
}

// toolError makes one line of xl's many.
func toolError(ctx context.Context, verb string, err error, complaint []byte) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if said := complaintOf(complaint); said != "" {
		return fmt.Errorf("xl %s: %w (it says: %s)", verb, err, said)
	}
	return fmt.Errorf("xl %s: %w", verb, err)
}

// complaintOf finds the first error in what xl printed: the others follow from it.
func complaintOf(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, l := range lines {
		for _, mark := range []string{"libxl: error: ", "xc: error: ", "panic: "} {
			if _, said, ok := strings.Cut(l, mark); ok {
				return strings.TrimSpace(said)
			}
		}
	}
	return strings.TrimSpace(lines[len(lines)-1])
}
