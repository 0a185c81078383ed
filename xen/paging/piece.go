package paging

import (
	"fmt"
	"io"
	"iter"
)

// Piece is a number of consecutive frames of a guest, and where the memory file has them.
type Piece struct {
	First, Count uint64
	Offset       int64
}

// Parts divides a piece into such of at most so many frames, in order.
func (c Piece) Parts(most uint64) iter.Seq[Piece] {
	return func(yield func(Piece) bool) {
		for done := uint64(0); done < c.Count; done += most {
			if !yield(Piece{c.First + done, min(most, c.Count-done), c.Offset + int64(done)*pageSize}) {
				return
			}
		}
	}
}

// Frames are the numbers of its frames.
func (c Piece) Frames() []uint64 {
	frames := make([]uint64, c.Count)
	for i := range frames {
		frames[i] = c.First + uint64(i)
	}
	return frames
}

// Read reads its content from the memory file.
func (c Piece) Read(memory io.ReaderAt) ([]byte, error) {
	content := make([]byte, c.Count*pageSize)
	if n, err := memory.ReadAt(content, c.Offset); n < len(content) {
		return nil, fmt.Errorf("read its memory file: %w", err)
	}
	return content, nil
}
