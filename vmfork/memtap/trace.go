package memtap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"slices"
	"sync"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// Run is some blocks of an image, one after the other.
type Run struct{ First, Count uint32 }

// Trace is what was read of a memory file, in order, no block twice: the working set of those that run over it, as far
// as they had to ask for it.
type Trace []Run

// Limits of a trace, in blocks.
const (
	// maxTrace bounds all of it. Whether what was pushed was also used cannot be told, so what was pushed first gives way
	// to what was read, and comes back as a read if it is wanted still.
	maxTrace = 32 << 20 / slice.BlockSize
	// maxOwn bounds what was read, the first of it. What a VM needs to go on after a fork comes first; later it is its
	// program's data, of which the next fork wants another part.
	maxOwn = 16 << 20 / slice.BlockSize
)

// Blocks returns how many blocks the trace has.
func (t Trace) Blocks() (n int64) {
	for _, r := range t {
		n += int64(r.Count)
	}
	return n
}

// cut divides a trace after a number of blocks.
func (t Trace) cut(blocks uint32) (head, rest Trace) {
	for i, run := range t {
		if run.Count > blocks {
			head = append(slices.Clone(t[:i]), Run{run.First, blocks})
			rest = append(Trace{{run.First + blocks, run.Count - blocks}}, t[i+1:]...)
			if blocks == 0 {
				head = head[:i]
			}
			return head, rest
		}
		blocks -= run.Count
	}
	return t, nil
}

// recorder makes the trace of one file.
type recorder struct {
	mu     sync.Mutex
	seen   *bitset.BitSet // blocks that were read or pushed
	own    Trace
	pushed Trace
	blocks uint32 // of own
}

// newRecorder makes room for all that reads can bring, so that none of them has to.
func newRecorder(size int64) *recorder {
	blocks := (size + slice.BlockSize - 1) / slice.BlockSize
	return &recorder{seen: bitset.New(uint(blocks)), own: make(Trace, 0, maxOwn)}
}

// read remembers that a range of bytes was read.
func (r *recorder) read(off, n int64) {
	first, end := uint(off/slice.BlockSize), uint((off+n+slice.BlockSize-1)/slice.BlockSize)
	r.mu.Lock()
	defer r.mu.Unlock()
	for b := first; b < end; b++ {
		if r.seen.Test(b) {
			continue
		}
		r.seen.Set(b)
		if r.blocks == maxOwn {
			continue
		}
		r.blocks++
		r.own = r.own.with(uint32(b))
	}
}

// with appends a block.
func (t Trace) with(block uint32) Trace {
	if n := len(t); n > 0 && t[n-1].First+t[n-1].Count == block {
		t[n-1].Count++
		return t
	}
	return append(t, Run{block, 1})
}

// push returns the next blocks of a run that nobody has read, at most limit, and what is left of the run after them. It
// counts them as pushed.
func (r *recorder) push(run Run, limit uint32) (next, rest Run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for run.Count > 0 && r.seen.Test(uint(run.First)) {
		run.First, run.Count = run.First+1, run.Count-1
	}
	next.First = run.First
	for run.Count > 0 && next.Count < limit && !r.seen.Test(uint(run.First)) {
		r.seen.Set(uint(run.First))
		r.pushed = r.pushed.with(run.First)
		run.First, run.Count = run.First+1, run.Count-1
		next.Count++
	}
	return next, run
}

// unread goes through those blocks of a trace that were neither read nor pushed.
func (r *recorder) unread(t Trace) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for _, run := range t {
			for b := int64(run.First); b < int64(run.First)+int64(run.Count); b++ {
				r.mu.Lock()
				seen := uint(b) >= r.seen.Len() || r.seen.Test(uint(b))
				r.mu.Unlock()
				if !seen && !yield(b) {
					return
				}
			}
		}
	}
}

// trace is what was pushed, the last of it, and then what was read.
func (r *recorder) trace() Trace {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := slices.Clone(r.pushed)
	for over := r.pushed.Blocks() + int64(r.blocks) - maxTrace; over > 0; {
		cut := min(over, int64(kept[0].Count))
		kept[0].First, kept[0].Count = kept[0].First+uint32(cut), kept[0].Count-uint32(cut)
		if over -= cut; kept[0].Count == 0 {
			kept = kept[1:]
		}
	}
	return append(kept, r.own...)
}

// Trace returns the trace of a memory file so far: what was pushed into it, and then what was read by itself. It is
// empty for a disk, and for a name that there is not.
func (t *Tap) Trace(name string) Trace {
	if f := t.fs.byName(name); f != nil && f.recorder != nil {
		return f.recorder.trace()
	}
	return nil
}

// The encoding of a trace: magic, version, number of runs, the runs (first, count), CRC-32C of all before, little
// endian.
const (
	traceMagic   = "SFTRACE\n"
	traceVersion = 1
	traceHeader  = len(traceMagic) + 4 + 4
	traceRun     = 4 + 4
	traceSum     = 4
)

// MaxTraceBytes is the length of the longest encoding of a trace.
const MaxTraceBytes = int64(traceHeader + maxTrace*traceRun + traceSum)

// ErrTrace is what the decoding of a trace wraps: it is damaged, or is none.
var ErrTrace = errors.New("not a trace that this program can use")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// MarshalBinary implements [encoding.BinaryMarshaler]. A trace that is too long is an error.
func (t Trace) MarshalBinary() ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("encode trace: %w", err)
	}
	out := append(make([]byte, 0, traceHeader+len(t)*traceRun+traceSum), traceMagic...)
	out = binary.LittleEndian.AppendUint32(out, traceVersion)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(t)))
	for _, r := range t {
		out = binary.LittleEndian.AppendUint32(out, r.First)
		out = binary.LittleEndian.AppendUint32(out, r.Count)
	}
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli)), nil
}

// UnmarshalBinary implements [encoding.BinaryUnmarshaler]. Every error is ErrTrace. Whether the runs are inside an image
// is for Push to see.
func (t *Trace) UnmarshalBinary(data []byte) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("decode trace: %w: %s", ErrTrace, fmt.Sprintf(format, args...))
	}
	if len(data) < traceHeader+traceSum || string(data[:len(traceMagic)]) != traceMagic {
		return fail("%d bytes that do not begin as one", len(data))
	}
	le := binary.LittleEndian
	if v := le.Uint32(data[len(traceMagic):]); v != traceVersion {
		return fail("format %d, this program knows %d", v, traceVersion)
	}
	count := le.Uint32(data[len(traceMagic)+4:])
	if count > maxTrace || len(data) != traceHeader+int(count)*traceRun+traceSum {
		return fail("%d bytes for %d runs", len(data), count)
	}
	body := data[:len(data)-traceSum]
	if got, want := crc32.Checksum(body, castagnoli), le.Uint32(data[len(body):]); got != want {
		return fail("checksum %08x instead of %08x", got, want)
	}
	runs := make(Trace, count)
	for i := range runs {
		at := body[traceHeader+i*traceRun:]
		runs[i] = Run{le.Uint32(at), le.Uint32(at[4:])}
	}
	if err := runs.check(); err != nil {
		return fail("%v", err)
	}
	*t = runs
	return nil
}

// check says why a trace is none that a recorder could have made.
func (t Trace) check() error {
	var blocks int64
	for _, r := range t {
		if r.Count == 0 || r.First+r.Count < r.First {
			return fmt.Errorf("a run of %d blocks from block %d on", r.Count, r.First)
		}
		blocks += int64(r.Count)
	}
	if blocks > maxTrace {
		return fmt.Errorf("%d blocks are more than %d", blocks, maxTrace)
	}
	return nil
}
