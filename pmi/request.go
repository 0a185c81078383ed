package pmi

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// maxLine is the longest line that a rank may send, in bytes, newline included. The longest legal put is clientLine; lines
// are allowed to be longer because the arguments of a spawn are paths and command lines.
const maxLine = 8 << 10

// request is one command of a rank, in either syntax.
type request struct {
	cmd    string
	fields []Pair // cmd's own first
	packet bool   // it came in PMI-2's syntax
	bytes  int    // of it, where it has several lines or is a packet
}

// get returns the value of a field, and whether the request has it.
func (q request) get(key string) (string, bool) {
	for _, f := range q.fields {
		if f.Key == key {
			return f.Value, true
		}
	}
	return "", false
}

// number returns an integer field; a field that is missing or is not a number is an error.
func (q request) number(key string) (int, error) {
	v, ok := q.get(key)
	if !ok {
		return 0, fmt.Errorf("%s without %s", hearsay.Clip(q.cmd), key)
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s with %s=%q: not a number", hearsay.Clip(q.cmd), key, hearsay.Clip(v))
	}
	return int(n), nil
}

// link is a rank's connection: requests come off it, and answers go to it.
type link struct {
	conn io.ReadWriteCloser
	in   *requestReader
	held []request // read already, and still to be handled
	id   int       // what the rank calls itself in port mode; -1 without

	writing sync.Mutex // held while writing to conn, which both a conversation and what waits for it do
}

func newLink(conn io.ReadWriteCloser) *link {
	return &link{conn: conn, in: newRequestReader(conn), id: -1}
}

// next returns the next request; see requestReader.next.
func (l *link) next() (request, error) {
	if len(l.held) > 0 {
		q := l.held[0]
		l.held = l.held[1:]
		return q, nil
	}
	return l.in.next()
}

// line answers in PMI-1's syntax. A rank that has hung up does not want it: the reader notices its end.
func (l *link) line(format string, args ...any) {
	l.write(fmt.Appendf(nil, format+"\n", args...))
}

// packet answers a request in PMI-2's syntax.
func (l *link) packet(q request, cmd string, fields ...Pair) {
	l.write(appendPacket(nil, q, cmd, fields))
}

// greetV2 answers the init of a client of PMI-2, which is a line; what follows are packets.
func (l *link) greetV2() { l.line("cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0") }

func (l *link) write(answer []byte) {
	l.writing.Lock()
	defer l.writing.Unlock()
	_, _ = l.conn.Write(answer)
}

// requestReader reads a rank's requests off its connection.
type requestReader struct {
	r      *bufio.Reader
	known  bool // whether packets are padded: see nextPacket
	padded bool
}

func newRequestReader(r io.Reader) *requestReader {
	return &requestReader{r: bufio.NewReaderSize(r, maxLine)}
}

// next returns the next request. io.EOF is the end of the stream between two requests; any other end is an error. The first
// byte tells the syntax, whatever version the rank has agreed to: its init is a line in both, and a further program on the
// same connection begins again.
func (rr *requestReader) next() (request, error) {
	first, err := rr.r.Peek(1)
	if err != nil {
		return request{}, err
	}
	if first[0] == ' ' || first[0] >= '0' && first[0] <= '9' {
		return rr.nextPacket()
	}
	rr.known, rr.padded = false, false // an init: another client begins
	return rr.nextLine()
}

// badInput is what a rank did wrong, as opposed to a connection that broke. It ends the rank's connection and is
// reported to the launcher.
type badInput struct{ err error }

func (b *badInput) Error() string { return b.err.Error() }
func (b *badInput) Unwrap() error { return b.err }
