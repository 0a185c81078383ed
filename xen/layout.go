package xen

import (
	"iter"

	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/xen/paging"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

const pageSize = privcmd.PageSize

// layout says where a guest's frames are in its memory file.
type layout []descriptor.Range

// offset is where a frame is in the memory file. One that is not RAM is not in it.
func (l layout) offset(frame uint64) (offset int64, ok bool) {
	for _, r := range l {
		if first := r.Start / pageSize; frame >= first && frame < first+r.Size/pageSize {
			return int64(r.Offset + (frame-first)*pageSize), true
		}
	}
	return 0, false
}

// frame is which one is at an offset of the memory file.
func (l layout) frame(offset int64) (frame uint64, ok bool) {
	for _, r := range l {
		if o := uint64(offset); o >= r.Offset && o < r.Offset+r.Size {
			return (r.Start + o - r.Offset) / pageSize, true
		}
	}
	return 0, false
}

// pieces are those frames of a guest that are RAM and have content, in order.
func (l layout) pieces(frames *stream.Frames) iter.Seq[paging.Piece] {
	return func(yield func(paging.Piece) bool) {
		for run := range frames.Runs() {
			if !run.Type.HasContent() {
				continue
			}
			for _, r := range l {
				start, end := r.Start/pageSize, (r.Start+r.Size)/pageSize
				first, last := max(run.First, start), min(run.First+run.Count, end)
				if first < last && !yield(paging.Piece{First: first, Count: last - first, Offset: int64(r.Offset + (first-start)*pageSize)}) {
					return
				}
			}
		}
	}
}

// split divides a piece into frames that begin superpages, and single frames.
func split(p paging.Piece) (super, single []uint64) {
	for f := p.First; f < p.First+p.Count; {
		if f%privcmd.SuperFrames == 0 && f+privcmd.SuperFrames <= p.First+p.Count {
			super = append(super, f)
			f += privcmd.SuperFrames
			continue
		}
		single = append(single, f)
		f++
	}
	return super, single
}
