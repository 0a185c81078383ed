package pmi

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// The upstream protocol: what a clone's Proxy and the launcher's Server say to each other.
//
//	frame  = length (4 bytes, big endian, 1 to maxFrame) kind (1 byte) fields
//	number = unsigned varint; code is a zigzag varint; found is one byte, 0 or 1
//	string = number of bytes, bytes
//	ranks  = how many, then each
//	entries = how many, then key and value of each
//
// The fields of each kind are in layouts. The first frame each way is hello and welcome (or refuse), which begin with
// the version; nothing else of a hello is read when the version is not ours. A change of any kind's fields is a new version.
const (
	protocolVersion = 1
	protocolMagic   = "mpirun-sf pmi proxy"

	maxFrame = 256 << 10 // bytes after the length
	maxText  = 1 << 10   // bytes of a text

	// entriesPerFrame is where a batch of entries is cut into a further put frame, in bytes.
	entriesPerFrame = maxFrame / 2
)

type kind uint8

const (
	kindHello      kind = iota + 1 // proxy: who I am and which ranks I serve
	kindWelcome                    // server: go on
	kindRefuse                     // server: this stream ends here, and why
	kindInit                       // proxy: a rank sent init
	kindFinalize                   // proxy: a rank sent finalize
	kindClosed                     // proxy: a rank's connection is closed; the last message about it
	kindAbort                      // proxy: a rank called MPI_Abort
	kindFault                      // proxy: a rank sent something that it should not have
	kindGet                        // proxy: a rank wants a key that is not in the cache
	kindValue                      // server: answer to kindGet
	kindPut                        // both: entries that did not fit into the barrier message that follows
	kindBarrierIn                  // proxy: all local ranks are in the barrier, and this is what they put
	kindBarrierOut                 // server: all ranks are in the barrier, and this is what the others put
	kindBye                        // server: all your ranks are closed; end of stream
)

type field uint8

const (
	fieldVersion field = iota
	fieldName
	fieldSize
	fieldRanks
	fieldRank
	fieldCode
	fieldText
	fieldKey
	fieldFound
	fieldValue
	fieldGeneration
	fieldEntries
)

var layouts = map[kind]struct {
	name   string
	fields []field
}{
	kindHello:      {"hello", []field{fieldVersion, fieldName, fieldSize, fieldRanks}},
	kindWelcome:    {"welcome", []field{fieldVersion}},
	kindRefuse:     {"refuse", []field{fieldText}},
	kindInit:       {"init", []field{fieldRank}},
	kindFinalize:   {"finalize", []field{fieldRank}},
	kindClosed:     {"closed", []field{fieldRank}},
	kindAbort:      {"abort", []field{fieldRank, fieldCode, fieldText}},
	kindFault:      {"fault", []field{fieldRank, fieldText}},
	kindGet:        {"get", []field{fieldRank, fieldKey}},
	kindValue:      {"value", []field{fieldRank, fieldFound, fieldValue}},
	kindPut:        {"put", []field{fieldEntries}},
	kindBarrierIn:  {"barrier_in", []field{fieldGeneration, fieldEntries}},
	kindBarrierOut: {"barrier_out", []field{fieldGeneration, fieldEntries}},
	kindBye:        {"bye", nil},
}

