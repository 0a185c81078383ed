package rig

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// portName is the serial port between host and rig.
//
// The host sends a Command as JSON, the rig answers with frames, of which a
// status is the last. Before the first command it sends frameReady.
const portName = "mpirun-sf.rig"

// A frame is its kind, the length of what follows as a 32-bit big-endian
// number, and that.
type frameKind byte

const (
	frameReady  frameKind = 'r' // empty
	frameStdout frameKind = 'o'
	frameStderr frameKind = 'e'
	frameFiles  frameKind = 'f' // a piece of a tar archive
	frameStatus frameKind = 's' // Result as JSON
)

// maxFrame is how long a frame may be.
const maxFrame = 64 << 10

func writeFrame(w io.Writer, kind frameKind, content []byte) error {
	frame := make([]byte, 5, 5+len(content))
	frame[0] = byte(kind)
	binary.BigEndian.PutUint32(frame[1:], uint32(len(content)))
	_, err := w.Write(append(frame, content...))
	return err
}

// readFrame reads one; io.EOF is an end between two.
func readFrame(r io.Reader) (frameKind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	kind, n := frameKind(head[0]), binary.BigEndian.Uint32(head[1:])
	switch kind {
	case frameReady, frameStdout, frameStderr, frameFiles, frameStatus:
	default:
		return 0, nil, fmt.Errorf("a frame begins with %q", head[0])
	}
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes is longer than %d", n, maxFrame)
	}
	content := make([]byte, n)
	if _, err := io.ReadFull(r, content); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return kind, content, nil
}

// A framer makes frames of one kind of what is written to it.
type framer struct {
	mu   *sync.Mutex // the port's: frames of several kinds go through it
	port io.Writer
	kind frameKind
}

func (f framer) Write(p []byte) (n int, err error) {
	for n < len(p) {
		piece := p[n:min(len(p), n+maxFrame)]
		f.mu.Lock()
		err := writeFrame(f.port, f.kind, piece)
		f.mu.Unlock()
		if err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}
