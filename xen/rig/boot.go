package rig

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	machine "github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/rig"
)

// Flavour says which hypervisor a rig has.
type Flavour string

const (
	FlavourStock  Flavour = "stock"  // the distribution's
	FlavourPaging Flavour = "paging" // the same version with memory paging
)

// modules are those of a dom0 that other guests of this project do not need. Those that guests of Xen's do need are the
// first: of a kernel that was kept with all of them, who asks for a module gets those before it as well.
var modules = []string{
	"xen_blkfront", "xen_netfront",
	"xenfs", "xen_privcmd", "xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_blkback", "xen_netback",
	"fuse", "loop", "nbd", "tun", "bridge", "veth", "nf_tables", "nft_meta_bridge",
}

// tools are programs of Xen's that must be whole; of the others of its packages, it does not matter whether all of their
// libraries are found.
var tools = []string{"xl", "libxl-save-helper", "xenstored", "xenconsoled", "xen-init-dom0"}

// Memory of the machine and of dom0, in bytes. What is left is the guests'.
const (
	machineMemory = 3 << 30
	dom0Memory    = 1 << 30
)

// processor is QEMU's most capable one without what goes wrong under its translator (7.2): with SMAP dom0 dies, with RDTSCP
// guests in PVH do, and with AVX and XSAVE programs in dom0 find their registers changed. And without what makes it slow: with
// ERMS and FSRM all that copies memory does so by REP MOVSB, which is translated to one round for each byte; and with FSGSBASE a
// dom0 asks Xen for a register each time that it goes from one process to another.
const processor = "max,-smap,-rdtscp,-avx,-avx2,-xsave,-erms,-fsrm,-fsgsbase"

// linuxArguments are dom0's, for what it does to cost less: no tests of ciphers, which take longer than all else that it starts with,
// and none of its own mappings; no accounts of what waits; memory that is not cleared a second time; and timers that end with a tick,
// of which a Go program has very many.
const linuxArguments = "nokaslr cryptomgr.notests rodata=off psi=0 init_on_alloc=0 hardened_usercopy=off apparmor=0 highres=off"

// bootLimit is how long it may take until dom0 is heard, and its tools work.
const bootLimit = 5 * time.Minute

// Options say what a rig is to have.
type Options struct {
	Flavour Flavour
	// With are files and folders that it has at the same path; they may not be below /tmp or /run.
	With []string
	CPUs int // 0 is 1
	// PVOnly has its processor without virtualization, so that Xen makes PV guests and no others.
	PVOnly bool
	// Free is the space on its disk for what runs in it, in bytes; 0 is as much as guests have.
	Free int64
	// HostTime has the rig's clocks go with the host's. Otherwise they count instructions, on one CPU, so that nothing in
	// the rig takes longer because the host is busy.
	HostTime bool
}

// instruction is how long one takes where clocks count them, as a power of two of nanoseconds.
const instruction = 1

// A Rig is dom0 of a Xen that runs.
type Rig struct {
	*machine.Rig
	Xen *Xen
	// Env is for commands that look for the rig's guest by [Probe].
	Env []string
}

// Start boots a rig. What it is made of is made in dir, which may not be below /tmp or /run and is the caller's to remove
// when the rig was closed.
func Start(ctx context.Context, c *Cache, dir string, o Options) (*Rig, error) {
	x, kernel, linux, err := c.parts(ctx, o.Flavour)
	if err != nil {
		return nil, err
	}
	dom0, err := build(ctx, dir, "dom0")
	if err != nil {
		return nil, err
	}
	initrd, err := guestInitrd(ctx, dir)
	if err != nil {
		return nil, err
	}
	with := []string{x.Root, linux, dom0, initrd}
	for _, t := range tools {
		found, _ := filepath.Glob(filepath.Join(x.Root, "usr/lib/xen-*/bin", t))
		if len(found) != 1 {
			return nil, fmt.Errorf("the packages of Xen have %d programs %s instead of one", len(found), t)
		}
		with = append(with, found[0])
	}
	cpu := processor
	if o.PVOnly {
		cpu += ",-svm"
	}
	ownTime := instruction
	if o.HostTime {
		ownTime = 0
	}
	image, err := machine.Build(ctx, dir, machine.Machine{
		Kernel: kernel, Cmdline: linuxArguments,
		Under: &machine.Under{
			Image: x.Image, Linux: linux, Console: "hvc0",
			Cmdline: fmt.Sprintf("console=com1 com1=115200 loglvl=all guest_loglvl=all dom0_mem=%[1]dM,max:%[1]dM bootscrub=0 spec-ctrl=no", dom0Memory>>20),
		},
		With: slices.Concat(with, o.With), LibraryPath: filepath.Join(x.Root, "usr/lib/x86_64-linux-gnu"),
		CPU: cpu, CPUs: max(o.CPUs, 1), Free: o.Free, Memory: machineMemory, OwnTime: ownTime,
	}, func(s string) { c.Log("%s", s) })
	if err != nil {
		return nil, err
	}
	defer image.Release()
	bctx, cancel := context.WithTimeoutCause(ctx, bootLimit, fmt.Errorf("dom0 was not up after %v", bootLimit))
	defer cancel()
	m, err := image.Boot(bctx, "dom0")
	if err != nil {
		return nil, err
	}
	r := &Rig{m, x, []string{envFlavour + "=" + string(o.Flavour), envKernel + "=" + linux, envInitrd + "=" + initrd}}
	if err := r.up(bctx, dom0); err != nil {
		console := r.Console()
		r.Close()
		return nil, fmt.Errorf("%w; the console ends with\n%s", err, console[max(0, len(console)-3000):])
	}
	return r, nil
}

