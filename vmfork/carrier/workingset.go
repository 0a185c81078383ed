package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
)

// What a VM reads of its memory first is much the same after each fork, and
// after each start from a checkpoint: the way of its kernel from where it stood
// to the agent and back. Each page is a fault that a virtual CPU waits for. So
// what was read the last time is pushed into the page cache before anybody asks
// ([memtap.Tap.Push]). It is a guess, and nothing ever waits for it.
//
//  1. At a live fork, the trace of the generation before is pushed as soon as
//     the new one's memory is delivered, beside the load of the device state.
//  2. The trace of the booted guest is kept with its checkpoint by the first job
//     whose VMs are ready, and pushed by later jobs while their hypervisors start.

// traceFile is the name of a trace in a checkpoint's folder.
const traceFile = "trace"

// push pushes a working set into a generation's memory, which was delivered. It
// ends with the generation. What could not be pushed is read when it is wanted;
// if that fails as well, it is time to say so.
func (c *Carrier) push(g *generation, trace memtap.Trace) {
	if len(trace) > 0 {
		c.background.Go(func() { c.tap.Push(c.ctx, g.name, trace) })
	}
}

// Trace implements [Host].
func (c *Carrier) Trace(_ context.Context, generation string) (memtap.Trace, error) {
	return c.tap.Trace(generation), nil
}

// KeepTrace keeps what was read of the booted guest with its checkpoint, if
// there is no trace yet. Without one, the next job has to read.
func (c *Carrier) KeepTrace(generation string, trace memtap.Trace) {
	g, err := c.retain(generation)
	if err != nil {
		return
	}
	if g.folder == "" || len(trace) == 0 { // it is not the cache's
		c.release(g)
		return
	}
	tmp := filepath.Join(c.image.Dir, fmt.Sprintf("%s%s-%d", tmpFiles, c.cfg.Job, c.number()))
	c.background.Go(func() {
		defer c.release(g)
		saveTrace(filepath.Join(g.folder, traceFile), tmp, trace)
	})
}

// saveTrace saves a trace at path, by way of the file tmp, unless there is one.
// What exists at path is whole.
func saveTrace(path, tmp string, trace memtap.Trace) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	data, err := trace.MarshalBinary()
	if err == nil {
		err = os.WriteFile(tmp, data, 0o600)
		defer os.Remove(tmp) // after the rename there is nothing to remove
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("keep the trace of a checkpoint: %w", err)
	}
	return nil
}

// loadTrace returns the trace at path, or none. A damaged one is removed, so
// that it is made again.
func loadTrace(path string) (trace memtap.Trace) {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, memtap.MaxTraceBytes+1))
	if err == nil {
		err = trace.UnmarshalBinary(data)
	}
	if errors.Is(err, memtap.ErrTrace) {
		os.Remove(path)
	}
	return trace
}
