package pmi

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// PMI-1's syntax: "cmd=name key=value ..." in one line, or "mcmd=name", a line for each field, and "endcmd".

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
		if !found || key == "" || !hearsay.IsToken(key) {
			return request{}, fmt.Errorf("%q is not key=value", hearsay.Clip(rest))
		}
		var value string
		if takesRest(key) {
			value, rest = after, ""
		} else {
			value, rest = cutValue(after)
		}
		if _, twice := q.get(key); twice {
			return request{}, fmt.Errorf("%s= twice in one line", hearsay.Clip(key))
		}
		q.fields = append(q.fields, Pair{key, value})
	}
	if len(q.fields) == 0 || q.fields[0].Key != "cmd" && q.fields[0].Key != "mcmd" {
		return request{}, fmt.Errorf("%q does not begin with cmd= or mcmd=", hearsay.Clip(string(line)))
	}
	q.cmd = q.fields[0].Value
	if q.cmd == "" || !hearsay.IsToken(q.cmd) {
		return request{}, fmt.Errorf("command name %q", hearsay.Clip(q.cmd))
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

// nextLine reads a request that begins with a line.
func (rr *requestReader) nextLine() (request, error) {
	line, err := rr.line()
	if err != nil {
		return request{}, err
	}
	q, err := parseLine(line)
	if err != nil {
		return request{}, &badInput{err}
	}
	if q.fields[0].Key != "mcmd" {
		return q, nil
	}
	seen := map[string]bool{"mcmd": true}
	for {
		line, err := rr.line()
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return request{}, err
		}
		if q.bytes += len(line) + 1; q.bytes > maxSpawnBytes {
			return request{}, &badInput{fmt.Errorf("mcmd=%s of more than %d bytes", hearsay.Clip(q.cmd), maxSpawnBytes)}
		}
		if string(line) == "endcmd" {
			return q, nil
		}
		key, value, found := strings.Cut(string(line), "=")
		if !found || key == "" {
			return request{}, &badInput{fmt.Errorf("%q inside mcmd=%s is not key=value", hearsay.Clip(string(line)), hearsay.Clip(q.cmd))}
		}
		if seen[key] {
			return request{}, &badInput{fmt.Errorf("%s= twice inside mcmd=%s", hearsay.Clip(key), hearsay.Clip(q.cmd))}
		}
		seen[key] = true
		q.fields = append(q.fields, Pair{key, value})
	}
}

// line returns the next line without its newline; it is valid until the next call.
func (rr *requestReader) line() ([]byte, error) {
	line, err := rr.r.ReadSlice('\n')
	switch {
	case err == nil:
		return line[:len(line)-1], nil
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, &badInput{fmt.Errorf("a line of more than %d bytes, beginning %q", maxLine, hearsay.Clip(string(line)))}
	case err == io.EOF && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	}
	return nil, err
}