// Make fetches and compiles what rigs of that flavour are made of, so that they start without.
func (c *Cache) Make(ctx context.Context, f Flavour) error {
	_, _, _, err := c.parts(ctx, f)
	return err
}

// parts are what a rig is made of: Xen, Linux, and the path of Linux as an ELF file.
func (c *Cache) parts(ctx context.Context, f Flavour) (x *Xen, kernel *guest.Kernel, linux string, err error) {
	x, err = c.Stock(ctx)
	if err == nil && f == FlavourPaging {
		x, err = c.Paging(ctx, x)
	}
	if err != nil {
		return nil, nil, "", err
	}
	kernel, err = c.findKernel(ctx, modules)
	if err == nil {
		linux, err = c.vmlinux(ctx, kernel)
	}
	return x, kernel, linux, err
}

// GuestKernel is the rig's Linux with those modules that guests of this project have, and more of the rig's. It is an ELF file:
// xl would decompress another at each boot.
func (c *Cache) GuestKernel(ctx context.Context, more []string) (*guest.Kernel, error) {
	if _, err := c.findKernel(ctx, modules); err != nil { // what is fetched and kept has to be enough for the rig
		return nil, err
	}
	k, err := c.findKernel(ctx, more)
	if err != nil {
		return nil, err
	}
	k.Path, err = c.vmlinux(ctx, k)
	return k, err
}

func (c *Cache) findKernel(ctx context.Context, more []string) (*guest.Kernel, error) {
	return guest.FindKernel(ctx, filepath.Join(c.Dir, "linux"), func(s string) { c.Log("%s", s) }, more...)
}

// up starts Xen's daemons.
func (r *Rig) up(ctx context.Context, dom0 string) error {
	var said lines
	res, err := r.Run(ctx, machine.Command{Args: []string{dom0, r.Xen.Root}}, &said, &said, "")
	if err == nil && res.Status != 0 {
		err = errors.New(said.last())
	}
	if err != nil {
		return fmt.Errorf("start Xen's daemons: %w", err)
	}
	return nil
}

// vmlinux is the path of the kernel as an ELF file.
func (c *Cache) vmlinux(ctx context.Context, k *guest.Kernel) (string, error) {
	image, err := os.ReadFile(k.Path)
	if err != nil {
		return "", fmt.Errorf("read the kernel: %w", err)
	}
	const name = "vmlinux"
	sum := sha256.Sum256(image)
	dir, err := c.part(ctx, name, []string{string(sum[:]), "trimmed"}, func(dir string) error {
		elf, err := machine.VMLinux(ctx, image)
		if err != nil {
			return fmt.Errorf("%s: %w", k.Release, err)
		}
		return os.WriteFile(filepath.Join(dir, name), elf, 0o644)
	})
	return filepath.Join(dir, name), err
}

// build compiles one of this package's commands into dir.
func build(ctx context.Context, dir, name string) (string, error) {
	to := filepath.Join(dir, name)
	if _, err := output(ctx, "", "go", "build", "-o", to, "github.com/mpirun-sf/mpirun-sf/xen/rig/"+name); err != nil {
		return "", fmt.Errorf("build the rig's %s: %w", name, err)
	}
	return to, nil
}

// guestInitrd makes the initramfs of the rig's guest in dir. All that it needs is built into the kernel.
func guestInitrd(ctx context.Context, dir string) (string, error) {
	init, err := build(ctx, dir, "domu")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "domu.initrd")
	f, err := os.Create(path)
	if err != nil {
		return "", fmt.Errorf("make the guest's initramfs: %w", err)
	}
	err = guest.WriteInitramfs(f, init, &guest.Kernel{})
	return path, errors.Join(err, f.Close())
}
