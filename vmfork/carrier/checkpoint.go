package carrier

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
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
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

// Booted is the checkpoint of a booted guest, as a generation.
type Booted struct {
	Took   time.Duration // boot and checkpoint, 0 if it was found
	State  int           // bytes of device state
	Disk   int64         // bytes of its disk
	Layers []Layer
}

// Checkpoint finds or makes the checkpoint of an image for the machines' shape,
// as a generation. The carrier keeps the image until the job's end.
func (c *Carrier) Checkpoint(ctx context.Context, image *guest.Image, generation string) (out Booted, err error) {
	c.image = image
	sum := sha256.Sum256(fmt.Append(nil, checkpointFormat, "\n", c.driver.Name(), "\n", c.driver.Version(), "\n", c.shape.VCPUs, "\n", c.shape.Memory))
	dir := filepath.Join(image.Dir, "checkpoints", hex.EncodeToString(sum[:6]))
	unlock, err := image.Lock(ctx, "checkpoint", bootLimit+time.Minute, func() {
		c.cfg.Events.Progress("another mpirun-sf makes this guest's checkpoint, waiting for it")
	})
	if err != nil {
		return out, err
	}
	defer unlock()
	sweep(image.Dir)
	g, err := c.openCheckpoint(ctx, dir, generation)
	if err != nil {
		if _, missing := os.Stat(dir); missing == nil {
			// A file that was truncated, damaged or lost costs a boot, not the job.
			c.cfg.Events.Notice(fmt.Sprintf("the checkpoint in the cache cannot be used and is made again (%v)", err))
			os.RemoveAll(dir)
		}
		begin := time.Now()
		if err := c.makeCheckpoint(ctx, dir); err != nil {
			return out, err
		}
		out.Took = time.Since(begin)
		if g, err = c.openCheckpoint(ctx, dir, generation); err != nil {
			return out, err
		}
	}
	out.State, out.Disk, out.Layers = len(g.state), g.disk[0].Size(), c.layersOf(g)
	return out, nil
}

