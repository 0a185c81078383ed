package rig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/guestport"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// disk has the root, and diskLimit is how long it may take to appear.
const (
	disk      = "/dev/vda"
	diskLimit = 30 * time.Second
)

// readAhead is how much is read of the disk around what is wanted, in KB: a busy
// host takes its time for each request, however large.
const readAhead = "2048"

// serving is the argument of the process that serves commands.
const serving = "serve"

// Init is the main function of the rig's first process, and of the one that
// serves commands. What it complains of is on the console, and the machine then
// turns off.
func Init() {
	if os.Getpid() != 1 {
		if len(os.Args) != 2 || os.Args[1] != serving {
			fmt.Fprintln(os.Stderr, "to be run as the init of a rig")
			os.Exit(1)
		}
		setEnvironment()
		if err := serve(os.NewFile(3, portName)); err != nil {
			fmt.Fprintf(os.Stderr, "rig: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if err := live(); err != nil {
		fmt.Fprintf(os.Stderr, "rig: %v\n", err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func live() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	port, err := guestport.Find(portName)
	if err != nil {
		return err
	}
	if err := awaitDisk(); err != nil {
		return err
	}
	if err := os.WriteFile("/sys/block/"+filepath.Base(disk)+"/queue/read_ahead_kb", []byte(readAhead), 0); err != nil {
		return fmt.Errorf("have the disk read ahead: %w", err)
	}
	if err := enter(); err != nil {
		return err
	}
	if err := furnish(); err != nil {
		return err
	}
	if err := network.LoopbackUp(); err != nil {
		return err
	}
	return attend(port)
}

func loadModules() error {
	list, err := os.ReadFile(guest.ModulesList)
	if err != nil {
		return fmt.Errorf("read the list of modules: %w", err)
	}
	for _, path := range strings.Fields(string(list)) {
		module, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("load a module: %w", err)
		}
		err = unix.InitModule(module, "")
		// What is for a processor or a hypervisor that this is not does not load.
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("load the module %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

func awaitDisk() error {
	for end := time.Now().Add(diskLimit); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(disk); err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %v for the disk %s", diskLimit, disk)
		}
	}
}

// enter makes the disk's file system the root.
func enter() error {
	const at = "/root"
	if err := unix.Mount(disk, at, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", disk, err)
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(at+dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, at+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make the disk the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// furnish mounts what else programs expect.
func furnish() error {
	for _, m := range []struct{ at, kind, data string }{
		{"/dev/pts", "devpts", "mode=620,ptmxmode=666"},
		{"/dev/shm", "tmpfs", "mode=1777,size=90%"},
		{"/run", "tmpfs", "mode=755"},
		{"/tmp", "tmpfs", "mode=1777"},
		{"/sys/fs/cgroup", "cgroup2", ""},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	for link, to := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"} {
		os.Symlink(to, link)
	}
	return unix.Sethostname([]byte("rig"))
}

// attend starts the process that serves commands and collects the dead until
// that one is among them.
func attend(port string) error {
	f, err := os.OpenFile(port, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	server := exec.Command("/proc/self/exe", serving)
	server.Stdout, server.Stderr = os.Stdout, os.Stderr
	server.ExtraFiles = []*os.File{f}
	if err := server.Start(); err != nil {
		return fmt.Errorf("start serving: %w", err)
	}
	f.Close()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for processes: %w", err)
		case pid == server.Process.Pid:
			if status != 0 {
				return fmt.Errorf("what serves commands ended with %#x", uint32(status))
			}
			return nil
		}
	}
}
