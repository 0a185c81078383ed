package descriptor

import (
	"errors"
	"fmt"
)

// What can be wrong with a descriptor that is read back. Every error of Read and Load but those of the reader itself is
// one of these for errors.Is, and its text says what to do about it.
var (
	// ErrTruncated: the input ends before the trailer does.
	ErrTruncated = errors.New("is truncated")
	// ErrForeign: the input is no descriptor.
	ErrForeign = errors.New("is not a VM descriptor")
	// ErrNewer: a later version wrote it, or it has a section that must be understood and is not.
	ErrNewer = errors.New("was written by a newer version")
	// ErrCorrupt: a checksum does not match, or fields contradict each other.
	ErrCorrupt = errors.New("is corrupt")
)

// FormatError says what is wrong with a descriptor.
type FormatError struct {
	Path   string // empty if it came from a stream
	Kind   error  // one of ErrTruncated, ErrForeign, ErrNewer, ErrCorrupt
	Detail string
}

func (e *FormatError) Error() string {
	advice := "fork or checkpoint the VM again"
	switch e.Kind {
	case ErrForeign:
		advice = "check the path"
	case ErrNewer:
		advice = "update this program, or make the checkpoint again with this one"
	}
	name := "descriptor"
	if e.Path != "" {
		name += " " + e.Path
	}
	return fmt.Sprintf("%s %v (%s): %s", name, e.Kind, e.Detail, advice)
}

func (e *FormatError) Unwrap() error { return e.Kind }

func corrupt(format string, args ...any) error {
	return &FormatError{Kind: ErrCorrupt, Detail: fmt.Sprintf(format, args...)}
}
