package carrier

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// A generation on its way to other hosts.
//
//  1. The coordinator has the host that froze it export it: its slices can be
//     read from there, and its descriptor is published, which has the device
//     state, and what each slice knows of each of its blocks.
//  2. It has other hosts import it. They receive the descriptor, all at once if
//     there is multicast. Slices that they have already, from a generation
//     before, they use; the others they open as far slices, without a block.
//  3. From here on it is a generation like one of their own. A read of a block
//     that has not come yet brings it.
//  4. The working set that the origin knows of is brought beside that, in bulk.

// fabric is what connects this host to the others.
type fabric struct {
	node      *mcdist.Node
	hosts     []mcdist.Host
	importing sync.Mutex // so that a slice is opened once
}

// Fabric says how hosts reach each other.
type Fabric struct {
	mcdist.Config        // its Self is the carrier's number
	VNI           uint32 // of the private network's VXLAN
	Port          uint16 // its UDP port
	MTU           int    // of the private network, bytes
}

// Join connects the job's part on this host to the parts on others. There is
// one such call, before the first machine.
func (c *Carrier) Join(ctx context.Context, f Fabric) error {
	self := f.Hosts[f.Self].Address
	mtu, err := network.FabricMTU(self)
	if err != nil {
		return err
	}
	if mtu < f.MTU {
		return fmt.Errorf("the private network needs packets of %d bytes, and %v carries %d: give the hosts' interfaces one MTU", f.MTU, self, mtu)
	}
	net := network.Fabric{VNI: f.VNI, Port: f.Port, MTU: f.MTU, Local: self, Gateway: f.Self == 0}
	for i, h := range f.Hosts {
		if i != f.Self {
			net.Hosts = append(net.Hosts, h.Address)
		}
	}
	if err := c.net.Join(ctx, net); err != nil {
		return err
	}
	node, err := mcdist.New(c.ctx, f.Config)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fabric = &fabric{node: node, hosts: f.Hosts}
	return nil
}

// Node is what gets blocks from other hosts, nil before Join.
func (c *Carrier) Node() *mcdist.Node {
	if f := c.connected(); f != nil {
		return f.node
	}
	return nil
}

func (c *Carrier) connected() *fabric {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fabric
}

// Place implements [Host].
func (c *Carrier) Place(_ context.Context, hosts map[int]int) error {
	f := c.connected()
	if f == nil {
		return nil
	}
	var errs []error
	for member, host := range hosts {
		if host < 0 || host == c.cfg.Number {
			errs = append(errs, c.net.Forget(member))
		} else {
			errs = append(errs, c.net.Locate(member, f.hosts[host].Address))
		}
	}
	return errors.Join(errs...)
}

// Export implements [Host].
func (c *Carrier) Export(_ context.Context, generation string, to []int) (out Exported, err error) {
	defer c.cfg.Trace.Begin("publish "+generation, "").Set("hosts", len(to)).End()
	f := c.connected()
	if f == nil {
		return out, errors.New("export a generation: there are no other hosts")
	}
	g, err := c.retain(generation)
	if err != nil {
		return out, err
	}
	defer c.release(g)
	fail := func(err error) (Exported, error) { return Exported{}, fmt.Errorf("export %s: %w", generation, err) }
	memory, disk := c.stacks(g)
	layers := slices.Concat(memory, disk)
	defer c.drop(layers)
	d, err := c.describe(g, memory, disk)
	if err != nil {
		return fail(err)
	}
	for _, s := range layers {
		if err := c.serve(f, s); err != nil {
			return fail(err)
		}
	}
	var buf bytes.Buffer
	if err := descriptor.Write(&buf, d); err != nil {
		return fail(err)
	}
	var object slice.ID
	rand.Read(object[:])
	if err := f.node.Publish(object, buf.Bytes(), to); err != nil {
		return fail(err)
	}
	c.mu.Lock()
	g.objects = append(g.objects, object)
	c.mu.Unlock()
	return Exported{Object: object, Origin: c.cfg.Number, Bytes: buf.Len(), Layers: c.name(layers)}, nil
}

