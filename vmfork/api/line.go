package api

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// MaxLine is the longest line of either direction, with its LF, in bytes.
const MaxLine = 1 << 20

// An Arg is one KEY=VALUE of a line, with the value decoded: any bytes.
type Arg struct{ Key, Value string }

// Args are what stands after the first word of a line, in order. A key may be
// there more than once.
type Args []Arg

// pairs makes Args of "key", "value", "key", "value"...
func pairs(kv []string) Args {
	if len(kv)%2 != 0 {
		panic("api: a key without a value: " + strings.Join(kv, " "))
	}
	var args Args
	for i := 0; i < len(kv); i += 2 {
		args = append(args, Arg{Key: kv[i], Value: kv[i+1]})
	}
	return args
}

// Get is the first value of key; ok is false if there is none.
func (a Args) Get(key string) (value string, ok bool) {
	for _, arg := range a {
		if arg.Key == key {
			return arg.Value, true
		}
	}
	return "", false
}

// All are the values of key, in order.
func (a Args) All(key string) []string {
	var values []string
	for _, arg := range a {
		if arg.Key == key {
			values = append(values, arg.Value)
		}
	}
	return values
}

// appendArgs writes args as a line has them, each with a space before it.
func appendArgs(line []byte, args Args) ([]byte, error) {
	for _, a := range args {
		if !isWord(a.Key) {
			return nil, fmt.Errorf("key %q is not of lower-case letters, digits and -", a.Key)
		}
		line = append(line, ' ')
		line = append(line, a.Key...)
		line = append(line, '=')
		line = appendValue(line, a.Value)
	}
	return line, nil
}

// endLine checks a line's length and ends it.
func endLine(line []byte) ([]byte, error) {
	if len(line)+1 > MaxLine {
		return nil, fmt.Errorf("a line of %d bytes is longer than %d", len(line)+1, MaxLine)
	}
	return append(line, '\n'), nil
}

const hexDigits = "0123456789ABCDEF"

// appendValue writes a value percent-encoded. What is not UTF-8 is encoded too,
// for the line is text.
func appendValue(line []byte, value string) []byte {
	for i := 0; i < len(value); {
		_, size := utf8.DecodeRuneInString(value[i:])
		b := value[i]
		if size == 1 && (b <= ' ' || b == '%' || b >= 0x7f) {
			line = append(line, '%', hexDigits[b>>4], hexDigits[b&15])
		} else {
			line = append(line, value[i:i+size]...)
		}
		i += size
	}
	return line
}

// splitLine takes a line, without its LF, apart.
func splitLine(line []byte) (first string, args Args, err error) {
	switch {
	case len(line)+1 > MaxLine:
		return "", nil, fmt.Errorf("the line is longer than %d bytes", MaxLine)
	case !utf8.Valid(line):
		return "", nil, errors.New("the line is not UTF-8; other bytes of a value are written %XX")
	}
	for i, b := range line {
		if b < ' ' || b == 0x7f {
			return "", nil, fmt.Errorf("byte %d is a control character (%#02x); in a value it is written %%%02X", i+1, b, b)
		}
	}
	head, rest, more := strings.Cut(string(line), " ")
	if !isWord(head) {
		return "", nil, fmt.Errorf("it begins with %s, which is no word of lower-case letters, digits and -", short(head))
	}
	for more {
		var field string
		field, rest, more = strings.Cut(rest, " ")
		key, value, ok := strings.Cut(field, "=")
		switch {
		case field == "":
			return "", nil, errors.New("it has a space too many; one space stands before each KEY=VALUE")
		case !ok:
			return "", nil, fmt.Errorf("%s has no =", short(field))
		case !isWord(key):
			return "", nil, fmt.Errorf("key %s is not of lower-case letters, digits and -", short(key))
		}
		decoded, err := decode(value)
		if err != nil {
			return "", nil, fmt.Errorf("the value of %s: %w", short(key), err)
		}
		args = append(args, Arg{Key: key, Value: decoded})
	}
	return head, args, nil
}

// decode reads %XX.
func decode(value string) (string, error) {
	if !strings.Contains(value, "%") {
		return value, nil
	}
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		if value[i] != '%' {
			b.WriteByte(value[i])
			continue
		}
		if i+2 >= len(value) {
			return "", errors.New("it ends within a %XX")
		}
		high, low := unhex(value[i+1]), unhex(value[i+2])
		if high < 0 || low < 0 {
			return "", fmt.Errorf("%q is not %% and two hexadecimal digits", value[i:i+3])
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String(), nil
}

func unhex(b byte) int {
	switch {
	case '0' <= b && b <= '9':
		return int(b - '0')
	case 'a' <= b && b <= 'f':
		return int(b-'a') + 10
	case 'A' <= b && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}

// isWord tells whether s is [a-z][a-z0-9-]*: a call, a key, or a kind.
func isWord(s string) bool {
	for i := range len(s) {
		b := s[i]
		letter := 'a' <= b && b <= 'z'
		if !letter && (i == 0 || b != '-' && (b < '0' || b > '9')) {
			return false
		}
	}
	return s != ""
}

// short quotes what somebody wrote, for a message about it.
func short(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%q…", s[:40])
	}
	return fmt.Sprintf("%q", s)
}

var errLongLine = fmt.Errorf("no end of the line within %d bytes", MaxLine)

// readLine reads one line and returns it without its LF. The error is io.EOF
// between two lines, [io.ErrUnexpectedEOF] within one, or errLongLine.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			return nil, errLongLine
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimSuffix(line, []byte("\n")), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}
