package xen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// reader is a process that reads a memory file from its beginning to its end, for a comparison: the file may be memtap's, and this
// process its server, which does not open it itself (see vm.fill).
type reader struct {
	cmd    *exec.Cmd
	output *os.File
	at     int64 // of what comes next
	said   bytes.Buffer
}

// startReader starts one, which ends with ctx or by Close.
func (v *vm) startReader(ctx context.Context) (*reader, error) {
	output, theirs, err := memoryPipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	r := &reader{cmd: v.d.process(ctx, self, nil), output: output}
	r.cmd.Args = []string{readerName, v.cfg.MemoryPath}
	r.cmd.ExtraFiles = nil // not the owner's lock: it makes no domain, and ends with its output
	r.cmd.Stdout, r.cmd.Stderr = theirs, &r.said
	if err := r.cmd.Start(); err != nil {
		output.Close()
		return nil, fmt.Errorf("start what reads its memory file: %w", err)
	}
	return r, nil
}

// ReadAt implements io.ReaderAt for offsets that only grow.
func (r *reader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < r.at {
		return 0, fmt.Errorf("read at %d of what is at %d already", off, r.at)
	}
	skipped, err := io.CopyN(io.Discard, r.output, off-r.at)
	r.at += skipped
	if err == nil {
		n, err = io.ReadFull(r.output, p)
		r.at += int64(n)
	}
	if err != nil {
		r.cmd.Wait() // its output has ended, or it was killed
		if r.said.Len() > 0 {
			err = errors.New(complaintOf(r.said.Bytes()))
		}
	}
	return n, err
}

// Close ends it.
func (r *reader) Close() error {
	err := r.output.Close()
	r.cmd.Process.Kill()
	r.cmd.Wait() // how it ended does not matter any more
	return err
}

// beReader is the reader's life. Its argument is the file's path.
func beReader(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%d arguments instead of a memory file", len(args))
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{os.Stdout}, struct{ io.Reader }{f}, make([]byte, writeSize))
	return err
}