// describe makes the descriptor for other hosts of a generation that has these
// slices.
func (c *Carrier) describe(g *generation, memory, disk []*slice.Slice) (*descriptor.Descriptor, error) {
	image, err := slice.NewImage(memory...)
	if err != nil {
		return nil, err
	}
	machine := c.driver.Describe(c.shape)
	d := &descriptor.Descriptor{
		ID: g.name, Created: time.Now(),
		Hypervisor:  descriptor.Hypervisor{Name: c.driver.Name(), Version: c.driver.Version(), Accelerator: machine.Accelerator, Machine: machine.Machine},
		VCPUs:       c.shape.VCPUs,
		Memory:      c.shape.Memory,
		Devices:     machine.Devices,
		MemoryMap:   machine.MemoryMap,
		MemoryImage: descriptor.Image{Name: "ram", Size: c.shape.Memory, Slices: image.IDs()},
		Disks:       []descriptor.Image{{Name: "disk", Size: disk[0].Size()}},
		ZeroPages:   image.Zeros(),
		DeviceState: g.state,
	}
	for _, s := range disk {
		d.Disks[0].Slices = append(d.Disks[0].Slices, s.ID())
	}
	layers := slices.Concat(memory, disk)
	for i, l := range c.name(layers) {
		d.Origins, d.Maps = append(d.Origins, l.Origin), append(d.Maps, layers[i].Map())
	}
	if len(g.trace) > 0 {
		if d.WorkingSet, err = g.trace.MarshalBinary(); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// serve lets other hosts read a slice, unless it is from another itself.
func (c *Carrier) serve(f *fabric, s *slice.Slice) error {
	c.mu.Lock()
	l := c.layers[s]
	skip := l.exported || l.fetch != nil
	if !skip {
		l.exported = true
		l.uses++
	}
	c.mu.Unlock()
	if skip {
		return nil
	}
	return f.node.Serve(s.ID(), s)
}

// Withdraw implements [Host].
func (c *Carrier) Withdraw(layers []slice.ID) {
	f := c.connected()
	if f == nil {
		return
	}
	for _, id := range layers {
		s := c.byID(id)
		if s == nil {
			continue
		}
		c.mu.Lock()
		l := c.layers[s]
		exported := l.exported
		l.exported = false
		c.mu.Unlock()
		if exported {
			f.node.Withdraw(id)
			c.drop([]*slice.Slice{s})
		}
		c.drop([]*slice.Slice{s}) // what byID holds
	}
}

// Import implements [Host].
func (c *Carrier) Import(ctx context.Context, generation string, from Exported) error {
	defer c.cfg.Trace.Begin("get "+generation, "").Set("bytes", from.Bytes).End()
	if err := c.bring(ctx, generation, from); err != nil {
		return fmt.Errorf("bring %s to %s: %w", generation, c.cfg.Host, err)
	}
	return nil
}

func (c *Carrier) bring(ctx context.Context, generation string, from Exported) error {
	f := c.connected()
	if f == nil {
		return errors.New("there are no other hosts")
	}
	data, err := f.node.Receive(ctx, from.Origin, from.Object)
	if err != nil {
		return err
	}
	d, err := descriptor.Read(bytes.NewReader(data))
	if err != nil {
		return err
	}
	if h := d.Hypervisor; h.Name != c.driver.Name() || h.Version != c.driver.Version() || d.VCPUs != c.shape.VCPUs || d.Memory != c.shape.Memory {
		return fmt.Errorf("its device state is of %s with %d virtual CPUs and %d MB, this is %s with %d and %d MB",
			h.Version, d.VCPUs, d.Memory>>20, c.driver.Version(), c.shape.VCPUs, c.shape.Memory>>20)
	}
	g, err := c.retain(generation)
	if err != nil {
		return err
	}
	defer c.release(g)
	layers, err := c.openLayers(ctx, f, d)
	if err != nil {
		return err
	}
	defer c.drop(layers)
	memory, disk := layers[:len(d.MemoryImage.Slices)], layers[len(d.MemoryImage.Slices):]
	image, err := slice.NewImage(memory...)
	if err != nil {
		return err
	}
	c.freezeGeneration(g, d.DeviceState, disk)
	var trace memtap.Trace
	if err := trace.UnmarshalBinary(d.WorkingSet); err != nil {
		trace = nil // it is only a guess
	}
	return c.deliverMemory(g, image, trace)
}

// openLayers opens the slices of a descriptor, memory first, and holds them.
func (c *Carrier) openLayers(ctx context.Context, f *fabric, d *descriptor.Descriptor) (layers []*slice.Slice, err error) {
	f.importing.Lock()
	defer f.importing.Unlock()
	for i, m := range d.Maps {
		s := c.byID(m.ID)
		if s == nil {
			if err = c.awaitLeft(ctx, m.ID); err == nil {
				s, err = c.openFar(f, m, d.Origins[i])
			}
			if err != nil {
				c.drop(layers)
				return nil, err
			}
			if i == len(d.MemoryImage.Slices)-1 || i == len(d.Maps)-1 {
				// The checkpoint's, on which all generations of the job are: what has
				// come of it is kept for forks to come.
				c.hold([]*slice.Slice{s})
			}
		}
		layers = append(layers, s)
	}
	return layers, nil
}

// openFar opens a slice of another host, and holds it.
func (c *Carrier) openFar(f *fabric, m slice.Map, origin int) (*slice.Slice, error) {
	if origin < 0 || origin >= len(f.hosts) || origin == c.cfg.Number {
		return nil, fmt.Errorf("slice %v is said to be on host %d, which has it not", m.ID, origin)
	}
	var fetch *mcdist.Fetch // before anybody reads
	s, err := c.scratch(func(path string) (*slice.Slice, error) {
		return slice.Far(path, m, func(ctx context.Context, first, n int64) error { return fetch.Bring(ctx, first, n) })
	})
	if err != nil {
		return nil, err
	}
	if fetch, err = f.node.Open(origin, m.ID, m.Size, s); err != nil {
		s.Close()
		return nil, err
	}
	s.SetPrefetch(fetch.Prefetch)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.layers[s] = &layer{uses: 1, origin: origin, fetch: fetch}
	return s, nil
}
