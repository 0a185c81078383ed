package link

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A line of welcome or hello is
//
//	MPIRUN-SF-HELLO 1 v0.4.0 {"host":...}
//
// with the protocol's number and the program's version, which a daemon of any version can read, before what only those of the same
// protocol understand. Something without a newline, such as a prompt, may stand before it.
const magic = "MPIRUN-SF-"

const (
	maxLine = 64 << 10 // bytes, newline included
	maxJunk = 1 << 20  // bytes before the line
	maxTail = 2 << 10  // bytes of junk that an error shows
)

func writeLine(w io.Writer, what, version string, m any) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if version == "" || strings.ContainsAny(version, " \r\n") {
		version = "unknown"
	}
	line := fmt.Appendf(nil, "%s%s %d %s %s\n", magic, what, Protocol, version, text)
	if len(line) > maxLine {
		return fmt.Errorf("it takes %d bytes, and %d are the most", len(line), maxLine)
	}
	_, err = w.Write(line)
	return err
}

// readLine waits for a line, of who, decodes it into m, and returns the version of the program that wrote it.
func readLine(ctx context.Context, r io.Reader, what, who string, m any) (version string, err error) {
	type found struct {
		line []byte
		junk string
		err  error
	}
	got := make(chan found, 1)
	go func() {
		line, junk, err := findLine(r, what)
		got <- found{line, junk, err}
	}()
	select {
	case <-ctx.Done():
		return "", fmt.Errorf("wait for %s to answer: %w", who, context.Cause(ctx))
	case f := <-got:
		if f.err != nil {
			return "", fmt.Errorf("wait for %s to answer: %w%s", who, f.err, f.junk)
		}
		return parseLine(f.line, who, m)
	}
}

// findLine reads to the end of a line of ours and not a byte further, for what follows on the stream belongs to others. junk
// is what came before, for an error.
func findLine(r io.Reader, what string) (line []byte, junk string, err error) {
	mark := []byte(magic + what + " ")
	var current, tail []byte
	b := make([]byte, 1)
	show := func() string {
		text := strings.Join(strings.FieldsFunc(string(append(tail, current...)), func(r rune) bool { return r < ' ' || r == 0x7f }), " | ")
		if len(text) > maxTail {
			text = "..." + text[len(text)-maxTail:]
		}
		if text = strings.ToValidUTF8(text, "?"); text == "" {
			return ""
		}
		return fmt.Sprintf("; before that came: %s", strings.TrimSpace(text))
	}
	for read := 0; ; read++ {
		if n, err := r.Read(b); n == 0 {
			if err == nil {
				continue
			}
			if errors.Is(err, io.EOF) {
				err = errors.New("it ended without one")
			}
			return nil, show(), err
		}
		if b[0] != '\n' {
			current = append(current, b[0])
			if len(current) >= maxLine {
				if bytes.Contains(current, mark) {
					return nil, "", fmt.Errorf("the line is longer than %d bytes", maxLine)
				}
				// Of an endless line only the end may still be the beginning of ours.
				keep := current[len(current)-len(mark):]
				tail, current = append([]byte(nil), current[:len(current)-len(mark)]...), append([]byte(nil), keep...)
			}
		} else {
			if i := bytes.Index(current, mark); i >= 0 {
				return bytes.TrimRight(current[i+len(mark):], "\r"), "", nil
			}
			tail = append(append(tail, current...), '\n')
			if len(tail) > 2*maxTail {
				tail = append([]byte(nil), tail[len(tail)-maxTail:]...)
			}
			current = current[:0]
		}
		if read > maxJunk+maxLine {
			return nil, show(), fmt.Errorf("%d bytes came, and no such line", read)
		}
	}
}

func parseLine(line []byte, who string, m any) (version string, err error) {
	number, rest, ok1 := strings.Cut(string(line), " ")
	version, text, ok2 := strings.Cut(rest, " ")
	protocol, err := strconv.ParseUint(number, 10, 32)
	if !ok1 || !ok2 || err != nil || version == "" || checkTexts(version) != nil {
		return "", fmt.Errorf("%s answered %.60q, which is no answer", who, line)
	}
	if protocol != Protocol {
		return "", fmt.Errorf("%s is mpirun-sf %s, which speaks protocol %d, and this one speaks protocol %d: install the same version of mpirun-sf on all hosts", who, version, protocol, Protocol)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return "", fmt.Errorf("%s answered what cannot be understood: %w", who, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return "", fmt.Errorf("%s answered more than one message", who)
	}
	return version, nil
}
