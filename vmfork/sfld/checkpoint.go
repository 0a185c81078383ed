package sfld

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
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
//	<image>/checkpoints/<key>/         descriptor, memory, memory.map, disk, disk.map
//
// The key is over all that the state depends on besides the image: the shape,
// the hypervisor, and the format.
type checkpoint struct {
	desc    *descriptor.Descriptor
	memory  *slice.Image
	slices  []*slice.Slice
	disk    []*slice.Slice // top first
	memPath string         // memtap's file
}

// checkpointFormat changes when a checkpoint of an older program must not be
// used by this one.
const checkpointFormat = "2"

// How long a guest may take to boot. Under TCG on a busy machine, boots of 8 s
// were seen.
const bootLimit = 3 * time.Minute

// reportDelay is how long the guest is left alone after its boot. Linux
// reports free pages two seconds after they became free (mm/page_reporting.c);
// before, what booting left in them would count as memory to be fetched.
const reportDelay = 2500 * time.Millisecond

func (c *checkpoint) close() {
	for _, s := range c.slices {
		s.Close()
	}
}

// checkpoint finds or makes the checkpoint of the image for the shape.
func (e *Engine) checkpoint(ctx context.Context) (c *checkpoint, booted time.Duration, err error) {
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
	c, err = e.openCheckpoint(dir)
	if err == nil {
		return c, 0, nil
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
	c, err = e.openCheckpoint(dir)
	return c, booted, err
}

// Names of what only a living job has in an image's folder.
const (
	tmpFolders = "checkpoint-tmp-"
	tmpDisks   = "clone-tmp-"
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
	// Who uses a clone's disk has it open and needs no name for it any more.
	disks, _ := filepath.Glob(filepath.Join(image, tmpDisks+"*"))
	for _, path := range disks {
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

func (e *Engine) openCheckpoint(dir string) (c *checkpoint, err error) {
	c = &checkpoint{}
	defer func() {
		if err != nil {
			c.close()
			c = nil
		}
	}()
	if c.desc, err = descriptor.Load(filepath.Join(dir, "descriptor")); err != nil {
		return c, err
	}
	if h := c.desc.Hypervisor; h.Name != e.driver.Name() || h.Version != e.driver.Version() || c.desc.VCPUs != e.shape.VCPUs || c.desc.Memory != e.shape.Memory {
		return c, fmt.Errorf("open checkpoint: its device state is of %s with %d virtual CPUs and %d MB, this is %s with %d and %d MB",
			h.Version, c.desc.VCPUs, c.desc.Memory>>20, e.driver.Version(), e.shape.VCPUs, e.shape.Memory>>20)
	}
	open := func(data, sums string) *slice.Slice {
		if err != nil {
			return nil
		}
		var s *slice.Slice
		if s, err = slice.Open(data, sums); err == nil {
			c.slices = append(c.slices, s)
		}
		return s
	}
	memory := open(filepath.Join(dir, "memory"), filepath.Join(dir, "memory.map"))
	disk := open(filepath.Join(dir, "disk"), filepath.Join(dir, "disk.map"))
	root := open(e.image.Root, filepath.Join(e.image.Dir, "root.map"))
	if err != nil {
		return c, err
	}
	if memory.ID() != c.desc.MemoryImage.Slices[0] || disk.ID() != c.desc.Disks[0].Slices[0] {
		return c, fmt.Errorf("open checkpoint: memory and disk are not those of its descriptor")
	}
	c.disk = []*slice.Slice{disk, root}
	if c.memory, err = slice.NewImage(memory); err != nil {
		return c, err
	}
	return c, nil
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
	e      *Engine
	vm     hypervisor.VM
	memory string // the RAM file
	top    *slice.Slice
	root   *slice.Slice
}

func (b *booted) end() {
	b.vm.Kill()
	b.e.tap.Remove("boot-disk")
	b.top.Close()
	b.root.Close()
}

// boot boots the image with RAM and the disk's writes in dir.
func (e *Engine) boot(ctx context.Context, dir string) (b *booted, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	b = &booted{e: e, memory: filepath.Join(dir, "memory")}
	if b.root, err = e.rootSlice(ctx); err != nil {
		return nil, fmt.Errorf("boot the guest: %w", err)
	}
	if b.top, err = slice.Create(filepath.Join(dir, "disk"), b.root.Size(), slice.Disk); err != nil {
		b.root.Close()
		return nil, fmt.Errorf("boot the guest: %w", err)
	}
	fail := func(err error) (*booted, error) {
		e.tap.Remove("boot-disk")
		b.top.Close()
		b.root.Close()
		return nil, err
	}
	image, err := slice.NewImage(b.top, b.root)
	if err != nil {
		return fail(fmt.Errorf("boot the guest: %w", err))
	}
	disk, err := e.tap.AddDisk("boot-disk", image)
	if err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(b.memory, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		err = f.Truncate(e.shape.Memory)
		f.Close()
	}
	if err != nil {
		return fail(fmt.Errorf("boot the guest: %w", err))
	}
	cfg, err := e.config(0, b.memory, disk)
	if err != nil {
		return fail(err)
	}
	b.vm, err = e.driver.Boot(ctx, cfg, hypervisor.Kernel{Image: e.image.Kernel, Initrd: e.image.Initramfs})
	if err != nil {
		return fail(err)
	}
	if err := agent.AwaitReady(ctx, b.vm.Channel()); err != nil {
		select { // the channel may break a moment before it is known why
		case <-b.vm.Done():
		case <-time.After(time.Second):
		}
		words := lastWords(b.vm, cfg)
		b.vm.Kill()
		return fail(fmt.Errorf("the guest does not boot: %w%s", err, words))
	}
	return b, nil
}
