package xen

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance/counter"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
)

// envVictim names the variable by which this program starts a guest and waits to be killed: its value is a folder with the
// guest's initramfs.
const envVictim = "MPIRUN_SF_XEN_TEST_VICTIM"

const victimMemory = 128 << 20

// beVictim prints the numbers of its domain and of its holder.
func beVictim(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	d, err := Find(ctx, PVH)
	if err != nil {
		return err
	}
	cfg := hypervisor.Config{Name: "victim", Dir: dir, Shape: hypervisor.Shape{VCPUs: 1, Memory: victimMemory}, MemoryPath: filepath.Join(dir, "memory")}
	channel, port, err := hypervisor.NewPort(counter.PortName)
	if err != nil {
		return err
	}
	defer channel.Close()
	cfg.Ports = []hypervisor.Port{port}
	machine, err := d.Boot(ctx, cfg, hypervisor.Kernel{Image: os.Getenv(envKernel), Initrd: filepath.Join(dir, "initramfs")})
	if err != nil {
		return err
	}
	fmt.Printf("%d %d\n", machine.(*vm).id, d.holder.cmd.Process.Pid)
	<-machine.Done()
	return machine.Err()
}

// victim is a process that has started a guest.
type victim struct {
	cmd    *exec.Cmd
	domain privcmd.Domain
	holder int // process
}

func startVictim(t *testing.T) victim {
	t.Helper()
	g, dir := makeGuest(t), t.TempDir()
	if err := os.Rename(g.Initrd, filepath.Join(dir, "initramfs")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "memory"), victimMemory); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envVictim+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	v := victim{cmd: cmd}
	said, _ := bufio.NewReader(out).ReadString('\n')
	if _, err := fmt.Sscan(said, &v.domain, &v.holder); err != nil {
		t.Fatalf("the process that starts a guest says %q", said)
	}
	return v
}

// exists says whether Xen has the victim's domain, or XenStore anything of it.
func (v victim) exists(t *testing.T, d *Driver) bool {
	t.Helper()
	if _, err := d.xen.Info(v.domain); !errors.Is(err, unix.ESRCH) {
		return true
	}
	number := strconv.Itoa(int(v.domain))
	for _, path := range []string{"/local/domain/" + number, "/local/domain/0/backend/mpirun-sf-console/" + number} {
		if _, err := d.store.List(t.Context(), path); !errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}

// TestKilled: when a process is killed, its guests end; and when what should see to that was killed as well, they end when the
// next driver begins.
func TestKilled(t *testing.T) {
	d := find(t, PVH)
	v := startVictim(t)
	if !v.exists(t, d) {
		t.Fatalf("there is no domain %d", v.domain)
	}
	v.cmd.Process.Kill()
	begin := time.Now()
	for end := begin.Add(time.Minute); v.exists(t, d); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a minute after its owner was killed, domain %d is there", v.domain)
		}
	}
	t.Logf("gone %v after its owner", time.Since(begin).Round(time.Millisecond))

	v = startVictim(t)
	if err := unix.Kill(v.holder, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v.cmd.Process.Kill()
	v.cmd.Wait()
	time.Sleep(time.Second)
	if !v.exists(t, d) {
		t.Error("a domain that nobody destroys is gone")
	}
	next, err := Find(t.Context(), PVH)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	for end := time.Now().Add(time.Minute); v.exists(t, d); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a minute after another driver began, domain %d is there", v.domain)
		}
	}
	files, err := os.ReadDir(ownersFolder)
	if err != nil || len(files) != 2 {
		t.Errorf("owners are %v (%v), want the two that live", files, err)
	}
}
