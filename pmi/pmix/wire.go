package pmix

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The protocol of helper and Server.
//
//	frame  = length (4 bytes, from kind on) kind (1 byte) fields
//	number = 4 bytes, high first; an int is two's complement
//	bytes, string = number, bytes
//	list   = number, items
//	proc   = namespace (string) rank (number; wildcard is all ones)
//	infos  = list of key (string) value (string)
//
// The kinds' fields are behind them. An id is the helper's for an operation that has an answer, or the Server's in fetch
// and ping. A change is a new protocolVersion. helper/sfpmix.h has the same numbers.
const (
	protocolMagic   = "mpirun-sf pmix"
	protocolVersion = 1

	// maxFrame is the largest frame of a helper, in bytes after the length: what the ranks of one clone contribute to
	// an exchange. Open MPI's rank contributes less than 1 KB.
	maxFrame = 16 << 20
	// maxTotal is the most that all nodes together may contribute to one, in bytes.
	maxTotal = 512 << 20
	// maxText is the longest text that is shown.
	maxText = 8 << 10
)

type kind uint8

const (
	kindHello      kind = iota + 1 // magic (string) version, libpmix's version (string)
	kindReady                      // list of: rank, environment (list of strings)
	kindConnected                  // rank
	kindFinalized                  // rank
	kindAbort                      // rank, code (int), text
	kindFence                      // id, list of procs, bytes
	kindDmodex                     // id, proc
	kindModex                      // id, outcome, bytes
	kindPublish                    // id, rank, range, persistence, list of: key (string), value (bytes)
	kindLookup                     // id, rank, range, wait (0, 1), seconds (0 is no limit), list of keys
	kindUnpublish                  // id, rank, range, list of keys: none for all
	kindSpawn                      // id, rank, infos, list of: program, argv, environment, directory, ranks, infos
	kindConnect                    // id, list of procs
	kindDisconnect                 // id, list of procs
	kindMessage                    // id, rank, list of: PMIx's key for what it is, bytes
	kindPong                       // id
	kindFault                      // text; the helper has ended
)

const (
	kindJob     kind = iota + 32 // namespace, this node's number or all ones, universe size, parent (proc), list of nodes: name, list of ranks; list of apps: program, directory, ranks
	kindDone                     // id, outcome
	kindData                     // id, outcome, bytes
	kindFound                    // id, outcome, list of: proc, key, value (bytes)
	kindSpawned                  // id, outcome, namespace
	kindFetch                    // id, rank
	kindPing                     // id
	kindRefuse                   // text
)

// outcome is how an operation went.
type outcome uint32

const (
	ok outcome = iota
	failed
	notFound
	timedOut
	notSupported
	lost
	duplicate
	partial
)

// encoder makes a frame.
type encoder struct{ b []byte }

func newFrame(k kind) *encoder { return &encoder{[]byte{0, 0, 0, 0, byte(k)}} }

func (e *encoder) number(n uint32) *encoder {
	e.b = binary.BigEndian.AppendUint32(e.b, n)
	return e
}

func (e *encoder) bytes(b []byte) *encoder {
	e.number(uint32(len(b)))
	e.b = append(e.b, b...)
	return e
}

func (e *encoder) string(s string) *encoder { return e.bytes([]byte(s)) }

func (e *encoder) proc(p Proc) *encoder { return e.string(p.Namespace).number(uint32(int32(p.Rank))) }

// frame is the finished frame.
func (e *encoder) frame() []byte {
	binary.BigEndian.PutUint32(e.b, uint32(len(e.b)-4))
	return e.b
}

var errShort = errors.New("ends early")

// decoder takes a frame's fields in order. After the first mistake all are empty.
type decoder struct {
	kind kind
	b    []byte
	err  error
}

// readFrame reads a frame of a helper.
func readFrame(r io.Reader) (*decoder, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxFrame {
		return nil, fmt.Errorf("a frame of %d bytes: 1 to %d may come", n, maxFrame)
	}
	// Not all at once: a length is quickly said.
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	return &decoder{kind: kind(b[0]), b: b[1:]}, nil
}

func (d *decoder) number() uint32 {
	if d.err != nil || len(d.b) < 4 {
		d.err = errShort
		return 0
	}
	n := binary.BigEndian.Uint32(d.b)
	d.b = d.b[4:]
	return n
}

func (d *decoder) bytes() []byte {
	n := int(d.number())
	if d.err != nil || n > len(d.b) {
		d.err = errShort
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) string() string { return string(d.bytes()) }

// count is the length of a list whose items have at least so many bytes each.
func (d *decoder) count(least int) int {
	n := int(d.number())
	if d.err != nil || n > len(d.b)/least {
		d.err = errShort
		return 0
	}
	return n
}

func (d *decoder) proc() Proc {
	namespace := d.string()
	return Proc{namespace, int(int32(d.number()))}
}

func (d *decoder) procs() []Proc {
	procs := make([]Proc, d.count(8))
	for i := range procs {
		procs[i] = d.proc()
	}
	return procs
}

func (d *decoder) strings() []string {
	list := make([]string, d.count(4))
	for i := range list {
		list[i] = d.string()
	}
	return list
}

func (d *decoder) infos() map[string]string {
	n := d.count(8)
	m := make(map[string]string, n)
	for range n {
		key := d.string()
		m[key] = d.string()
	}
	return m
}

// end says what was wrong with the frame.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = fmt.Errorf("has %d bytes too many", len(d.b))
	}
	if d.err != nil {
		return fmt.Errorf("a frame of kind %d %w", d.kind, d.err)
	}
	return nil
}
