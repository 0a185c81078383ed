package testcluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Programs that this one is, by the name that it is called.
const (
	initName  = "testcluster-host"  // a host's first process
	enterName = "testcluster-enter" // runs a program in a host
	wireName  = "testcluster-wire"  // a link with a delay
)

// self is this program's file, also when that has been removed.
const self = "/proc/self/exe"

// helperFailed is a helper's exit status when the fault is not that of what it should run.
const helperFailed = 125

// The packages that import this one are not initialized yet, so nothing of them runs in a helper. It ends by unix.Exit,
// for the race detector's exit takes a second.
func init() {
	var err error
	switch filepath.Base(os.Args[0]) {
	case initName:
		err = beHost()
	case enterName:
		err = enter(os.Args[1], os.Args[2], os.Args[3:])
	case wireName:
		err = beWire(os.Args[1:])
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		unix.Exit(helperFailed)
	}
	unix.Exit(0)
}

// A hostConfig tells a host's first process what to make of itself.
type hostConfig struct {
	Name string
	// Etc are files in /etc that the host has instead of the machine's.
	Etc map[string]string
}

// ready is what the first process says when the host is one.
const ready = "ready\n"

// beHost is a host's first process: configured by a line on its standard input, and at an end when that has one.
func beHost() error {
	orphans := make(chan os.Signal, 1)
	signal.Notify(orphans, unix.SIGCHLD)
	input := bufio.NewReader(os.Stdin)
	line, err := input.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	var config hostConfig
	if err := json.Unmarshal(line, &config); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := furnish(config); err != nil {
		return err
	}
	go func() {
		for range orphans {
			for {
				if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && !errors.Is(err, unix.EINTR) {
					break
				}
			}
		}
	}()
	if _, err := os.Stdout.WriteString(ready); err != nil {
		return fmt.Errorf("say that the host is ready: %w", err)
	}
	// Whoever reads the test's output must not wait for what runs here.
	os.Stdout.Close()
	os.Stderr.Close()
	_, err = io.Copy(io.Discard, input)
	return err
}

// furnish gives the host what it has for itself.
func furnish(config hostConfig) error {
	if err := unix.Sethostname([]byte(config.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("proc", "/proc", "proc", plain|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("run", "/run", "tmpfs", plain, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	// The interfaces in /sys are those of the namespace in which it was mounted. Control groups stay the machine's.
	const aside = "/run/cgroup"
	if err := os.Mkdir(aside, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/sys/fs/cgroup", aside, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep /sys/fs/cgroup: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", plain|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := unix.Mount(aside, "/sys/fs/cgroup", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("keep /sys/fs/cgroup: %w", err)
	}
	if err := os.Remove(aside); err != nil {
		return err
	}
	return furnishEtc(config.Etc)
}

// furnishEtc gives the host an /etc of its own: the machine's, with other files above it. Mounts over single files would
// not do, for they go when somebody replaces the machine's file; nor a copy, for then guest images would be made anew, of files
// that look new.
func furnishEtc(files map[string]string) error {
	const layers = "/run/etc"
	if err := os.Mkdir(layers, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("etc", layers, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount what is above /etc: %w", err)
	}
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(layers, name), 0o755); err != nil {
			return err
		}
	}
	for name, content := range files {
		mode := os.FileMode(0o644)
		if st, err := os.Stat(filepath.Join("/etc", name)); err == nil {
			mode = st.Mode().Perm()
		}
		if err := os.WriteFile(filepath.Join(layers, "upper", name), []byte(content), mode); err != nil {
			return err
		}
	}
	if err := unix.Mount("etc", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+layers+"/upper,workdir="+layers+"/work"); err != nil {
		return fmt.Errorf("mount /etc: %w", err)
	}
	if err := unix.Unmount(layers, unix.MNT_DETACH); err != nil { // the overlay keeps it
		return err
	}
	return os.Remove(layers)
}

// enter runs a program in the namespaces of the host whose first process has this pid, and ends as it does. The host is
// known by its PID namespace, for a pid may have become another's.
func enter(pid, identity string, argv []string) error {
	// To the end: a thread that is in other namespaces can be nobody else's, and the program is to die with it.
	runtime.LockOSThread()
	folder := filepath.Join("/proc", pid, "ns")
	if got, err := os.Readlink(filepath.Join(folder, "pid")); err != nil || got != identity {
		return fmt.Errorf("run %s: the host is dead", argv[0])
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	var files []*os.File
	kinds := []string{"net", "uts", "ipc", "mnt", "pid"}
	for _, kind := range kinds {
		file, err := os.Open(filepath.Join(folder, kind))
		if err != nil {
			return fmt.Errorf("run %s: the host is dead (%w)", argv[0], err)
		}
		defer file.Close()
		files = append(files, file)
	}
	// Threads that share a working directory cannot change to another mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for i, file := range files {
		if err := unix.Setns(int(file.Fd()), 0); err != nil {
			return fmt.Errorf("enter the host's %s namespace: %w", kinds[i], err)
		}
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	// The runtime's own Pdeathsig takes a parent in another PID namespace for one that has died.
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		return fmt.Errorf("%w: apt install util-linux", err)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	// In a process group of its own, for a signal to the group comes here too, and is to be passed on once. At a
	// terminal that group has to be the one that may read.
	attributes := &syscall.SysProcAttr{Setpgid: true}
	if foreground, err := unix.IoctlGetInt(0, unix.TIOCGPGRP); err == nil && foreground == unix.Getpgrp() {
		attributes.Foreground = true
		signal.Ignore(unix.SIGTTOU)
	}
	// Other open files are those that the caller has passed on; they stay open, with their numbers.
	process, err := os.StartProcess(setpriv, slices.Concat([]string{"setpriv", "--pdeathsig", "KILL", "--"}, argv),
		&os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: attributes})
	if err != nil {
		return err
	}
	go func() {
		for s := range signals {
			if s != unix.SIGCHLD && s != unix.SIGURG && s != unix.SIGPIPE {
				_ = process.Signal(s)
			}
		}
	}()
	state, err := process.Wait()
	if err != nil {
		return err
	}
	if attributes.Foreground {
		_ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, unix.Getpgrp())
	}
	status := state.Sys().(syscall.WaitStatus)
	if !status.Signaled() {
		unix.Exit(status.ExitStatus())
	}
	switch s := status.Signal(); s {
	case unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGKILL: // others make a Go program tell of its goroutines
		signal.Reset(s)
		_ = unix.Kill(os.Getpid(), s)
		select {}
	default:
		unix.Exit(128 + int(s))
	}
	return nil
}

// enterArgs are the arguments of enter, and identity what it knows the host by.
func enterArgs(pid int, identity, name string, args []string) []string {
	return slices.Concat([]string{enterName, strconv.Itoa(pid), identity, name}, args)
}
