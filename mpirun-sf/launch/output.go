package launch

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// maxLine is the longest line that is kept whole, in bytes. Of a longer one,
// pieces of this size are, each a line of its own where lines have labels.
const maxLine = 1 << 20

// lineWriter gathers what one rank writes and passes it on line by line, so
// that lines of different ranks never mix.
type lineWriter struct {
	out    io.Writer
	mu     *sync.Mutex // shared by all that write to the same terminal
	prefix []byte
	buf    []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			break
		}
		if err := w.emit(p[:i+1]); err != nil {
			return 0, err
		}
		p = p[i+1:]
	}
	w.buf = append(w.buf, p...)
	if len(w.buf) >= maxLine {
		return n, w.Close()
	}
	return n, nil
}

// emit writes what has gathered, and then end, in one piece.
func (w *lineWriter) emit(end []byte) error {
	line := end
	if len(w.buf) > 0 || len(w.prefix) > 0 {
		line = append(append(append([]byte{}, w.prefix...), w.buf...), end...)
		w.buf = w.buf[:0]
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.out.Write(line)
	return err
}

// Close passes on a line without an end. With a label it gets one.
func (w *lineWriter) Close() error {
	if len(w.buf) == 0 {
		return nil
	}
	if len(w.prefix) > 0 {
		return w.emit([]byte("\n"))
	}
	return w.emit(nil)
}

// output is where a stream of a rank goes.
func (j *Job) output(rank, fd int) io.WriteCloser {
	if j.Output != nil {
		return j.Output(rank, fd)
	}
	w := &lineWriter{out: j.Stdout, mu: &terminal}
	if fd == 2 {
		w.out = j.Stderr
	}
	if j.Label {
		w.prefix = fmt.Appendf(nil, "[%d] ", rank)
	}
	return w
}

// screen is where one stream of a rank goes. When it cannot be written the rank
// is not held up by that: the job goes on, and has failed in the end.
type screen struct {
	run *run
	out io.WriteCloser
	err error
}

func (s *screen) Write(p []byte) (int, error) {
	s.do(func() error { _, err := s.out.Write(p); return err })
	return len(p), nil
}

func (s *screen) Close() { s.do(s.out.Close) }

func (s *screen) do(write func() error) {
	if s.err != nil {
		return
	}
	s.run.writing.Add(1)
	if s.err = write(); s.err != nil {
		s.run.unwritten.CompareAndSwap(nil, &s.err)
	}
	s.run.written.Add(1)
	s.run.writing.Add(-1)
}

// terminal is held while a line is written: stdout and stderr are often the
// same terminal.
var terminal sync.Mutex
