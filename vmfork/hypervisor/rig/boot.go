package rig

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
)

// countedClock is what Linux is told where clocks count instructions: the time
// stamp counter is QEMU's virtual time then, in ns.
const countedClock = " tsc_early_khz=1000000 tsc=reliable"

// Rig is a machine that runs.
type Rig struct {
	console string // path of the log
	port    net.Conn
	frames  chan frame    // closed when the port is
	done    chan struct{} // closed when QEMU is gone

	cmd    *exec.Cmd
	stderr bytes.Buffer // not read before done
}

type frame struct {
	kind    frameKind
	content []byte
}

// Boot starts the machine and waits until its init is heard. name is a word for
// its log and for errors. A context that ends after Boot means nothing to the
// machine.
func (i *Image) Boot(ctx context.Context, name string) (*Rig, error) {
	program, err := exec.LookPath(qemu.Binary)
	if err != nil {
		return nil, hypervisor.Lacksf("%s is not on PATH; install it: apt-get install qemu-system-x86", qemu.Binary)
	}
	mine, theirs, err := hypervisor.NewPort(portName)
	if err != nil {
		return nil, err
	}
	r := &Rig{
		console: filepath.Join(i.dir, name+".console"), port: mine,
		frames: make(chan frame, 64), done: make(chan struct{}),
	}
	r.cmd = exec.Command(program, i.args(name, r.console)...)
	r.cmd.Env = append(os.Environ(), "TMPDIR="+i.dir)
	r.cmd.ExtraFiles = []*os.File{theirs.File}
	r.cmd.Stderr = &r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	fault, err := findFault(program)
	if err != nil {
		fault = nil // Mendable has said so to who asked
	}
	err = r.start(fault)
	theirs.File.Close() // or nobody would hear of a QEMU that ended at once
	if err != nil {
		mine.Close()
		return nil, fmt.Errorf("boot %s: %w", name, err)
	}
	go r.listen()
	f, err := r.next(ctx, "its init")
	if err == nil && f.kind != frameReady {
		err = fmt.Errorf("its init began with %q", f.kind)
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("boot %s: %w", name, err)
	}
	return r, nil
}

// args is the machine. Devices on PCI: it is what all kernels, and Xen, find.
func (i *Image) args(name, console string) []string {
	m := i.machine
	cpu := m.CPU
	if cpu == "" {
		cpu = "max"
	}
	linux := "quiet panic=-1 mitigations=off " + m.Cmdline
	threads := "multi"
	if m.OwnTime > 0 {
		threads = "single" // which counting wants
	}
	args := []string{
		"-name", name, "-M", "q35", "-accel", "tcg,thread=" + threads, "-cpu", cpu,
		"-smp", strconv.Itoa(m.CPUs), "-m", strconv.FormatInt(m.Memory>>20, 10),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:" + console,
		"-device", "virtio-rng-pci",
		"-drive", "if=none,id=root,format=raw,snapshot=on,cache=unsafe,file=" + i.image.Root,
		"-device", "virtio-blk-pci,drive=root",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=rig,fd=3",
		"-device", "virtserialport,chardev=rig,name=" + portName,
	}
	if m.OwnTime > 0 {
		idle := "off"
		if m.Waits {
			idle = "on"
		}
		args = append(args, "-icount", fmt.Sprintf("shift=%d,sleep=%s", m.OwnTime, idle), "-rtc", "clock=vm")
	}
	if u := m.Under; u != nil {
		kernel := u.Linux
		if kernel == "" {
			kernel = i.image.Kernel
		}
		return append(args, "-kernel", u.Image, "-append", u.Cmdline,
			// QEMU separates modules by commas, and doubles those that are none.
			"-initrd", strings.ReplaceAll(kernel+" console="+u.Console+" "+linux, ",", ",,")+","+strings.ReplaceAll(i.image.Initramfs, ",", ",,"))
	}
	clock := qemu.ClockArguments()
	if m.OwnTime > 0 {
		clock = countedClock
	}
	return append(args, "-kernel", i.image.Kernel, "-initrd", i.image.Initramfs, "-append", "console=ttyS0 "+linux+clock)
}

// start starts QEMU on a thread that lives as long as it does: the kernel kills
// it when that thread ends. A fault is mended before.
func (r *Rig) start(f *fault) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		r.cmd.SysProcAttr.Ptrace = f != nil
		err := r.cmd.Start()
		if err == nil && f != nil {
			if err = f.mend(r.cmd.Process.Pid, r.cmd.Path); err != nil {
				r.cmd.Process.Kill()
				r.cmd.Wait()
			}
		}
		started <- err
		if err == nil {
			r.cmd.Wait()
			close(r.done)
		}
	}()
	return <-started
}

// listen takes frames off the port until that ends.
func (r *Rig) listen() {
	defer close(r.frames)
	for {
		kind, content, err := readFrame(r.port)
		if err != nil {
			return
		}
		select {
		case r.frames <- frame{kind, content}:
		case <-r.done:
			return
		}
	}
}

// next waits for a frame; what is who it is waited for, for errors.
func (r *Rig) next(ctx context.Context, what string) (frame, error) {
	select {
	case f, ok := <-r.frames:
		if !ok {
			return frame{}, r.explain(fmt.Errorf("the machine ended while it waited for %s", what))
		}
		return f, nil
	case <-ctx.Done():
		return frame{}, r.explain(fmt.Errorf("wait for %s: %w", what, context.Cause(ctx)))
	}
}

// explain adds what QEMU and the machine's console said last.
func (r *Rig) explain(err error) error {
	select {
	case <-r.done:
		if said := bytes.TrimSpace(r.stderr.Bytes()); len(said) > 0 {
			err = fmt.Errorf("%w; QEMU says: %s", err, said)
		}
	case <-time.After(time.Second): // it runs, and has said nothing
	}
	if b, e := os.ReadFile(r.console); e == nil {
		err = fmt.Errorf("%w; its console ends with\n%s", err, lastWords(string(b)))
	}
	return err
}

// lastWords is the end of a console's log, from a panic on if there is one.
func lastWords(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	begin := max(0, len(lines)-20)
	for i, l := range lines {
		if strings.Contains(l, "Kernel panic") {
			begin = min(begin, i)
			break
		}
	}
	return strings.Join(lines[begin:], "\n")
}

// Close cuts the machine's power, and waits until it is gone: what there is to keep was brought, and a Xen that turns off
// waits for its clock by spinning.
func (r *Rig) Close() {
	r.cmd.Process.Kill()
	<-r.done
	r.port.Close()
}

// PID is QEMU's.
func (r *Rig) PID() int { return r.cmd.Process.Pid }

// Console is what the machine's kernel has printed.
func (r *Rig) Console() string {
	b, err := os.ReadFile(r.console)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
