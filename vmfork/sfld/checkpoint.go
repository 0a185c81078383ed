package sfld

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// A checkpoint is a booted guest, frozen: the descriptor, one slice of memory,
// and two of disk (the root as it was built, and what booting wrote).
//
// In the cache it is a folder of the image that it was booted from:
//
//	<image>/root.map                   the root's checksums, shared by all
//	<image>/checkpoints/<key>/         descriptor, memory, memory.map, disk, disk.map,
//	                                   and trace, once it was used (workingset.go)
//
// The key is over all that the state depends on besides the image: the shape,
// the hypervisor, and the format.
//
// In a job it is the first generation: what its clones, or its first VM, are
// made of.

// checkpointFormat changes when a checkpoint of an older program must not be
// used by this one.
const checkpointFormat = "4"

// How long a guest may take to boot. Under TCG on a busy machine, boots of 8 s
// were seen.
const bootLimit = 3 * time.Minute

// reportDelay is how long the guest is left alone after its boot. Linux
// reports free pages two seconds after they became free (mm/page_reporting.c);
// before, what booting left in them would count as memory to be fetched.
const reportDelay = 2500 * time.Millisecond

// bootedGeneration finds or makes the checkpoint of the image for the shape.
func (e *Engine) bootedGeneration(ctx context.Context) (g *generation, booted time.Duration, err error) {
	sum := sha256.Sum256(fmt.Append(nil, checkpointFormat, "\n", e.driver.Name(), "\n", e.driver.Version(), "\n", e.shape.VCPUs, "\n", e.shape.Memory))
	dir := filepath.Join(e.image.Dir, "checkpoints", hex.EncodeToString(sum[:6]))

	unlock, err := e.image.Lock(ctx, "checkpoint", bootLimit+time.Minute, func() {
		e.notify(Notice{Progress: "another mpirun-sf makes this guest's checkpoint, waiting for it"})
	})
	if err != nil {
		return nil, 0, err
	}
	defer unlock()
	sweep(e.image.Dir)
	if g, err = e.openCheckpoint(dir); err == nil {
		return g, 0, nil
	}
	if _, missing := os.Stat(dir); missing == nil {
		// A file that was truncated, damaged or lost costs a boot, not the job.
		e.notify(Notice{Line: fmt.Sprintf("the checkpoint in the cache cannot be used and is made again (%v)", err)})
		os.RemoveAll(dir)
	}
	begin := time.Now()
	if err := e.makeCheckpoint(ctx, dir); err != nil {
		return nil, 0, err
	}
	booted = time.Since(begin)
	g, err = e.openCheckpoint(dir)
	return g, booted, err
}

// Names of what only a living job has in an image's folder.
const (
	tmpFolders = "checkpoint-tmp-"
	tmpFiles   = "clone-tmp-"
)

// temporary makes a folder beside the checkpoints, with a lock that says that
// its maker lives.
func (e *Engine) temporary() (dir string, remove func(), err error) {
	if dir, err = os.MkdirTemp(e.image.Dir, tmpFolders); err != nil {
		return "", nil, err
	}
	f, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		// Whoever looks through the whole cache may have come in between.
		_, err = os.Stat(dir)
	}
	if err != nil {
		f.Close()
		os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, func() { os.RemoveAll(dir); f.Close() }, nil
}

