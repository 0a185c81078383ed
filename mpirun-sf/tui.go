package main

// What mpirun-sf writes on a terminal:
//
//   - every line of its own goes to standard error and begins "mpirun-sf: ";
//   - no capital at the beginning, no period at the end;
//   - an error is one line that says what happened and what to do next;
//   - -q silences everything but errors; -v adds what only the curious want;
//   - on a terminal, a step that takes time counts its seconds in place;
//   - with --log-format json each line is one JSON object of zerolog's.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// level is how much is said.
type level int

const (
	quiet level = iota
	normal
	verbose
)

// printer is the one writer of mpirun-sf's own lines.
type printer struct {
	out   io.Writer
	level level
	tty   bool
	json  *zerolog.Logger

	mu   sync.Mutex
	step chan struct{} // closed to end the step that counts its seconds
}

var tui = &printer{out: os.Stderr, level: normal, tty: isatty.IsTerminal(os.Stderr.Fd())}

// asJSON switches to one JSON object a line.
func (p *printer) asJSON() {
	l := zerolog.New(p.out).With().Timestamp().Logger()
	p.json = &l
}

func (p *printer) write(l zerolog.Level, line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endStep()
	if p.json != nil {
		p.json.WithLevel(l).Msg(line)
		return
	}
	fmt.Fprintf(p.out, "mpirun-sf: %s\n", line)
}

// Notice says something that most users want to know.
func (p *printer) Notice(format string, args ...any) {
	if p.level >= normal {
		p.write(zerolog.InfoLevel, fmt.Sprintf(format, args...))
	}
}

// Detail says something under -v.
func (p *printer) Detail(format string, args ...any) {
	if p.level >= verbose {
		p.write(zerolog.DebugLevel, fmt.Sprintf(format, args...))
	}
}

// Error says what went wrong, on one line; of many hosts, on one for each.
func (p *printer) Error(err error) {
	var hosts *allocator.HostErrors
	if errors.As(err, &hosts) {
		for line := range strings.Lines(err.Error()) {
			p.write(zerolog.ErrorLevel, strings.TrimRight(line, "\n"))
		}
		return
	}
	p.write(zerolog.ErrorLevel, strings.Join(strings.Fields(err.Error()), " "))
}

// Step says that something that takes time has begun. On a terminal it counts
// seconds until the next line of any kind; elsewhere it says nothing, for the
// line at its end says all.
func (p *printer) Step(what string) {
	if p.level < normal || !p.tty || p.json != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endStep()
	done := make(chan struct{})
	p.step = done
	begin := time.Now()
	fmt.Fprintf(p.out, "mpirun-sf: %s", what)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			p.mu.Lock()
			if p.step == done {
				fmt.Fprintf(p.out, "\r\033[Kmpirun-sf: %s (%.0f s)", what, time.Since(begin).Seconds())
			}
			p.mu.Unlock()
		}
	}()
}

// endStep is called with mu held.
func (p *printer) endStep() {
	if p.step != nil {
		close(p.step)
		p.step = nil
		fmt.Fprint(p.out, "\r\033[K")
	}
}

// EndStep takes a step's line away, before ranks write to the same terminal.
func (p *printer) EndStep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endStep()
}
