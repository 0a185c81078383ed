package pmi

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Limits of what a rank may send. The longest legal put is clientLine; lines are allowed to be longer because the
// arguments of a spawn are paths and command lines.
const (
	maxLine       = 8 << 10   // bytes, newline included
	maxSpawnBytes = 256 << 10 // bytes of one multi-line command
)

// request is one command of a rank: "cmd=name key=value ..." or a multi-line "mcmd=name ... endcmd".
type request struct {
	cmd    string
	fields []entry
}

// entry is a key and its value, in a PMI line or in the KVS.
type entry struct{ key, value string }

// get returns the value of a field, and whether the request has it.
func (q request) get(key string) (string, bool) {
	for _, f := range q.fields {
		if f.key == key {
			return f.value, true
		}
	}
	return "", false
}

// number returns an integer field; a field that is missing or is not a number is an error.
func (q request) number(key string) (int, error) {
	v, ok := q.get(key)
	if !ok {
		return 0, fmt.Errorf("%s without %s", q.cmd, key)
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s with %s=%q: not a number", q.cmd, key, clip(v))
	}
	return int(n), nil
}

// takesRest lists the fields whose value is the rest of the line: they are the last of their command, and may hold
// anything, " x=" included.
func takesRest(key string) bool {
	return key == "value" || key == "port" || key == "message" || key == "error_msg"
}

// parseLine parses one line, without its newline. A value ends where " key=" begins, so values may hold spaces.
func parseLine(line []byte) (request, error) {
	if bytes.IndexByte(line, 0) >= 0 {
		return request{}, errors.New("a line with a zero byte")
	}
	rest := string(line)
	var q request
	for rest != "" {
		key, after, found := strings.Cut(rest, "=")
		if !found || key == "" || !isToken(key) {
			return request{}, fmt.Errorf("%q is not key=value", clip(rest))
		}
		var value string
		if takesRest(key) {
			value, rest = after, ""
		} else {
			value, rest = cutValue(after)
		}
		if _, twice := q.get(key); twice {
			return request{}, fmt.Errorf("%s= twice in one line", clip(key))
		}
		q.fields = append(q.fields, entry{key, value})
	}
	if len(q.fields) == 0 || q.fields[0].key != "cmd" && q.fields[0].key != "mcmd" {
		return request{}, fmt.Errorf("%q does not begin with cmd= or mcmd=", clip(string(line)))
	}
	q.cmd = q.fields[0].value
	if q.cmd == "" || !isToken(q.cmd) {
		return request{}, fmt.Errorf("command name %q", clip(q.cmd))
	}
	return q, nil
}

// cutValue splits s at the first space that is followed by a word with an equals sign in it.
func cutValue(s string) (value, rest string) {
	for i := 0; i < len(s); i++ {
		if s[i] != ' ' {
			continue
		}
		word, _, _ := strings.Cut(s[i+1:], " ")
		if strings.IndexByte(word, '=') > 0 {
			return strings.TrimRight(s[:i], " "), s[i+1:]
		}
	}
	return strings.TrimRight(s, " "), ""
}

// requestReader reads a rank's requests off its connection.
type requestReader struct {
	r *bufio.Reader
}

func newRequestReader(r io.Reader) *requestReader {
	return &requestReader{bufio.NewReaderSize(r, maxLine)}
}

// next returns the next request. io.EOF is the end of the stream between two requests; any other end is an error.
func (rr *requestReader) next() (request, error) {
	line, err := rr.line()
	if err != nil {
		return request{}, err
	}
	q, err := parseLine(line)
	if err != nil {
		return request{}, &badInput{err}
	}
	if q.fields[0].key != "mcmd" {
		return q, nil
	}
	// A multi-line command has one field per line. Only numbers are looked at, so nothing else is kept.
	for total := 0; ; {
		line, err := rr.line()
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return request{}, err
		}
		if total += len(line) + 1; total > maxSpawnBytes {
			return request{}, &badInput{fmt.Errorf("mcmd=%s of more than %d bytes", clip(q.cmd), maxSpawnBytes)}
		}
		if string(line) == "endcmd" {
			return q, nil
		}
		key, value, found := strings.Cut(string(line), "=")
		if !found || key == "" {
			return request{}, &badInput{fmt.Errorf("%q inside mcmd=%s is not key=value", clip(string(line)), clip(q.cmd))}
		}
		if _, twice := q.get(key); key == "totspawns" && !twice {
			q.fields = append(q.fields, entry{key, value})
		}
	}
}

// line returns the next line without its newline; it is valid until the next call.
func (rr *requestReader) line() ([]byte, error) {
	line, err := rr.r.ReadSlice('\n')
	switch {
	case err == nil:
		return line[:len(line)-1], nil
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, &badInput{fmt.Errorf("a line of more than %d bytes, beginning %q", maxLine, clip(string(line)))}
	case err == io.EOF && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	}
	return nil, err
}

// badInput is what a rank did wrong, as opposed to a connection that broke. It ends the rank's connection and is
// reported to the launcher.
type badInput struct{ err error }

func (b *badInput) Error() string { return b.err.Error() }
func (b *badInput) Unwrap() error { return b.err }
