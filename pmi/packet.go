package pmi

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// PMI-2's syntax: the length in six characters, decimal and padded with spaces on either side, and so many bytes of
// "cmd=name;key=value;...", in which a ";" of a value is doubled. A client with threads marks its requests with thrid=,
// and finds the answer by it.

//
// MPICH's own client, up to 4.0, counts the length's six bytes in, and sends as many bytes more, of what happened to be in
// its memory. Slurm's, and MPICH's from 4.1 on, do not. Its first packet tells which one it is.

// lengthSize is how many bytes a packet's length has.
const lengthSize = 6

// parsePacket parses what follows a packet's length.
func parsePacket(body string) (request, error) {
	if strings.IndexByte(body, 0) >= 0 {
		return request{}, errors.New("a message with a zero byte")
	}
	q := request{packet: true, bytes: len(body)}
	for rest := body; rest != ""; {
		key, after, found := strings.Cut(rest, "=")
		if !found || key == "" || !hearsay.IsToken(key) {
			return request{}, fmt.Errorf("%q is not key=value;", hearsay.Clip(rest))
		}
		value, tail, ended := cutPacketValue(after)
		if !ended {
			return request{}, fmt.Errorf("%q has no semicolon at its end", hearsay.Clip(rest))
		}
		q.fields = append(q.fields, Pair{key, value})
		rest = tail
	}
	if len(q.fields) == 0 || q.fields[0].Key != "cmd" {
		return request{}, fmt.Errorf("%q does not begin with cmd=", hearsay.Clip(body))
	}
	q.cmd = q.fields[0].Value
	if q.cmd == "" || !hearsay.IsToken(q.cmd) {
		return request{}, fmt.Errorf("command name %q", hearsay.Clip(q.cmd))
	}
	return q, nil
}

// cutPacketValue splits s after the value that it begins with.
func cutPacketValue(s string) (value, rest string, ended bool) {
	var b strings.Builder
	for {
		part, after, found := strings.Cut(s, ";")
		b.WriteString(part)
		if !found {
			return "", "", false
		}
		if !strings.HasPrefix(after, ";") {
			return b.String(), after, true
		}
		b.WriteByte(';')
		s = after[1:]
	}
}

// appendPacket appends an answer: the command, the request's thrid, and the fields.
func appendPacket(b []byte, q request, cmd string, fields []Pair) []byte {
	var body strings.Builder
	add := func(key, value string) {
		body.WriteString(key + "=" + strings.ReplaceAll(value, ";", ";;") + ";")
	}
	add("cmd", cmd)
	if thread, ok := q.get("thrid"); ok {
		add("thrid", thread)
	}
	for _, f := range fields {
		add(f.Key, f.Value)
	}
	b = fmt.Appendf(b, "%*d", lengthSize, body.Len())
	return append(b, body.String()...)
}

// nextPacket reads a request that begins with a length.
func (rr *requestReader) nextPacket() (request, error) {
	var head [lengthSize]byte
	if _, err := io.ReadFull(rr.r, head[:]); err != nil {
		return request{}, err
	}
	n, err := strconv.ParseUint(strings.Trim(string(head[:]), " "), 10, 31)
	if err != nil || n < 1 || n > maxSpawnBytes {
		return request{}, &badInput{fmt.Errorf("a message of length %q: must be 1 to %d", head[:], maxSpawnBytes)}
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(rr.r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return request{}, err
	}
	exact := body
	if n > lengthSize {
		exact = body[:n-lengthSize]
	}
	if rr.padded {
		body = exact
	}
	q, err := parsePacket(string(body))
	if err != nil && !rr.known {
		if padded, paddedErr := parsePacket(string(exact)); paddedErr == nil {
			q, err, rr.padded = padded, nil, true
		}
	}
	if err != nil {
		return request{}, &badInput{err}
	}
	rr.known = true
	return q, nil
}
