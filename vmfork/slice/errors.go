package slice

import (
	"errors"
	"fmt"
)

// What can be wrong with a slice that is read back. Every error of Open, and of a read that finds a damaged block,
// is one of these for errors.Is, and its text names the file and what to do about it.
var (
	// ErrTruncated: a file ends before its contents do, as after a full disk or a copy that was cut short.
	ErrTruncated = errors.New("is truncated")
	// ErrForeign: the file is no map of a slice.
	ErrForeign = errors.New("is not the map of a slice")
	// ErrNewer: a later version of this program wrote it.
	ErrNewer = errors.New("was written by a newer version")
	// ErrCorrupt: a checksum does not match, or fields contradict each other.
	ErrCorrupt = errors.New("is corrupt")
)

// ErrReadOnly is returned by a write to a slice that is frozen, or to an image whose top slice is.
var ErrReadOnly = errors.New("slice is frozen: put a new one on top of it to write")

// ErrAbsent is returned by ReadBlocks for a block that the slice does not store.
var ErrAbsent = errors.New("block is not stored in this slice")

// FileError says what is wrong with one file of a slice.
type FileError struct {
	Path   string
	Kind   error // one of ErrTruncated, ErrForeign, ErrNewer, ErrCorrupt
	Detail string
}

func (e *FileError) Error() string {
	advice := "delete it and make the image again"
	switch e.Kind {
	case ErrForeign:
		advice = "check the path"
	case ErrNewer:
		advice = "update this program, or make the image again with this one"
	}
	return fmt.Sprintf("%s %v (%s): %s", e.Path, e.Kind, e.Detail, advice)
}

func (e *FileError) Unwrap() error { return e.Kind }

// BlockError says that a stored block is not what was sealed. It is ErrCorrupt for errors.Is.
type BlockError struct {
	Path      string // data file
	Block     int64
	Want, Got uint32 // CRC-32C
}

func (e *BlockError) Error() string {
	return fmt.Sprintf("%s is corrupt (block %d at offset %d has checksum %08x instead of %08x): delete it and make the image again",
		e.Path, e.Block, e.Block*BlockSize, e.Got, e.Want)
}

func (e *BlockError) Unwrap() error { return ErrCorrupt }