func (k kind) String() string {
	if l, ok := layouts[k]; ok {
		return l.name
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// message is any message; only the fields in its kind's layout mean something.
type message struct {
	kind       kind
	version    uint64 // hello, welcome
	name       string // KVS name
	size       int    // ranks in the group
	ranks      []int  // ranks behind this proxy
	rank       int
	code       int    // exit status given to MPI_Abort
	text       string // for a person
	key        string
	found      bool
	value      string
	generation uint64 // how many barriers were completed before this one
	entries    []entry
}

// appendFrame appends m as one frame.
func appendFrame(b []byte, m message) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(m.kind))
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	for _, f := range layouts[m.kind].fields {
		switch f {
		case fieldVersion:
			str(protocolMagic)
			b = binary.AppendUvarint(b, m.version)
		case fieldName:
			str(m.name)
		case fieldSize:
			b = binary.AppendUvarint(b, uint64(m.size))
		case fieldRanks:
			b = binary.AppendUvarint(b, uint64(len(m.ranks)))
			for _, r := range m.ranks {
				b = binary.AppendUvarint(b, uint64(r))
			}
		case fieldRank:
			b = binary.AppendUvarint(b, uint64(m.rank))
		case fieldCode:
			b = binary.AppendVarint(b, int64(m.code))
		case fieldText:
			str(m.text[:min(len(m.text), maxText)])
		case fieldKey:
			str(m.key)
		case fieldFound:
			found := byte(0)
			if m.found {
				found = 1
			}
			b = append(b, found)
		case fieldValue:
			str(m.value)
		case fieldGeneration:
			b = binary.AppendUvarint(b, m.generation)
		case fieldEntries:
			b = binary.AppendUvarint(b, uint64(len(m.entries)))
			for _, e := range m.entries {
				str(e.key)
				str(e.value)
			}
		}
	}
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

// appendEntries appends m with these entries, in as many put frames before it as it takes.
func appendEntries(b []byte, m message, entries []entry) []byte {
	first, bytes := 0, 0
	for i, e := range entries {
		if bytes += len(e.key) + len(e.value) + 2*binary.MaxVarintLen16; bytes > entriesPerFrame {
			b = appendFrame(b, message{kind: kindPut, entries: entries[first:i]})
			first, bytes = i, 0
		}
	}
	m.entries = entries[first:]
	return appendFrame(b, m)
}

// readMessage reads one frame. io.EOF is the end of the stream between two frames; inside one it is io.ErrUnexpectedEOF.
func readMessage(r *bufio.Reader) (message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return message{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxFrame {
		return message{}, fmt.Errorf("frame of %d bytes: must be 1 to %d; the peer does not speak this protocol", n, maxFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, err
	}
	return parseMessage(body)
}

// parseMessage parses what follows a frame's length.
func parseMessage(body []byte) (message, error) {
	if len(body) == 0 {
		return message{}, errors.New("empty frame")
	}
	m := message{kind: kind(body[0])}
	layout, ok := layouts[m.kind]
	if !ok {
		return message{}, fmt.Errorf("frame of unknown kind %d", body[0])
	}
	p := parser{rest: body[1:]}
	for _, f := range layout.fields {
		switch f {
		case fieldVersion:
			if magic := p.str(len(protocolMagic)); p.err == nil && magic != protocolMagic {
				return message{}, errors.New("the peer is not one of ours: wrong magic")
			}
			m.version = p.number(math.MaxUint64)
			if p.err == nil && m.version != protocolVersion {
				return m, nil // the rest is another version's; the caller refuses it by number
			}
		case fieldName:
			m.name = p.str(MaxKVSName)
		case fieldSize:
			m.size = int(p.number(MaxSize))
		case fieldRanks:
			m.ranks = p.ranks()
		case fieldRank:
			m.rank = int(p.number(MaxSize - 1))
		case fieldCode:
			m.code = p.code()
		case fieldText:
			m.text = p.str(maxText)
		case fieldKey:
			m.key = p.str(MaxKey)
		case fieldFound:
			m.found = p.number(1) == 1
		case fieldValue:
			m.value = p.value()
		case fieldGeneration:
			m.generation = p.number(math.MaxUint64)
		case fieldEntries:
			m.entries = p.entries()
		}
	}
	if p.err == nil && len(p.rest) > 0 {
		p.err = fmt.Errorf("%d bytes too many", len(p.rest))
	}
	if p.err != nil {
		return message{}, fmt.Errorf("parse %s message: %w", m.kind, p.err)
	}
	return m, nil
}

// parser takes fields off the front of rest until one is wrong; err is then set and all further fields are zero.
type parser struct {
	rest []byte
	err  error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
	p.rest = nil
}

func (p *parser) number(most uint64) uint64 {
	v, n := binary.Uvarint(p.rest)
	if n <= 0 {
		p.fail("truncated")
		return 0
	}
	if v > most {
		p.fail("number %d is above %d", v, most)
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

func (p *parser) code() int {
	v, n := binary.Varint(p.rest)
	if n <= 0 || v < math.MinInt32 || v > math.MaxInt32 {
		p.fail("exit code is truncated or out of range")
		return 0
	}
	p.rest = p.rest[n:]
	return int(v)
}

func (p *parser) str(most int) string {
	n := int(p.number(uint64(most)))
	if n > len(p.rest) {
		p.fail("truncated")
		return ""
	}
	s := string(p.rest[:n])
	p.rest = p.rest[n:]
	return s
}

// value takes a KVS value. One with a line end in it would let a clone speak in the server's name to ranks elsewhere.
func (p *parser) value() string {
	v := p.str(MaxValue)
	if strings.ContainsAny(v, "\n\x00") {
		p.fail("value with a line end or a zero byte")
		return ""
	}
	return v
}

func (p *parser) ranks() []int {
	n := p.number(MaxSize)
	if n > uint64(len(p.rest)) { // a rank takes at least a byte: checked before anything is allocated for it
		p.fail("truncated")
		return nil
	}
	var ranks []int
	for range n {
		ranks = append(ranks, int(p.number(MaxSize-1)))
	}
	return ranks
}

func (p *parser) entries() []entry {
	n := p.number(maxFrame)
	if 2*n > uint64(len(p.rest)) { // an entry takes at least two bytes
		p.fail("truncated")
		return nil
	}
	var entries []entry
	for range n {
		e := entry{p.str(MaxKey), p.value()}
		if p.err == nil && (e.key == "" || !isToken(e.key)) {
			p.fail("key %q", clip(e.key))
		}
		if p.err != nil {
			return nil
		}
		entries = append(entries, e)
	}
	return entries
}
