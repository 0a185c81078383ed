package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// assume makes this clone the one that id says. The link is down while it
// runs, on both ends.
func assume(ctx context.Context, id Identity) error {
	// The clock first: what follows may note the time.
	now := unix.NsecToTimespec(id.Time.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	if err := reseed(id.Seed); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(id.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	for path, content := range map[string]string{
		"/etc/hosts":                      hosts(id),
		"/etc/hostname":                   id.Name + "\n",
		"/etc/machine-id":                 id.MachineID + "\n",
		"/proc/sys/kernel/random/boot_id": id.BootID + "\n",
		"/etc/resolv.conf":                resolver(id),
	} {
		if err := os.WriteFile(ownFiles[path], []byte(content), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	if id.VCPUs > 0 {
		if err := setOnline(id.VCPUs); err != nil {
			return err
		}
	}
	if err := network.Configure(ctx, id.Network); err != nil {
		return err
	}
	return breakConnections()
}

// reseed makes the kernel's random generator forget what it had in common with
// its siblings (random(4)): the seed is credited and the generator re-keyed.
func reseed(seed []byte) error {
	if len(seed) < 32 {
		return fmt.Errorf("reseed the random generator: %d bytes are too few", len(seed))
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("reseed the random generator: %w", err)
	}
	defer f.Close()
	// struct rand_pool_info: entropy in bits, size in bytes, bytes.
	info := make([]byte, 8, 8+len(seed))
	binary.NativeEndian.PutUint32(info, uint32(len(seed)*8))
	binary.NativeEndian.PutUint32(info[4:], uint32(len(seed)))
	info = append(info, seed...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return fmt.Errorf("reseed the random generator: %w", errno)
	}
	const rndReseedCRNG = 0x5207
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed the random generator: %w", errno)
	}
	return nil
}

// addHosts appends to /etc/hosts who has come.
func addHosts(members []network.Member) error {
	f, err := os.OpenFile(ownFiles["/etc/hosts"], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("write /etc/hosts: %w", err)
	}
	defer f.Close()
	for _, m := range members {
		if _, err := fmt.Fprintf(f, "%s %s\n", m.IP, m.Name); err != nil {
			return fmt.Errorf("write /etc/hosts: %w", err)
		}
	}
	return nil
}

// resolver names the gateway, which passes questions on, if there is one.
func resolver(id Identity) string {
	if !id.Network.Gateway.IsValid() {
		return ""
	}
	return fmt.Sprintf("nameserver %v\n", id.Network.Gateway)
}

func hosts(id Identity) string {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1 localhost\n%s %s\n", id.Network.Address.Addr(), id.Name)
	for _, m := range id.Network.Members {
		if m.Name != id.Name {
			fmt.Fprintf(&b, "%s %s\n", m.IP, m.Name)
		}
	}
	return b.String()
}

// hookDir holds executables of the guest's image that run in every clone
// before its first process goes on, in the order of their names (the paper's
// callback that mounts NFS again, section 3.9.2).
const hookDir = "/etc/mpirun-sf/post-clone.d"

// hookLimit is how long one hook may take.
const hookLimit = 30 * time.Second

func runHooks(ctx context.Context, id Identity) error {
	hooks, _ := filepath.Glob(hookDir + "/*")
	for _, h := range hooks {
		ctx, cancel := context.WithTimeout(ctx, hookLimit)
		cmd := exec.Command(h)
		cmd.Env = []string{
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
			fmt.Sprintf("SF_ID=%d", id.Clone),
			fmt.Sprintf("SF_CLONE_ID=%d", id.Clone),
			fmt.Sprintf("SF_MEMBER=%d", id.Member),
			"SF_NAME=" + id.Name,
			"SF_TICKET=" + id.Ticket,
			"SF_IP=" + id.Network.Address.Addr().String(),
		}
		ended, err := children().start(func() (int, error) {
			if err := cmd.Start(); err != nil {
				return 0, err
			}
			return cmd.Process.Pid, nil
		})
		if err == nil {
			select {
			case ws := <-ended:
				switch {
				case ws.Signaled():
					err = fmt.Errorf("it was killed by signal %d", ws.Signal())
				case ws.ExitStatus() != 0:
					err = fmt.Errorf("it exited with status %d", ws.ExitStatus())
				}
			case <-ctx.Done():
				cmd.Process.Kill()
				err = errors.New("it took longer than " + hookLimit.String())
			}
		}
		cancel()
		if err != nil {
			return fmt.Errorf("post-clone hook %s: %w", filepath.Base(h), err)
		}
	}
	return nil
}
