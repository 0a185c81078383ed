// Command dom0 makes a Linux that Xen has booted its dom0: it installs the tools, starts xenstored and xenconsoled, and
// ends when xl works.
//
//	dom0 ROOT
//
// ROOT holds the files of Xen's packages, at the paths below it that they have when installed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// startLimit is how long all daemons together may take to start.
const startLimit = 3 * time.Minute

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: dom0 ROOT")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), startLimit, fmt.Errorf("the daemons of Xen had not started after %v", startLimit))
	defer cancel()
	if err := up(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "dom0:", err)
		os.Exit(1)
	}
}

func up(ctx context.Context, root string) error {
	if err := install(root); err != nil {
		return fmt.Errorf("install the tools: %w", err)
	}
	if err := unix.Mount("xenfs", "/proc/xen", "xenfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount /proc/xen: %w: has Xen booted this machine?", err)
	}
	if err := folders(); err != nil {
		return err
	}
	// They go into the background themselves.
	if err := tool(ctx, "xenstored", "--pid-file", "/run/xen/xenstored.pid"); err != nil {
		return err
	}
	for tool(ctx, "xenstore-exists", "/tool") != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for xenstored to answer: %w", context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := tool(ctx, "xen-init-dom0"); err != nil {
		return err
	}
	if err := tool(ctx, "xenconsoled", "--log=all", "--log-dir=/var/log/xen/console", "--pid-file=/run/xen/xenconsoled.pid"); err != nil {
		return err
	}
	return tool(ctx, "xl", "list")
}

// install puts a link to every file below root at its place, unless this machine has one there; all programs of Xen's own
// folder onto PATH, where its packages have scripts that look for the version's; and busybox in for what is missing.
func install(root string) error {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := strings.TrimPrefix(path, root)
		if d.IsDir() {
			return os.MkdirAll("/"+at, 0o755)
		}
		return link(path, at)
	})
	if err != nil {
		return err
	}
	programs, _ := filepath.Glob("/usr/lib/xen-*/bin/*")
	if len(programs) == 0 {
		return fmt.Errorf("%s has no programs in usr/lib/xen-*/bin", root)
	}
	for _, p := range programs {
		if err := link(p, filepath.Join("/usr/local/sbin", filepath.Base(p))); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	for _, a := range strings.Fields(string(applets)) {
		if _, err := exec.LookPath(a); err == nil {
			continue
		}
		if err := link(busybox, filepath.Join("/usr/local/bin", a)); err != nil {
			return err
		}
	}
	return nil
}

func link(to, at string) error {
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(to, at); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// folders makes those that the tools expect of an installation.
func folders() error {
	for at, to := range map[string]string{"/var/run": "/run", "/var/lock": "/run/lock"} {
		if err := link(to, at); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/run/lock", "/run/xen", "/run/xenstored", "/var/lib/xen/dump", "/var/lib/xenstored", "/var/log/xen/console"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func tool(ctx context.Context, name string, args ...string) error {
	begin := time.Now()
	defer func() { fmt.Printf("%s took %v\n", name, time.Since(begin).Round(time.Millisecond)) }()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", name, context.Cause(ctx))
	}
	return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
}
