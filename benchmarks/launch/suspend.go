package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/clones"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu/qmp"
)

// plainQEMU is a guest as anyone would run it, with RAM of its own: what
// suspend and resume is measured on.
type plainQEMU struct {
	cmd     *exec.Cmd
	monitor *qmp.Client
	control net.Conn
	data    net.Conn
}

func startPlain(ctx context.Context, image *guest.Image, extra ...string) (*plainQEMU, error) {
	var ends [3]*os.File
	var conns [3]net.Conn
	for i := range ends {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		mine := os.NewFile(uintptr(fds[0]), "")
		ends[i] = os.NewFile(uintptr(fds[1]), "")
		defer ends[i].Close()
		if conns[i], err = net.FileConn(mine); err != nil {
			return nil, err
		}
		mine.Close()
	}
	q := &plainQEMU{control: conns[1], data: conns[2]}
	q.cmd = exec.Command(qemu.Binary, append([]string{
		"-M", "microvm", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", fmt.Sprint(clones.Memory >> 20),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
		"-device", "virtio-serial-device",
		"-chardev", "socket,id=control,fd=4", "-device", "virtserialport,chardev=control,name=" + agent.ControlPort,
		"-chardev", "socket,id=data,fd=5", "-device", "virtserialport,chardev=data,name=" + agent.DataPort,
		"-device", "virtio-balloon-device",
		"-drive", "if=none,id=disk,format=raw,snapshot=on,file=" + image.Root, "-device", "virtio-blk-device,drive=disk",
		"-netdev", "user,id=net,restrict=on", "-device", "virtio-net-device,netdev=net",
	}, extra...)...)
	q.cmd.ExtraFiles = ends[:]
	q.cmd.Stderr = os.Stderr
	if err := q.cmd.Start(); err != nil {
		return nil, err
	}
	var err error
	if q.monitor, err = qmp.New(ctx, conns[0].(*net.UnixConn)); err != nil {
		q.end()
		return nil, err
	}
	return q, nil
}

func (q *plainQEMU) end() {
	q.cmd.Process.Kill()
	q.cmd.Wait()
	q.control.Close()
	q.data.Close()
}

// suspend boots a guest and writes it, RAM and all, to a file.
func (b *bench) suspend(ctx context.Context, image *guest.Image) (string, error) {
	path := filepath.Join(b.Tmp, "suspended")
	q, err := startPlain(ctx, image, "-kernel", image.Kernel, "-initrd", image.Initramfs, "-append", "console=ttyS0 quiet "+qemu.ClockArguments())
	if err != nil {
		return "", err
	}
	defer q.end()
	if err := agent.NewControl(q.control).AwaitReady(ctx); err != nil {
		return "", err
	}
	if err := q.monitor.Do(ctx, "migrate", map[string]any{"uri": "exec:cat > " + path}, nil); err != nil {
		return "", err
	}
	for {
		var s struct{ Status string }
		if err := q.monitor.Do(ctx, "query-migrate", nil, &s); err != nil {
			return "", err
		}
		switch s.Status {
		case "completed":
			return path, nil
		case "failed":
			return "", fmt.Errorf("QEMU could not suspend the guest")
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// resume is the other side: n machines that read it all back, until the last
// one runs.
func (b *bench) resume(ctx context.Context, image *guest.Image, path string, n int) (time.Duration, error) {
	begin := time.Now()
	errs := make(chan error, n)
	machines := make(chan *plainQEMU, n)
	for range n {
		go func() {
			q, err := startPlain(ctx, image, "-incoming", "defer")
			if err != nil {
				errs <- err
				return
			}
			machines <- q
			running := q.monitor.Event("RESUME")
			if err := q.monitor.Do(ctx, "migrate-incoming", map[string]any{"uri": "exec:cat " + path}, nil); err != nil {
				errs <- err
				return
			}
			select {
			case <-running:
				errs <- nil
			case <-q.monitor.Closed():
				errs <- fmt.Errorf("QEMU could not resume the guest")
			case <-ctx.Done():
				errs <- ctx.Err()
			}
		}()
	}
	var first error
	for range n {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	took := time.Since(begin)
	close(machines)
	for q := range machines {
		q.end()
	}
	return took, first
}
