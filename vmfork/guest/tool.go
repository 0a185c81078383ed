package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lookTool finds a program also where a user's PATH does not lead.
func lookTool(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// runTool runs a program of the machine in dir and returns its standard output.
// The error holds the last line that the program complained with. The program is
// killed with ctx, and by the kernel should this process die.
func runTool(ctx context.Context, dir, name string, args ...string) (string, error) {
	path, err := lookTool(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// The parent-death signal comes when the thread that forked ends, so the
	// thread must not end before the program.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s was stopped: %w", name, context.Cause(ctx))
	}
	if strings.Contains(stderr.String(), "No space left on device") {
		return "", fmt.Errorf("%s: %w", name, unix.ENOSPC)
	}
	return "", fmt.Errorf("%s: %s (%w)", name, lastLine(stderr.String(), stdout.String()), err)
}

// lastLine returns the last line of the first text that has one.
func lastLine(texts ...string) string {
	for _, t := range texts {
		if t = strings.TrimSpace(t); t != "" {
			return strings.TrimSpace(t[strings.LastIndexByte(t, '\n')+1:])
		}
	}
	return "no message"
}

// outOfSpace turns a full disk, or a quota that is used up, into a line that says
// what to do; other errors stay what they are.
func outOfSpace(err error, dir string) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	var told *spaceError
	if errors.As(err, &told) {
		return err
	}
	var free string
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil {
		free = fmt.Sprintf(" (%d MB free)", int64(st.Bavail)*st.Bsize>>20)
	}
	return &spaceError{fmt.Sprintf("no room on the disk of %s%s: free some space, run mpirun-sf image rm, or set XDG_CACHE_HOME to a folder on another disk", dir, free), err}
}

// OutOfSpace is for what others make in the image's folder: it turns the error of
// a full disk into a line that says what to do. Other errors stay what they are.
func (i *Image) OutOfSpace(err error) error { return outOfSpace(err, i.Dir) }

// A spaceError hides the chain of causes below one line, for the user; errors.Is
// still finds ENOSPC.
type spaceError struct {
	line  string
	cause error
}

func (e *spaceError) Error() string { return e.line }
func (e *spaceError) Unwrap() error { return e.cause }

// copyFile copies a file's content; dst must not exist. Between files of one
// file system that can, the blocks are shared.
func copyFile(dst, src string, mode os.FileMode) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
	}()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Chmod(mode) // whatever the umask says
}
