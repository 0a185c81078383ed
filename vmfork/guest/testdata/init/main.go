// Command init is a guest's init for the tests: it loads the modules, mounts the
// root, shows what it found on the console, and turns the guest off.
//
// As a cache's agent it is never run; it only has to be a static program.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Println("to be run as init of a guest")
		return
	}
	start := time.Now()
	if err := run(); err != nil {
		fmt.Printf("FAILED: %v\n", err)
	} else {
		fmt.Printf("GUEST OK after %v\n", time.Since(start).Round(time.Millisecond))
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	mounts := [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}}
	for _, m := range mounts {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	up, _ := os.ReadFile("/proc/uptime")
	fmt.Printf("uptime %s", up)
	list, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := unix.InitModule(b, ""); err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
		os.Remove(path)
	}
	for _, fs := range []string{"ext4", "9p"} {
		b, _ := os.ReadFile("/proc/filesystems")
		if !strings.Contains(string(b), "\t"+fs+"\n") {
			return fmt.Errorf("the kernel does not know %s", fs)
		}
	}
	for _, p := range []string{"/sys/class/net/eth0", "/sys/bus/virtio/drivers/virtio_balloon", "/sys/class/virtio-ports/vport2p1"} {
		if _, err := os.Stat(p); err != nil {
			found, _ := filepath.Glob(filepath.Dir(p) + "/*")
			return fmt.Errorf("%w (there: %v)", err, found)
		}
	}
	if err := unix.Mount("/dev/vda", "/root", "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	for _, m := range mounts {
		if err := unix.Mount(m[0], "/root"+m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s in the root: %w", m[1], err)
		}
	}
	if err := os.MkdirAll("/root/dev/shm", 0o1777); err != nil {
		return err
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	b, err := os.ReadFile("/root/command")
	if err != nil {
		return err
	}
	cmd := exec.Command("/bin/sh", "-c", string(b))
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: "/root"}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run the command: %w", err)
	}
	return nil
}

func linkUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}
