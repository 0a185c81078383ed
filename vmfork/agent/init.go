package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/guestport"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// The agent's serial ports: orders, and the session.
const (
	ControlPort = "mpirun-sf.control"
	DataPort    = "mpirun-sf.data"
)

// KernelArguments are the guest kernel's for the agent's sake. What the kernel
// does not know becomes init's environment: there Go is told not to preempt the
// agent's goroutines by signals, which are much code for a process whose code is
// to be translated, on the way from a fork to the end of its pause. Pressure
// stall information is of no use to anybody here, nor are tests of the kernel's ciphers at each boot.
const KernelArguments = "psi=0 cryptomgr.notests GODEBUG=asyncpreemptoff=1"

// stateDir is the agent's own folder, on a tmpfs.
const stateDir = "/run/mpirun-sf"

// heapLimit is where the agent does collect garbage, in bytes.
const heapLimit = 64 << 20

// Main is the guest's first process. It returns only if the guest cannot come
// up, and its error is the last line on the guest's console.
func Main() error {
	// Under TCG, running the collector for the first time costs more than the
	// memory that it would find: translating it takes tens of milliseconds.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapLimit)
	err := boot()
	fmt.Fprintf(os.Stderr, "mpirun-sf agent: %v\n", err)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	return err
}

func boot() error {
	for _, m := range []struct{ what, at, kind string }{
		{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"dev", "/dev", "devtmpfs"},
	} {
		if err := unix.Mount(m.what, m.at, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := loadModules(guest.ModulesList); err != nil {
		return err
	}
	control, err := guestport.Find(ControlPort)
	if err != nil {
		return err
	}
	data, err := guestport.Find(DataPort)
	if err != nil {
		return err
	}
	program, err := keepProgram()
	if err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	if err := prepareRoot(); err != nil {
		return err
	}
	if err := program.show(); err != nil {
		return err
	}
	if err := network.LoopbackUp(); err != nil {
		return err
	}
	warm([]string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"})
	return serve(control, data)
}

func loadModules(list string) error {
	b, err := os.ReadFile(list)
	if err != nil {
		return fmt.Errorf("read the list of modules: %w", err)
	}
	for _, path := range strings.Fields(string(b)) {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("load module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		// ENODEV: a driver of hardware that this machine does not have.
		if err != nil && err != unix.EEXIST && err != unix.ENODEV {
			return fmt.Errorf("load module %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

// switchRoot makes the disk's root file system the root. The agent goes on
// from the initramfs's memory; nothing of it is put on the disk.
func switchRoot() error {
	const at = "/root"
	device, err := mountRoot(at)
	if err != nil {
		return err
	}
	for _, dir := range []string{"proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(at, dir), 0o755); err != nil {
			return fmt.Errorf("prepare %s: %w", device, err)
		}
		if err := unix.Mount("/"+dir, filepath.Join(at, dir), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move /%s to the root disk: %w", dir, err)
		}
	}
	if err := os.Chdir(at); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make %s the root: %w", device, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("make %s the root: %w", device, err)
	}
	return os.Chdir("/")
}

// mountRoot mounts the whole disk or, on a disk with partitions, the first one
// that holds a Linux root.
func mountRoot(at string) (device string, err error) {
	parts, err := findParts()
	if err != nil {
		return "", err
	}
	var tried []string
	for _, p := range parts {
		dev := "/dev/" + filepath.Base(p)
		// noatime: reading must not dirty pages that clones share.
		if err := unix.Mount(dev, at, "ext4", unix.MS_NOATIME, ""); err != nil {
			tried = append(tried, fmt.Sprintf("%s: %v", filepath.Base(p), err))
			continue
		}
		if _, err := os.Stat(filepath.Join(at, "etc")); err == nil {
			return dev, nil
		}
		tried = append(tried, filepath.Base(p)+": no /etc")
		unix.Unmount(at, 0)
	}
	return "", fmt.Errorf("find the root file system: none of the disk's partitions is an ext4 root (%s)", strings.Join(tried, "; "))
}

// diskLimit is how long the disk may take to appear: its driver may have to come to terms with a host first.
const diskLimit = 10 * time.Second

// findParts waits for the disk, and returns it and its partitions, by their folders in /sys.
func findParts() ([]string, error) {
	for end := time.Now().Add(diskLimit); ; time.Sleep(5 * time.Millisecond) {
		disks, _ := filepath.Glob("/sys/class/block/*vda") // some hypervisors' have a letter before
		if len(disks) > 0 {
			// It can be opened when it is known which partitions it has.
			if f, err := os.Open("/dev/" + filepath.Base(disks[0])); err == nil {
				f.Close()
				return filepath.Glob(disks[0] + "*")
			}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("find the root file system: waited %v for a disk vda", diskLimit)
		}
	}
}

// prepareRoot mounts what is not on the disk, and puts files whose content
// differs from clone to clone on a tmpfs, bound over their places: identity is
// then a few writes to memory.
func prepareRoot() error {
	for _, m := range []struct {
		at, kind, data string
		flags          uintptr
	}{
		{"/dev/pts", "devpts", "mode=620,ptmxmode=666", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"/dev/shm", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{"/run", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
		{"/tmp", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	for link, to := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"} {
		os.Symlink(to, link)
	}
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return err
	}
	if so, err := guest.Progress(); err == nil {
		if err := os.WriteFile(progressObject, so, 0o755); err != nil {
			return err
		}
	}
	for place, own := range ownFiles {
		if err := os.WriteFile(own, nil, 0o644); err != nil {
			return err
		}
		if _, err := os.Stat(place); errors.Is(err, fs.ErrNotExist) {
			os.Remove(place) // a link to where there is nothing, in an image of the user's own
			if err := os.WriteFile(place, nil, 0o644); err != nil {
				return fmt.Errorf("prepare %s: %w", place, err)
			}
		}
		if err := unix.Mount(own, place, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("prepare %s: %w", place, err)
		}
	}
	return nil
}

// ownFiles are the files that are a clone's own: where they appear, and where
// they are.
var ownFiles = map[string]string{
	"/etc/hosts":                      stateDir + "/hosts",
	"/etc/hostname":                   stateDir + "/hostname",
	"/etc/machine-id":                 stateDir + "/machine-id",
	"/etc/resolv.conf":                stateDir + "/resolv.conf",
	"/proc/sys/kernel/random/boot_id": stateDir + "/boot_id",
}

// progressObject is where the preload of [guest.Progress] lies in a guest.
const progressObject = stateDir + "/progress.so"

// warmLimit bounds what warm reads, in bytes, so that a user's own large image
// does not fill the guest's memory.
const warmLimit = 160 << 20

// warm reads libraries into the page cache: there they are part of the
// parent's RAM, which co-located clones share, and no clone reads them from its
// disk.
func warm(dirs []string) {
	left := int64(warmLimit)
	buf := make([]byte, 256<<10)
	seen := map[string]bool{}
	for _, dir := range dirs {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil || seen[real] {
			continue
		}
		seen[real] = true
		filepath.WalkDir(real, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() || left <= 0 {
				return nil
			}
			f, err := os.Open(path)
			if err != nil {
				return nil
			}
			defer f.Close()
			for left > 0 {
				n, err := f.Read(buf)
				left -= int64(n)
				if err != nil {
					if err != io.EOF {
						return nil
					}
					break
				}
			}
			return nil
		})
	}
}
