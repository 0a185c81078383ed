package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
)

// Machine says what is booted and what is in it.
type Machine struct {
	// Kernel is Linux, with all modules that the init is to load, in that
	// order (guest.FindKernel).
	Kernel *guest.Kernel
	// Cmdline is added to Linux's command line.
	Cmdline string
	// Under is what is booted in Linux's stead, to run it as its first guest;
	// nil for none.
	Under *Under

	// With are programs, files and folders of this machine that the rig has at
	// the same path, each with the libraries that it needs. Of /tmp, /run, /dev,
	// /proc and /sys nothing can be brought: the rig has its own.
	With []string
	// LibraryPath is where their libraries are besides the usual places, as in
	// LD_LIBRARY_PATH.
	LibraryPath string
	// Free is the space on its disk for what runs in it, in bytes; it also has
	// tmpfs on /tmp, /run and /dev/shm. 0 is guest.DefaultFree.
	Free int64

	// CPU is QEMU's model of the processor; "" is "max", which has SVM.
	CPU    string
	CPUs   int
	Memory int64 // bytes, a multiple of 1 MiB
	// OwnTime has the machine's clocks count its instructions, 2^OwnTime ns each, and skip what
	// it is idle: it can be as slow as it likes without finding that a time limit is over. It has one CPU then. 0 is the
	// host's time.
	OwnTime int
	// Waits has what it is idle pass at the host's pace instead of being skipped. Its
	// disk is the host's, and when a busy host takes long to read, skipping goes far.
	Waits bool
}

// Under is a hypervisor that boots by the multiboot protocol and finds Linux
// and its initramfs as the first two modules.
type Under struct {
	Image   string // path
	Cmdline string
	Linux   string // path of a kernel in a form that it can load, "" for Kernel's own
	Console string // its guest's console: "hvc0"
}

// Image is a machine that can be booted.
type Image struct {
	machine Machine
	image   *guest.Image
	dir     string
}

// Build makes the image of a machine in dir, which must not be below /tmp or
// /run if the caller brings files of it; it is the caller's to remove. log gets
// a line for what takes long; it may be nil. It builds the init with the go
// command.
func Build(ctx context.Context, dir string, m Machine, log func(string)) (*Image, error) {
	init := filepath.Join(dir, "init")
	build := exec.CommandContext(ctx, "go", "build", "-o", init, "github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/rig/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the rig's init: %w\n%s", err, out)
	}
	image, err := guest.Build(ctx, &guest.Cache{Dir: filepath.Join(dir, "image")}, guest.Spec{
		Agent: init, Kernel: m.Kernel, With: m.With, LibraryPath: m.LibraryPath, Free: m.Free,
	}, log)
	if err != nil {
		return nil, fmt.Errorf("build the rig: %w", err)
	}
	return &Image{machine: m, image: image, dir: dir}, nil
}

// Size is what the image's files have in its disk, in bytes.
func (i *Image) Size() int64 { return i.image.Used }

// Release ends the image's use; its machines go on.
func (i *Image) Release() { i.image.Release() }
