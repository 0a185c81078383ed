package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/mpirun-sf/mpirun-sf/xen/gntdev"
)

// Disk is a disk of a guest's, over a file.
type Disk struct {
	*Device
	file    *os.File
	sectors uint64
	busy    *semaphore.Weighted // a weight of 1 for each request under way

	ringMu sync.Mutex
	ring   *sharedRing // nil before the guest has one
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
	disk.serve(disk.takeRing, disk.do)
	return disk, nil
}

func (d *Disk) takeRing(ctx context.Context) error {
	if abi, err := d.bus.Store.Read(ctx, d.front+"/protocol"); err != nil || abi != "x86_64-abi" {
		return errors.Join(fmt.Errorf("the guest's driver speaks %.20q, not x86_64-abi", abi), err)
	}
	page, err := d.mapPage(ctx, "ring-ref")
	if err != nil {
		return err
	}
	d.ring = &sharedRing{page: page, slot: blockSlot, slots: blockSlots}
	for _, e := range [][2]string{{"sectors", strconv.FormatUint(d.sectors, 10)}, {"sector-size", strconv.Itoa(sectorSize)}, {"info", "0"}} {
		if err := d.bus.Store.Write(ctx, d.back+"/"+e[0], e[1]); err != nil {
			return err
		}
	}
	return d.bind(ctx, "event-channel")
}

// do does what the guest asks for until ctx ends.
func (d *Disk) do(ctx context.Context) error {
	// What is under way then is in the guest's memory when this ends, or not at all.
	defer func() {
		if d.busy.Acquire(context.Background(), blockSlots) == nil {
			d.busy.Release(blockSlots)
		}
	}()
	for {
		if err := d.begin(ctx); err != nil {
			return err
		}
		if err := d.channel.Wait(ctx); err != nil {
			return err
		}
	}
}

// begin begins all requests that are there. They end in any order: one may wait for
// another host, and others need not wait for it.
func (d *Disk) begin(ctx context.Context) error {
	for {
		if err := d.busy.Acquire(ctx, 1); err != nil {
			return err
		}
		var b [blockSlot]byte
		d.ringMu.Lock()
		ok, err := d.ring.next(b[:])
		d.ringMu.Unlock()
		if !ok {
			d.busy.Release(1)
			return err
		}
		q := parseBlockRequest(b[:])
		go func() {
			defer d.busy.Release(1)
			status := int16(blockOK)
			if err := d.doOne(q); errors.Is(err, errors.ErrUnsupported) {
				status = blockUnsupported
			} else if err != nil {
				status = blockFailed
			}
			d.ringMu.Lock()
			notify := d.ring.answer(q.answer(status))
			d.ringMu.Unlock()
			if notify {
				d.fail(d.channel.Notify())
			}
		}()
	}
}

// doOne does one request.
func (d *Disk) doOne(q blockRequest) error {
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

// Close ends it.
func (d *Disk) Close(ctx context.Context) error { return d.close(ctx, d.file) }