// sweep removes what killed jobs have left in an image's folder. It is called
// with the lock held under which such things are made.
func sweep(image string) {
	folders, _ := filepath.Glob(filepath.Join(image, tmpFolders+"*"))
	for _, dir := range folders {
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
	// Who uses such a file has it open and needs no name for it any more.
	files, _ := filepath.Glob(filepath.Join(image, tmpFiles+"*"))
	for _, path := range files {
		os.Remove(path)
	}
}

// rootSlice is the image's root disk as the bottom of every stack. Its map is
// made from it, again if that was damaged.
func (e *Engine) rootSlice(ctx context.Context) (*slice.Slice, error) {
	mapPath := filepath.Join(e.image.Dir, "root.map")
	s, err := slice.Open(e.image.Root, mapPath)
	if err != nil {
		os.Remove(mapPath)
		s, _, err = slice.Seal(ctx, e.image.Root, mapPath, slice.Disk, slice.SealOptions{})
	}
	return s, err
}

func (e *Engine) openCheckpoint(dir string) (g *generation, err error) {
	var opened []*slice.Slice
	defer func() {
		if err != nil {
			for _, s := range opened {
				s.Close()
			}
		}
	}()
	d, err := descriptor.Load(filepath.Join(dir, "descriptor"))
	if err != nil {
		return nil, err
	}
	if h := d.Hypervisor; h.Name != e.driver.Name() || h.Version != e.driver.Version() || d.VCPUs != e.shape.VCPUs || d.Memory != e.shape.Memory {
		return nil, fmt.Errorf("open checkpoint: its device state is of %s with %d virtual CPUs and %d MB, this is %s with %d and %d MB",
			h.Version, d.VCPUs, d.Memory>>20, e.driver.Version(), e.shape.VCPUs, e.shape.Memory>>20)
	}
	for _, path := range []string{filepath.Join(dir, "memory"), filepath.Join(dir, "disk"), e.image.Root} {
		sums := path + ".map"
		if path == e.image.Root {
			sums = filepath.Join(e.image.Dir, "root.map")
		}
		s, err := slice.Open(path, sums)
		if err != nil {
			return nil, err
		}
		opened = append(opened, s)
	}
	memory, disk, root := opened[0], opened[1], opened[2]
	if memory.ID() != d.MemoryImage.Slices[0] || disk.ID() != d.Disks[0].Slices[0] {
		return nil, fmt.Errorf("open checkpoint: memory and disk are not those of its descriptor")
	}
	image, err := slice.NewImage(memory)
	if err != nil {
		return nil, err
	}
	if g, err = e.expectGeneration(); err != nil {
		return nil, err
	}
	g.folder = dir
	e.freezeGeneration(g, d.DeviceState, []*slice.Slice{disk, root})
	if err = e.deliverMemory(g, image); err != nil {
		return nil, err
	}
	e.push(g, loadTrace(filepath.Join(dir, traceFile)))
	return g, nil
}

// makeCheckpoint boots the guest and freezes it.
func (e *Engine) makeCheckpoint(ctx context.Context, dir string) (err error) {
	e.notify(Notice{Progress: "booting the guest"})
	tmp, remove, err := e.temporary()
	if err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	defer remove()
	// Before that, while the disk is still as full as it was.
	defer func() { err = e.blameDisk(err) }()
	b, err := e.boot(ctx, tmp)
	if err != nil {
		return err
	}
	defer b.end()
	select {
	case <-time.After(reportDelay):
	case <-ctx.Done():
		return ctx.Err()
	}
	state, err := b.vm.Suspend(ctx)
	if err != nil {
		return err
	}
	b.vm.Kill()
	memory, _, err := slice.Seal(ctx, b.memory, filepath.Join(tmp, "memory.map"), slice.Memory, slice.SealOptions{})
	if err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	defer memory.Close()
	if err := b.top.Seal(ctx, filepath.Join(tmp, "disk.map")); err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	image, err := slice.NewImage(memory)
	if err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	machine := e.driver.Describe(e.shape)
	d := &descriptor.Descriptor{
		ID: rand.Text(), Created: time.Now(),
		Hypervisor:  descriptor.Hypervisor{Name: e.driver.Name(), Version: e.driver.Version(), Accelerator: machine.Accelerator, Machine: machine.Machine},
		VCPUs:       e.shape.VCPUs,
		Memory:      e.shape.Memory,
		Devices:     machine.Devices,
		MemoryMap:   machine.MemoryMap,
		MemoryImage: descriptor.Image{Name: "ram", Size: e.shape.Memory, Slices: image.IDs()},
		Disks:       []descriptor.Image{{Name: "disk", Size: b.top.Size(), Slices: []slice.ID{b.top.ID(), b.root.ID()}}},
		ZeroPages:   image.Zeros(),
		DeviceState: state,
	}
	if err := d.Save(filepath.Join(tmp, "descriptor")); err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	return nil
}

// fullDisk is what a disk has left, in bytes, that has no room for a guest.
const fullDisk = 4 << 20

// blameDisk finds out that the cache's disk is full: a hypervisor whose RAM file
// cannot grow dies of SIGBUS, which by itself explains nothing.
func (e *Engine) blameDisk(err error) error {
	var st unix.Statfs_t
	if err != nil && unix.Statfs(e.image.Dir, &st) == nil && int64(st.Bavail)*st.Bsize < fullDisk {
		err = fmt.Errorf("%w: %w", err, unix.ENOSPC)
	}
	return e.image.OutOfSpace(err)
}

// booted is a guest whose agent has said that it is up.
type booted struct {
	e             *Engine
	vm            hypervisor.VM // nil before it runs
	memory        string        // the RAM file
	top, root     *slice.Slice
	control, data *port
}

func (b *booted) end() {
	if b.vm != nil {
		b.vm.Kill()
	}
	for _, p := range []*port{b.control, b.data} {
		if p != nil {
			p.Close()
		}
	}
	b.e.tap.Remove("boot-disk")
	b.e.net.Remove(0)
	for _, s := range []*slice.Slice{b.top, b.root} {
		if s != nil {
			s.Close()
		}
	}
}

// boot boots the image with RAM and the disk's writes in dir.
func (e *Engine) boot(ctx context.Context, dir string) (_ *booted, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	b := &booted{e: e, memory: filepath.Join(dir, "memory")}
	defer func() {
		if err != nil {
			b.end()
			err = fmt.Errorf("boot the guest: %w", err)
		}
	}()
	if b.root, err = e.rootSlice(ctx); err != nil {
		return nil, err
	}
	if b.top, err = slice.Create(filepath.Join(dir, "disk"), b.root.Size(), slice.Disk); err != nil {
		return nil, err
	}
	image, err := slice.NewImage(b.top, b.root)
	if err != nil {
		return nil, err
	}
	disk, err := e.tap.AddDisk("boot-disk", image)
	if err != nil {
		return nil, err
	}
	if err := emptyFile(b.memory, e.shape.Memory); err != nil {
		return nil, err
	}
	if b.control, err = newPort(agent.ControlPort); err != nil {
		return nil, err
	}
	if b.data, err = newPort(agent.DataPort); err != nil {
		return nil, err
	}
	tap, err := e.net.AddTap(0)
	if err != nil {
		return nil, err
	}
	cfg := hypervisor.Config{
		Name: e.plan.Name(0), Dir: jobDir, Shape: e.shape, MemoryPath: b.memory, DiskPath: disk,
		Tap: tap, MAC: e.plan.MAC(0), Ports: []hypervisor.Port{b.control.machine, b.data.machine},
	}
	b.vm, err = e.driver.Boot(ctx, cfg, hypervisor.Kernel{Image: e.image.Kernel, Initrd: e.image.Initramfs, Cmdline: agent.KernelArguments})
	if err != nil {
		return nil, err
	}
	// The port stays open when the machine is gone, so that is waited for too.
	ready, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-b.vm.Done():
			stop(errors.New("the guest is gone"))
		case <-ready.Done():
		}
	}()
	if err := agent.NewControl(b.control).AwaitReady(ready); err != nil {
		if ctx.Err() == nil && ready.Err() != nil {
			err = context.Cause(ready)
		}
		return nil, fmt.Errorf("it does not boot: %w%s", err, lastWords(b.vm, cfg))
	}
	return b, nil
}

func emptyFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(size)
}