// ColdBoot boots the guest to where its agent answers, throws it away, and
// returns how long that took.
func (c *Carrier) ColdBoot(ctx context.Context, image *guest.Image) (time.Duration, error) {
	c.image = image
	unlock, err := image.Lock(ctx, "checkpoint", bootLimit, nil)
	if err != nil {
		return 0, err
	}
	dir, remove, err := c.temporary()
	unlock()
	if err != nil {
		return 0, fmt.Errorf("boot the guest: %w", err)
	}
	defer remove()
	begin := time.Now()
	b, err := c.boot(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer b.end()
	return time.Since(begin), nil
}

// Names of what only a living job has in an image's folder.
const (
	tmpFolders = "checkpoint-tmp-"
	tmpFiles   = "clone-tmp-"
)

// temporary makes a folder beside the checkpoints, with a lock that says that
// its maker lives.
func (c *Carrier) temporary() (dir string, remove func(), err error) {
	if dir, err = os.MkdirTemp(c.image.Dir, tmpFolders); err != nil {
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
func (c *Carrier) rootSlice(ctx context.Context) (*slice.Slice, error) {
	mapPath := filepath.Join(c.image.Dir, "root.map")
	s, err := slice.Open(c.image.Root, mapPath)
	if err != nil {
		os.Remove(mapPath)
		s, _, err = slice.Seal(ctx, c.image.Root, mapPath, slice.Disk, slice.SealOptions{})
	}
	return s, err
}

// openCheckpoint makes a generation of what is in dir.
func (c *Carrier) openCheckpoint(ctx context.Context, dir, generation string) (_ *generation, err error) {
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
	if h := d.Hypervisor; h.Name != c.driver.Name() || h.Version != c.driver.Version() || d.VCPUs != c.shape.VCPUs || d.Memory != c.shape.Memory {
		return nil, fmt.Errorf("open checkpoint: its device state is of %s with %d virtual CPUs and %d MB, this is %s with %d and %d MB",
			h.Version, d.VCPUs, d.Memory>>20, c.driver.Version(), c.shape.VCPUs, c.shape.Memory>>20)
	}
	for _, path := range []string{filepath.Join(dir, "memory"), filepath.Join(dir, "disk"), c.image.Root} {
		sums := path + ".map"
		if path == c.image.Root {
			sums = filepath.Join(c.image.Dir, "root.map")
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
	trace := loadTrace(filepath.Join(dir, traceFile))
	if err := c.Found(ctx, generation, Instant{d.DeviceState, image, []*slice.Slice{disk, root}, trace}); err != nil {
		opened = nil // they are the generation's, and went with it
		return nil, err
	}
	opened = nil
	g, err := c.retain(generation)
	if err != nil {
		return nil, err
	}
	g.folder = dir
	c.release(g)
	return g, nil
}

// makeCheckpoint boots the guest and freezes it.
func (c *Carrier) makeCheckpoint(ctx context.Context, dir string) (err error) {
	defer c.cfg.Trace.Begin("boot and checkpoint", "").End()
	c.cfg.Events.Progress("booting the guest")
	tmp, remove, err := c.temporary()
	if err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	defer remove()
	// Before that, while the disk is still as full as it was.
	defer func() { err = c.blameDisk(err) }()
	b, err := c.boot(ctx, tmp)
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
	machine := c.driver.Describe(c.shape)
	d := &descriptor.Descriptor{
		ID: rand.Text(), Created: time.Now(),
		Hypervisor:  descriptor.Hypervisor{Name: c.driver.Name(), Version: c.driver.Version(), Accelerator: machine.Accelerator, Machine: machine.Machine},
		VCPUs:       c.shape.VCPUs,
		Memory:      c.shape.Memory,
		Devices:     machine.Devices,
		MemoryMap:   machine.MemoryMap,
		MemoryImage: descriptor.Image{Name: "ram", Size: c.shape.Memory, Slices: image.IDs()},
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
func (c *Carrier) blameDisk(err error) error {
	var st unix.Statfs_t
	if err != nil && unix.Statfs(c.image.Dir, &st) == nil && int64(st.Bavail)*st.Bsize < fullDisk {
		err = fmt.Errorf("%w: %w", err, unix.ENOSPC)
	}
	return c.image.OutOfSpace(err)
}

// booting is a guest whose agent has said that it is up.
type booting struct {
	c             *Carrier
	vm            hypervisor.VM // nil before it runs
	memory        string        // the RAM file
	top, root     *slice.Slice
	control, data *port
}

func (b *booting) end() {
	if b.vm != nil {
		b.vm.Kill()
	}
	for _, p := range []*port{b.control, b.data} {
		if p != nil {
			p.Close()
		}
	}
	b.c.tap.Remove("boot-disk")
	b.c.net.Remove(0)
	for _, s := range []*slice.Slice{b.top, b.root} {
		if s != nil {
			s.Close()
		}
	}
}

// boot boots the image with RAM and the disk's writes in dir.
func (c *Carrier) boot(ctx context.Context, dir string) (_ *booting, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	b := &booting{c: c, memory: filepath.Join(dir, "memory")}
	defer func() {
		if err != nil {
			b.end()
			err = fmt.Errorf("boot the guest: %w", err)
		}
	}()
	if b.root, err = c.rootSlice(ctx); err != nil {
		return nil, err
	}
	if b.top, err = slice.Create(filepath.Join(dir, "disk"), b.root.Size(), slice.Disk); err != nil {
		return nil, err
	}
	image, err := slice.NewImage(b.top, b.root)
	if err != nil {
		return nil, err
	}
	disk, err := c.tap.AddDisk("boot-disk", image)
	if err != nil {
		return nil, err
	}
	if err := emptyFile(b.memory, c.shape.Memory); err != nil {
		return nil, err
	}
	if b.control, err = newPort(agent.ControlPort); err != nil {
		return nil, err
	}
	if b.data, err = newPort(agent.DataPort); err != nil {
		return nil, err
	}
	tap, err := c.net.AddTap(0)
	if err != nil {
		return nil, err
	}
	cfg := hypervisor.Config{
		Name: c.cfg.Plan.Name(0), Dir: c.cfg.Dir, Shape: c.shape, MemoryPath: b.memory, DiskPath: disk,
		Tap: tap, MAC: c.cfg.Plan.MAC(0), Ports: []hypervisor.Port{b.control.machine, b.data.machine},
	}
	b.vm, err = c.driver.Boot(ctx, cfg, hypervisor.Kernel{Image: c.image.Kernel, Initrd: c.image.Initramfs, Cmdline: agent.KernelArguments})
	if err != nil {
		return nil, err
	}
	ready, stop := whileRuns(ctx, b.vm)
	defer stop()
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
