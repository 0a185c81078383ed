package qemu

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"

	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// Binary is the QEMU that is looked for on PATH.
const Binary = "qemu-system-x86_64"

// Accel is how QEMU executes the guest's instructions.
type Accel string

// The accelerators: hardware, and QEMU's translator.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// Driver starts QEMU processes. It implements [hypervisor.Driver].
type Driver struct {
	Binary  string // absolute path
	Accel   Accel
	Release string // "7.2.22"
}

var _ hypervisor.Driver = (*Driver)(nil)

// Find looks for QEMU on PATH and asks it for its version.
func Find(ctx context.Context, accel Accel) (*Driver, error) {
	path, err := exec.LookPath(Binary)
	if err != nil {
		return nil, hypervisor.Lacksf("%s is not on PATH; install it: apt-get install qemu-system-x86", Binary)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	release, err := parseVersion(string(out))
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	return &Driver{Binary: path, Accel: accel, Release: release}, nil
}

var versionLine = regexp.MustCompile(`(?m)^QEMU emulator version (\d+)\.(\d+)\.(\d+)`)

// parseVersion reads the first line of qemu --version and refuses QEMU < 7.2.
func parseVersion(out string) (string, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%.60q is not what QEMU prints", out)
	}
	major, err1 := strconv.Atoi(m[1])
	minor, err2 := strconv.Atoi(m[2])
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	release := m[1] + "." + m[2] + "." + m[3]
	if major < 7 || major == 7 && minor < 2 {
		return "", hypervisor.Lacksf("QEMU %s is too old, 7.2 is the oldest that will do", release)
	}
	return release, nil
}

const name = "qemu"

// Name implements [hypervisor.Driver].
func (d *Driver) Name() string { return name }

// Version implements [hypervisor.Driver]. A TCG guest's clock is the host's
// time stamp counter, so its rate is part of what a state depends on; a KVM
// guest's processor is the host's.
func (d *Driver) Version() string {
	v := fmt.Sprintf("QEMU %s microvm %s", d.Release, d.Accel)
	if d.Accel == TCG {
		v += fmt.Sprintf(" tsc=%dkHz", tscKHz())
	} else {
		v += " cpu=" + kvmProcessor()
	}
	return v
}

// lowMemory is where a microvm's RAM makes room for devices, and goes on at
// 4 GiB (QEMU's hw/i386/microvm.c).
const lowMemory, highMemory = 3 << 30, 4 << 30

// Describe implements [hypervisor.Driver].
func (d *Driver) Describe(s hypervisor.Shape) hypervisor.Description {
	memory := []descriptor.Range{{Start: 0, Size: uint64(min(s.Memory, lowMemory)), Offset: 0}}
	if s.Memory > lowMemory {
		memory = append(memory, descriptor.Range{Start: highMemory, Size: uint64(s.Memory - lowMemory), Offset: lowMemory})
	}
	return hypervisor.Description{
		Accelerator: string(d.Accel), Machine: "microvm",
		Devices:   []string{"virtio-serial", "virtio-balloon", "virtio-blk", "virtio-net"},
		MemoryMap: memory,
	}
}

// Boot implements [hypervisor.Driver].
func (d *Driver) Boot(ctx context.Context, cfg hypervisor.Config, k hypervisor.Kernel) (hypervisor.VM, error) {
	args := append(d.args(cfg, "on"),
		"-kernel", k.Image, "-initrd", k.Initrd,
		"-append", d.cmdline(k.Cmdline))
	v, err := start(ctx, d.Binary, cfg, args)
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Prepare implements [hypervisor.Driver].
func (d *Driver) Prepare(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	v, err := start(ctx, d.Binary, cfg, append(d.args(cfg, "off"), "-incoming", "defer"))
	if err != nil {
		return nil, err
	}
	return v, nil
}

// args is the machine: the same for a boot and for a clone, or states would
// not load.
func (d *Driver) args(cfg hypervisor.Config, share string) []string {
	cpu, accel := "max", "tcg,thread=multi"
	if d.Accel == KVM {
		cpu, accel = "host", "kvm"
	}
	args := []string{
		"-name", cfg.Name,
		"-M", "microvm,memory-backend=ram,suppress-vmdesc=on,mem-merge=off",
		"-accel", accel, "-cpu", cpu, "-smp", strconv.Itoa(cfg.VCPUs),
		"-m", strconv.FormatInt(cfg.Memory>>20, 10),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=%s", cfg.Memory, cfg.MemoryPath, share),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-global", "migration.send-configuration=off",
		"-global", "virtio-mmio.force-legacy=false",
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", fdMonitor), "-mon", "chardev=monitor,mode=control",
		"-serial", "file:" + cfg.ConsolePath(),
		"-device", "virtio-serial-device",
	}
	for i, p := range cfg.Ports {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=port%d,fd=%d", i, fdPorts+i),
			"-device", fmt.Sprintf("virtserialport,chardev=port%d,name=%s", i, p.Name))
	}
	args = append(args, "-device", "virtio-balloon-device,free-page-reporting=on")
	if cfg.DiskPath != "" {
		// The page cache of a clone's disk is memtap's; and what a clone
		// wrote vanishes with it, so nothing need ever be flushed. No lock:
		// a machine's successor has the disk open before the machine is
		// suspended.
		args = append(args,
			"-drive", "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file.locking=off,file.filename="+cfg.DiskPath,
			"-device", "virtio-blk-device,drive=disk")
	}
	if cfg.Tap != nil {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net,fd=%d,vhost=off", fdPorts+len(cfg.Ports)),
			// Nobody needs to be told where a machine is now: the bridge has it
			// in its table. The guest's announcements were a fifth of what
			// its processor did between a fork and the end of its pause.
			"-device", "virtio-net-device,netdev=net,guest_announce=off,mac="+cfg.MAC.String())
	}
	return args
}

func (d *Driver) cmdline(own string) string {
	// Reports of single free pages, not of 2 MB at the least: exactness is
	// what they are for (paper section 3.4). Linux 6.1 forgets it when the
	// balloon's driver comes, and reports 2 MB.
	//
	// A microvm knows one way to reset, and Linux does not come to it by
	// itself: a guest that panics would spin for ever, and nobody notice.
	//
	// Nor has it PCI: on AMD's processors Linux looks for an AGP bridge on 256
	// buses, twice, by two ports that it must leave the guest for.
	line := "console=ttyS0 quiet page_reporting.page_reporting_order=0 panic=-1 reboot=t pci=noearly " + own
	if d.Accel == TCG {
		return line + ClockArguments()
	}
	// A microvm has a real-time clock under TCG only. Linux's driver for it reads 0xff
	// then, takes that for a clock that is being set, and waits until it is not, for a
	// second each time; a guest on KVM has its time from KVM.
	return line + " initcall_blacklist=cmos_init"
}

// ClockArguments are what a TCG guest's kernel must be told of its clock,
// which it cannot measure on a busy host.
func ClockArguments() string {
	return fmt.Sprintf(" tsc_early_khz=%d tsc=reliable", tscKHz())
}
