package mpichshim

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Printer writes what ranks write, as the options of a command say.
type Printer struct {
	command        *Command
	stdout, stderr io.Writer
	begin          time.Time

	mu    sync.Mutex // held while anything is written; guards all below
	files map[string]*os.File
}

// NewPrinter makes the printer of a job that begins now.
func NewPrinter(c *Command, stdout, stderr io.Writer) *Printer {
	return &Printer{command: c, stdout: stdout, stderr: stderr, begin: time.Now(), files: map[string]*os.File{}}
}

// Say writes a text of mpiexec's own to its standard output.
func (p *Printer) Say(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	io.WriteString(p.stdout, text)
}

// Stream is where a rank's standard output (fd 1) or error (2) goes. Lines are
// written in one piece; what has no end yet is written promptWait later, for it may
// be a question.
func (p *Printer) Stream(s Source, fd int) io.WriteCloser {
	w := &rankStream{p: p, source: s, fd: fd}
	w.prompt = time.AfterFunc(time.Hour, w.flush)
	w.prompt.Stop()
	return w
}

// promptWait is how long the beginning of a line waits for its end.
const promptWait = 50 * time.Millisecond

// Close closes the files that output went to.
func (p *Printer) Close() (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.files {
		if one := f.Close(); err == nil {
			err = one
		}
	}
	clear(p.files)
	return err
}

// out is where a source's output goes now. Called with mu held.
func (p *Printer) out(s Source, fd int) (io.Writer, error) {
	to, pattern := p.stdout, p.command.Outfile
	if fd == 2 {
		to, pattern = p.stderr, p.command.Errfile
	}
	if !pattern.Given() {
		return to, nil
	}
	name := pattern.Resolve(s, time.Since(p.begin))
	if f := p.files[name]; f != nil {
		return f, nil
	}
	// As Hydra does: what is there is written over, not cut off.
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write output of rank %d to a file: %w", s.Rank, err)
	}
	p.files[name] = f
	return f, nil
}

// rankStream is one stream of one rank.
type rankStream struct {
	p      *Printer
	source Source
	fd     int
	prompt *time.Timer

	// The printer's mu guards all below.
	rest   []byte // of a line without an end, not written yet
	within bool   // the last byte written was within a line
}

func (w *rankStream) Write(b []byte) (int, error) {
	if from := w.p.command.OutputFrom; from >= 0 && from != w.source.Rank {
		return len(b), nil
	}
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.rest = append(w.rest, b...)
	end := bytes.LastIndexByte(w.rest, '\n') + 1
	err := w.emit(end)
	if len(w.rest) > 0 {
		w.prompt.Reset(promptWait)
	}
	return len(b), err
}

// flush writes the beginning of a line.
func (w *rankStream) flush() {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.emit(len(w.rest))
}

// Close writes what is left.
func (w *rankStream) Close() error {
	w.prompt.Stop()
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.emit(len(w.rest))
}

// emit writes the first n bytes of rest.
func (w *rankStream) emit(n int) error {
	if n == 0 {
		return nil
	}
	text := w.rest[:n]
	if w.p.command.Prefix.Given() {
		prefix := w.p.command.Prefix.Resolve(w.source, time.Since(w.p.begin))
		var all []byte
		for line := range bytes.Lines(text) {
			if !w.within {
				all = append(all, prefix...)
			}
			all = append(all, line...)
			w.within = line[len(line)-1] != '\n'
		}
		text = all
	}
	out, err := w.p.out(w.source, w.fd)
	if err == nil {
		_, err = out.Write(text)
	}
	w.rest = append(w.rest[:0], w.rest[n:]...)
	return err
}
