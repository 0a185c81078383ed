package xen

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

var errNotStarted = errors.New("it was not restored yet")

// Suspend implements [hypervisor.VM].
func (v *vm) Suspend(ctx context.Context) ([]byte, error) {
	v.op.Lock()
	defer v.op.Unlock()
	ctx, cancel := v.limit(ctx)
	defer cancel()
	state, err := v.suspend(ctx)
	if err != nil {
		return nil, fmt.Errorf("suspend %s: %w", v.cfg.Name, err)
	}
	return state, nil
}

func (v *vm) suspend(ctx context.Context) ([]byte, error) {
	if v.id == 0 { // which is this domain's own number
		return nil, errNotStarted
	}
	if v.pager != nil { // xl save reads all of it
		if err := v.pager.finish(ctx); err != nil {
			return nil, err
		}
	}
	s, finish, err := v.sink(ctx)
	if err != nil {
		return nil, err
	}
	saved, err := v.save(ctx, s)
	if err := errors.Join(err, finish()); err != nil {
		return nil, err
	}
	for _, p := range v.parts {
		if err := p.Drain(ctx); err != nil {
			return nil, err
		}
	}
	return encodeState(saved, &s.frames, s.kept)
}

// sink makes what takes the pages: into the memory file of a machine that was booted, and
// else to be compared with it.
func (v *vm) sink(ctx context.Context) (s *sink, finish func() error, err error) {
	s = &sink{layout: v.layout}
	if v.restored {
		r, err := v.startReader(ctx)
		if err != nil {
			return nil, nil, err
		}
		v.dirtied = newComparer(r, v.cfg.Memory)
		s.ram = v.dirtied.compare
		if v.d.guests == PV {
			v.machine = &translation{layout: v.layout, dirtied: v.dirtied.dirtied}
			s.machine = v.machine
		}
		return s, r.Close, nil
	}
	f, err := os.OpenFile(v.cfg.MemoryPath, os.O_WRONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	w := &imageWriter{f: f, whole: v.image}
	v.image = true
	s.ram = w.write
	return s, func() error { return errors.Join(w.flush(), f.Close()) }, nil
}

// save has xl save the domain, which is paused afterwards.
func (v *vm) save(ctx context.Context, s *sink) (*stream.Domain, error) {
	r, w, err := memoryPipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { r.Close() })()
	type result struct {
		domain *stream.Domain
		err    error
	}
	read := make(chan result, 1)
	go func() {
		d, err := s.read(bufio.NewReaderSize(r, 1<<20))
		if err != nil {
			r.Close() // xl need not go on
		}
		read <- result{d, err}
	}()
	_, err = v.d.runTool(ctx, w, "save", "-p", fmt.Sprint(v.id), inheritedFile)
	w.Close()
	got := <-read
	if ctx.Err() != nil { // the pipe was closed for that
		return nil, cmp.Or(err, ctx.Err())
	}
	if got.err != nil && !(err != nil && errors.Is(got.err, stream.ErrTruncated)) {
		return nil, got.err
	}
	return got.domain, err
}

// Resume implements [hypervisor.VM].
func (v *vm) Resume(ctx context.Context) error {
	v.op.Lock()
	defer v.op.Unlock()
	err := ctx.Err()
	if v.id == 0 {
		err = errNotStarted
	}
	if err != nil {
		return fmt.Errorf("resume %s: %w", v.cfg.Name, err)
	}
	for _, p := range v.parts {
		p.Resume()
	}
	if err := v.d.xen.Unpause(v.id); err != nil {
		return fmt.Errorf("resume %s: %w", v.cfg.Name, err)
	}
	return nil
}

// Dirtied implements [hypervisor.VM].
func (v *vm) Dirtied(context.Context) (*bitset.BitSet, io.ReaderAt, error) {
	v.op.Lock()
	defer v.op.Unlock()
	if v.dirtied == nil {
		return nil, nil, fmt.Errorf("find the pages that %s has written: it was not restored and suspended", v.cfg.Name)
	}
	r := &ram{xen: v.d.xen, id: v.id, frame: v.layout.frame, gone: v.ctx.Done()}
	if m := v.machine; m != nil {
		r.frame, r.tables = m.machine, m.tables
	}
	return v.dirtied.dirtied, r, nil
}

// Restore implements [hypervisor.VM].
func (v *vm) Restore(ctx context.Context, b []byte) error {
	err := v.restore(ctx, b)
	if err == nil {
		return nil
	}
	if v.ctx.Err() != nil && v.Err() == nil {
		return fmt.Errorf("restore %s: it was killed", v.cfg.Name)
	}
	err = fmt.Errorf("restore %s: %w", v.cfg.Name, err)
	if ctx.Err() != nil {
		return err
	}
	return v.end(err)
}

func (v *vm) restore(ctx context.Context, b []byte) error {
	v.op.Lock()
	defer v.op.Unlock()
	ctx, cancel := v.limit(ctx)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := decodeState(b, v.d.guests)
	if err != nil {
		return fmt.Errorf("the device state does not load: %w", err)
	}
	if v.d.guests == PV {
		if err := v.loadWhole(ctx, b); err != nil {
			return err
		}
		return v.run(ctx)
	}
	if err := v.load(ctx, s); err != nil {
		return fmt.Errorf("the device state does not load: %w", err)
	}
	if err := v.giveMemory(ctx, s); err != nil {
		return err
	}
	return v.run(ctx)
}

// giveMemory has the machine's memory come as it is touched where Xen can do that for it, and else at once.
func (v *vm) giveMemory(ctx context.Context, s *state) error {
	if v.d.paging == nil {
		if err := v.onDemand(ctx, s); !errors.Is(err, hypervisor.ErrNotSupported) {
			return err
		}
	}
	return v.fill(ctx, &s.frames)
}

// load has xl make a domain of a state.
func (v *vm) load(ctx context.Context, s *state) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	go func() { // more than a pipe holds waits for xl to read
		io.Copy(w, bytes.NewReader(s.saved))
		w.Close()
	}()
	defer w.Close()
	return v.create(ctx, hypervisor.Kernel{}, r, "restore", "-p", "-e")
}
