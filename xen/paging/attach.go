package paging

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/bits-and-blooms/bitset"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/evtchn"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// Attach makes a Pager of a domain that is paused and has no RAM: it gives it the frames of pieces, whose content is in the memory file, and
// brings those that its processors need at once. An error that matches [hypervisor.ErrNotSupported] says why the domain's memory cannot come on
// demand; the domain is then as it was.
func Attach(ctx context.Context, xen *privcmd.Handle, d privcmd.Domain, pieces []Piece, vcpus []stream.VCPU, memory io.ReaderAt) (*Pager, error) {
	if n := len(vcpus); n > 1 {
		return nil, hypervisor.Lacksf("the memory of a guest with %d processors does not come on demand: clones of one with two were seen to stand still", n)
	}
	p, err := attach(xen, d)
	if err != nil {
		return nil, err
	}
	p.pieces, p.memory = pieces, memory
	if err := p.start(ctx, xen, vcpus); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// attach makes the ring.
func attach(xen *privcmd.Handle, d privcmd.Domain) (*Pager, error) {
	frame, err := xen.Param(d, privcmd.PagingRing)
	if err != nil {
		return nil, err
	}
	frames := []uint64{frame}
	m, err := xen.Map(d, frames, true)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // of a clone's clone: it was withdrawn from the first
		if _, err := xen.Populate(d, frames, 0); err != nil {
			return nil, err
		}
		m, err = xen.Map(d, frames, true)
	}
	if err != nil {
		return nil, err
	}
	p := &Pager{xen: xen, domain: d, release: m.Unmap, ring: ring{page: m.Bytes}, in: bitset.New(0)}
	p.ring.clear()
	port, err := xen.EnablePaging(d)
	if err != nil {
		return nil, errors.Join(err, m.Unmap())
	}
	if p.channel, err = evtchn.Bind(uint16(d), port); err != nil {
		return nil, errors.Join(err, m.Unmap())
	}
	// The guest must not write to it.
	if err := xen.Withdraw(d, frame); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// start gives the domain frames, and the pages that it needs at once.
func (p *Pager) start(ctx context.Context, xen *privcmd.Handle, vcpus []stream.VCPU) error {
	for _, c := range p.pieces {
		if err := p.pageOut(ctx, xen, c); err != nil {
			return err
		}
	}
	eager, err := Eager(vcpus, p.readFrame)
	if err != nil {
		return err
	}
	return p.bringEager(ctx, eager)
}

// pageOut gives the domain a piece's frames without content: at most those of a superpage are populated at once, and are out before
// the next are.
func (p *Pager) pageOut(ctx context.Context, xen *privcmd.Handle, c Piece) error {
	for c.Count > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(privcmd.SuperFrames-c.First%privcmd.SuperFrames, c.Count)
		frames := Piece{First: c.First, Count: n}.Frames()
		err := unix.ENOMEM
		if n == privcmd.SuperFrames {
			if _, e := xen.Populate(p.domain, frames[:1], privcmd.SuperOrder); e == nil {
				err = 0
			} else if !errors.Is(e, unix.ENOMEM) {
				return e
			}
		}
		if err != 0 {
			if _, err := xen.Populate(p.domain, frames, 0); err != nil {
				return err
			}
		}
		kept, e := xen.PageOut(p.domain, frames)
		if e != nil {
			return e
		}
		if len(kept) > 0 { // nobody has frames in use that have just been made
			return fmt.Errorf("frame %#x and %d others of domain %d cannot be paged out: they are in use", kept[0], len(kept)-1, p.domain)
		}
		c.First, c.Count = c.First+n, c.Count-n
	}
	return nil
}

// readFrame reads a page of RAM from the memory file. What is not RAM is read as zeros: page tables are nowhere else.
func (p *Pager) readFrame(frame uint64, page []byte) error {
	at, ok := p.locate(frame)
	if !ok {
		clear(page)
		return nil
	}
	if n, err := p.memory.ReadAt(page, at.offset()); n < len(page) {
		return fmt.Errorf("read its memory file: %w", err)
	}
	return nil
}
