package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// An event is what test2json makes of a test binary's output.
type event struct {
	Action string // "run", "output", "pass", "fail", "skip", …
	Test   string // "" for the whole package
	Output string
}

// A report is how a suite's tests ended.
type report struct {
	passed  int
	skipped []string      // "TestX: its reason"
	failed  []string      // names
	took    time.Duration // by the rig's clock
	cost    time.Duration // of this machine's processors
}

// A reader reads a test binary's output while it comes.
type reader struct {
	io.WriteCloser // for the output
	done           chan error
	report         report
}

// read starts a reader, which writes to log what tests print, and what each has used of this machine's processors: spent tells
// how much that is of all so far.
func read(ctx context.Context, log io.Writer, spent func() time.Duration) (*reader, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start test2json: %w", err)
	}
	r := &reader{WriteCloser: in, done: make(chan error, 1)}
	go func() {
		err := r.report.read(out, log, spent)
		r.done <- errors.Join(err, cmd.Wait())
	}()
	return r, nil
}

// end returns the report of what was written.
func (r *reader) end() (report, error) {
	r.Close()
	if err := <-r.done; err != nil {
		return r.report, fmt.Errorf("read the tests' output: %w", err)
	}
	return r.report, nil
}

func (r *report) read(events io.Reader, log io.Writer, spent func() time.Duration) error {
	said := map[string]string{}         // of each test, what it printed last
	began := map[string]time.Duration{} // what had been spent
	for d := json.NewDecoder(events); ; {
		var e event
		if err := d.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		switch e.Action {
		case "run":
			began[e.Test] = spent()
		case "output":
			if _, err := io.WriteString(log, e.Output); err != nil {
				return err
			}
			if text := strings.TrimSpace(e.Output); text != "" && !strings.HasPrefix(text, "--- ") && !strings.HasPrefix(text, "=== ") {
				said[e.Test] = text
			}
		case "pass", "fail", "skip":
			if e.Test == "" {
				continue
			}
			r.ended(e, said[e.Test])
			if cost := spent() - began[e.Test]; cost >= time.Second {
				if _, err := fmt.Fprintf(log, "    %s: %.0f s of a processor\n", e.Test, cost.Seconds()); err != nil {
					return err
				}
			}
		}
	}
}

func (r *report) ended(e event, said string) {
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed = append(r.failed, e.Test)
	case "skip":
		r.skipped = append(r.skipped, e.Test+": "+said)
	}
}

// line is the report in a line, as go test has them.
func (r *report) line(name string, ok bool) string {
	word := "ok  "
	if !ok {
		word = "FAIL"
	}
	text := fmt.Sprintf("%s\t%s\t%.1fs (%.0f s of a processor)\t%d passed", word, name, r.took.Seconds(), r.cost.Seconds(), r.passed)
	if len(r.skipped) > 0 {
		text += fmt.Sprintf(", %d skipped", len(r.skipped))
	}
	if len(r.failed) > 0 {
		text += ", failed: " + strings.Join(r.failed, " ")
	}
	for _, s := range r.skipped {
		text += "\n\tskipped " + s
	}
	return text
}
