package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/mpirun-sf/mpirun-sf/xen/evtchn"
	"github.com/mpirun-sf/mpirun-sf/xen/gntdev"
)

// Disk is a disk of a guest's, over a file.
type Disk struct {
	*Device
	file    *os.File
	sectors uint64
	cancel  context.CancelFunc
	done    chan struct{} // closed when nothing runs for it any more

	// Of the one that runs for it, or has stopped it.
	unmap   func() error
	channel *evtchn.Channel
	busy    *semaphore.Weighted // a weight of 1 for each request under way

	mu   sync.Mutex
	ring *sharedRing // nil before the guest has one, and after Close
	err  error       // why it does not go on
}

// firstDisk is the number of the device that Linux calls xvda.
const firstDisk = 202 << 8

// NewDisk gives a domain that is paused its disk, over the file at path.
func (b *Bus) NewDisk(ctx context.Context, domain uint16, path string) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the disk: %w", err)
	}
	info, err := f.Stat()
	if err == nil && (info.Size() == 0 || info.Size()%sectorSize != 0) {
		err = fmt.Errorf("open the disk: %s has %d bytes, which are not whole sectors", path, info.Size())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	number := strconv.Itoa(firstDisk)
	d, err := b.Announce(ctx, domain, "vbd", firstDisk,
		map[string]string{"virtual-device": number, "device-type": "disk"},
		// What a clone writes vanishes with it, so nothing need ever be flushed.
		map[string]string{"feature-flush-cache": "0", "mode": "w"})
	if err != nil {
		f.Close()
		return nil, err
	}
	disk := &Disk{Device: d, file: f, sectors: uint64(info.Size() / sectorSize), busy: semaphore.NewWeighted(blockSlots)}
	disk.start()
	return disk, nil
}

func (d *Disk) start() {
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel, d.done = cancel, make(chan struct{})
	go func() {
		defer close(d.done)
		defer cancel()
		d.fail(d.run(ctx))
		// What is under way is in the guest's memory when this ends, or not at all.
		if d.busy.Acquire(context.Background(), blockSlots) == nil {
			d.busy.Release(blockSlots)
		}
	}()
}

func (d *Disk) run(ctx context.Context) error {
	if d.channel == nil {
		limited, cancel := context.WithTimeout(ctx, connectLimit)
		defer cancel()
		if err := d.connect(limited); err != nil {
			return err
		}
	}
	for {
		if err := d.serve(ctx); err != nil {
			return err
		}
		if err := d.channel.Wait(ctx); err != nil {
			return err
		}
	}
}

func (d *Disk) connect(ctx context.Context) error {
	if err := d.awaitDriver(ctx); err != nil {
		return err
	}
	if abi, err := d.bus.Store.Read(ctx, d.front+"/protocol"); err != nil || abi != "x86_64-abi" {
		return errors.Join(fmt.Errorf("the guest's driver speaks %.20q, not x86_64-abi", abi), err)
	}
	ref, err := d.entry(ctx, "ring-ref")
	if err != nil {
		return err
	}
	port, err := d.entry(ctx, "event-channel")
	if err != nil {
		return err
	}
	page, unmap, err := d.bus.Map(d.domain, ref)
	if err != nil {
		return err
	}
	channel, err := d.bus.Bind(d.domain, port)
	if err != nil {
		return errors.Join(err, unmap())
	}
	d.channel, d.unmap = channel, unmap
	d.mu.Lock()
	d.ring = &sharedRing{page: page, slot: blockSlot, slots: blockSlots}
	d.mu.Unlock()
	for _, e := range [][2]string{{"sectors", strconv.FormatUint(d.sectors, 10)}, {"sector-size", strconv.Itoa(sectorSize)}, {"info", "0"}} {
		if err := d.bus.Store.Write(ctx, d.back+"/"+e[0], e[1]); err != nil {
			return err
		}
	}
	return d.setState(ctx, connected)
}

// serve begins all requests that are there. They end in any order: one may wait for
// another host, and others need not wait for it.
func (d *Disk) serve(ctx context.Context) error {
	for {
		if err := d.busy.Acquire(ctx, 1); err != nil {
			return err
		}
		var b [blockSlot]byte
		d.mu.Lock()
		ok, err := d.ring.next(b[:])
		d.mu.Unlock()
		if !ok {
			d.busy.Release(1)
			return err
		}
		q := parseBlockRequest(b[:])
		go func() {
			defer d.busy.Release(1)
			status := int16(blockOK)
			if err := d.do(q); errors.Is(err, errors.ErrUnsupported) {
				status = blockUnsupported
			} else if err != nil {
				status = blockFailed
			}
			d.mu.Lock()
			notify := d.ring.answer(q.answer(status))
			d.mu.Unlock()
			if notify {
				d.fail(d.channel.Notify())
			}
		}()
	}
}

// do does one request.
func (d *Disk) do(q blockRequest) error {
	switch q.op {
	case blockFlush:
		return nil
	case blockRead, blockWrite:
	default:
		return errors.ErrUnsupported
	}
	n, err := q.bytes(d.sectors)
	if err != nil {
		return err
	}
	content, at := make([]byte, n), int64(q.sector)*sectorSize
	var parts []gntdev.Segment
	rest := content
	for _, s := range q.segments {
		size := (int(s.last-s.first) + 1) * sectorSize
		parts = append(parts, gntdev.Segment{
			Domain: d.domain, Ref: s.ref, Offset: int(s.first) * sectorSize, Bytes: rest[:size], Write: q.op == blockRead,
		})
		rest = rest[size:]
	}
	if q.op == blockRead {
		if _, err := d.file.ReadAt(content, at); err != nil {
			return err
		}
		return d.bus.Copy(parts)
	}
	if err := d.bus.Copy(parts); err != nil {
		return err
	}
	_, err = d.file.WriteAt(content, at)
	return err
}

// Drain ends what is under way of a guest that does not run any more. Until Resume,
// nothing more is begun: what the guest has asked for, its successor asks for again.
func (d *Disk) Drain(ctx context.Context) error {
	d.cancel()
	select {
	case <-d.done:
		return d.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait for what %s is asked for: %w", d.name, ctx.Err())
	}
}

// Resume goes on after Drain.
func (d *Disk) Resume() { d.start() }

func (d *Disk) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && d.err == nil && !errors.Is(err, context.Canceled) {
		d.err = fmt.Errorf("%s: %w", d.name, err)
	}
}

// Err says why the disk serves nothing any more, nil while it does.
func (d *Disk) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close ends it. The domain keeps its memory until then.
func (d *Disk) Close(ctx context.Context) error {
	d.cancel()
	select {
	case <-d.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for what %s is asked for: %w", d.name, ctx.Err())
	}
	errs := []error{d.forget(ctx), d.file.Close()}
	if d.channel != nil {
		errs = append(errs, d.channel.Close(), d.unmap())
		d.channel = nil
	}
	return errors.Join(errs...)
}
