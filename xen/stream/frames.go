package stream

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// Frames lists frames and the types of their pages, in runs: a guest's memory is a
// few long ones. The zero value is empty.
type Frames struct {
	runs  []Run
	count uint64
}

// Run is a number of consecutive frames of one type.
type Run struct {
	First, Count uint64
	Type         PageType
}

// Add adds a frame, which comes after all that were added before: a saved domain has
// each frame once, in order.
func (f *Frames) Add(frame uint64, t PageType) error {
	if n := len(f.runs); n > 0 {
		last := &f.runs[n-1]
		end := last.First + last.Count
		if frame < end {
			return fmt.Errorf("%w: frame %#x comes after frame %#x", ErrCorrupt, frame, end-1)
		}
		if frame == end && t == last.Type {
			last.Count++
			f.count++
			return nil
		}
	}
	f.runs = append(f.runs, Run{frame, 1, t})
	f.count++
	return nil
}

// Len is how many frames there are.
func (f *Frames) Len() uint64 { return f.count }

// Runs are the frames, in order.
func (f *Frames) Runs() iter.Seq[Run] {
	return func(yield func(Run) bool) {
		for _, r := range f.runs {
			if !yield(r) {
				return
			}
		}
	}
}

// AppendBinary implements encoding.BinaryAppender: for each run how far it begins
// behind the end of the one before, how many frames it has, and their type, each as a
// variable-length integer; and in front of them the number of runs.
func (f *Frames) AppendBinary(b []byte) ([]byte, error) {
	b = binary.AppendUvarint(b, uint64(len(f.runs)))
	at := uint64(0)
	for _, r := range f.runs {
		b = binary.AppendUvarint(b, r.First-at)
		b = binary.AppendUvarint(b, r.Count)
		b = binary.AppendUvarint(b, uint64(r.Type))
		at = r.First + r.Count
	}
	return b, nil
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (f *Frames) UnmarshalBinary(b []byte) error {
	*f = Frames{}
	ok := true
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			ok, b = false, nil
			return 0
		}
		b = b[n:]
		return v
	}
	at := uint64(0)
	for n := next(); n > 0 && ok; n-- {
		gap, count, t := next(), next(), next()
		const most = 1 << frameBits
		if !ok || gap > most || count == 0 || count > most || at+gap+count > most || t > uint64(Invalid) || !PageType(t).known() {
			return fmt.Errorf("%w: its list of frames cannot be read", ErrCorrupt)
		}
		f.runs = append(f.runs, Run{at + gap, count, PageType(t)})
		f.count += count
		at += gap + count
	}
	if !ok || len(b) > 0 {
		return fmt.Errorf("%w: its list of frames cannot be read", ErrCorrupt)
	}
	return nil
}
