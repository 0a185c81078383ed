package mcdist

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// Limits of the protocol. Whatever breaks one ends the connection.
const (
	headerSize  = 12
	pieceBlocks = 16                            // at most this many blocks in one frame
	pieceSize   = pieceBlocks * slice.BlockSize // bytes
	maxBody     = blocksHeader + pieceSize      // no other frame is larger
	maxSpans    = 4096                          // of one request
	maxHosts    = 1024                          // of one list of receivers
	maxText     = 512                           // of a refusal
	maxBlocks   = slice.MaxImageSize / slice.BlockSize

	spanSize     = 12
	blocksHeader = 12
	wantHeader   = 16
	objectSize   = 8 + 32
	offerHeader  = 16 + objectSize + 4
)

const (
	magic   = "SFMC"
	version = 1
)

// kind says what a frame is.
type kind uint8

const (
	kindHello  kind = 1 + iota // who dialled says what the stream is for
	kindWant                   // asks for blocks
	kindBlocks                 // a piece of the answer
	kindRefuse                 // there will be no answer
	kindAsk                    // asks for an object's size and sum, once it is published
	kindObject                 // the answer
	kindOffer                  // an origin tells a receiver what it had better ask for
	kindProbe                  // an origin asks whether its multicast is heard
	kindWay                    // an origin says how it distributes; also the question
	kindDone                   // the answer to an offer, a probe, a way: yes
	kindCancel                 // nobody waits for the answer any more
	kindBye                    // this node ends
	kindEnd                    // no kind: the first number that is free
)

// Flags of a frame.
const (
	flagLast   = 1 << iota // the last piece of an answer
	flagPacked             // the blocks are compressed
	flagObject             // the id is an object's
	flagRelay              // of a request: this host is asked as a relay
	flagAll
)

// Lanes: what a stream is for.
const (
	urgent = iota
	bulk
	lanes
)

var errFrame = errors.New("malformed frame")

// frame is one message. Its body belongs to whoever read it, and only until the next frame is read.
type frame struct {
	kind   kind
	flags  uint8
	share  uint16 // of blocks: how many streams the sender feeds in bulk
	number uint32 // of the request
	body   []byte
}

// span is a run of blocks.
type span struct{ first, n int64 }

// begin appends a header whose length is not known yet.
func begin(buf []byte, k kind, flags uint8, number uint32) []byte {
	buf = append(buf, 0, 0, 0, 0, byte(k), flags, 0, 0)
	return binary.LittleEndian.AppendUint32(buf, number)
}

// end enters the length of the frame that begins at start.
func end(buf []byte, start int) []byte {
	binary.LittleEndian.PutUint32(buf[start:], uint32(len(buf)-start-headerSize))
	return buf
}

// parseHeader reads headerSize bytes, and returns the length of the body.
func parseHeader(b []byte) (f frame, length int, err error) {
	le := binary.LittleEndian
	f = frame{kind: kind(b[4]), flags: b[5], share: le.Uint16(b[6:]), number: le.Uint32(b[8:])}
	n := le.Uint32(b)
	switch {
	case n > maxBody:
		return f, 0, fmt.Errorf("%w: %d bytes, at most %d are allowed", errFrame, n, maxBody)
	case f.kind == 0 || f.kind >= kindEnd:
		return f, 0, fmt.Errorf("%w: of unknown kind %d", errFrame, f.kind)
	case f.flags >= flagAll:
		return f, 0, fmt.Errorf("%w: unknown flags %#x", errFrame, f.flags)
	}
	return f, int(n), nil
}

// frameReader reads frames from a stream. Its buffer holds any frame whole, so that a small one is one read.
type frameReader struct {
	r    *bufio.Reader
	last int // bytes of the frame that was returned last
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, headerSize+maxBody)}
}

// next returns the next frame. io.EOF means that the stream ended between frames.
func (r *frameReader) next() (frame, error) {
	_, _ = r.r.Discard(r.last) // it is all in the buffer
	r.last = 0
	head, err := r.r.Peek(headerSize)
	if err != nil {
		if err == io.EOF && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	f, n, err := parseHeader(head)
	if err != nil {
		return frame{}, err
	}
	whole, err := r.r.Peek(headerSize + n)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	r.last = len(whole)
	f.body = whole[headerSize:]
	return f, nil
}

func appendHello(buf []byte, lane int) []byte {
	start := len(buf)
	buf = append(begin(buf, kindHello, 0, 0), magic...)
	return end(append(buf, version, byte(lane)), start)
}

func (f *frame) hello() (lane int, err error) {
	switch b := f.body; {
	case f.kind != kindHello || len(b) != len(magic)+2 || string(b[:len(magic)]) != magic:
		return 0, fmt.Errorf("%w: it is no greeting", errFrame)
	case b[4] != version:
		return 0, fmt.Errorf("version %d is spoken there, and %d here: all hosts need the same mpirun-sf", b[4], version)
	case b[5] >= lanes:
		return 0, fmt.Errorf("%w: unknown lane %d", errFrame, b[5])
	default:
		return int(b[5]), nil
	}
}

func appendSpans(buf []byte, spans []span) []byte {
	for _, s := range spans {
		buf = binary.LittleEndian.AppendUint64(buf, uint64(s.first))
		buf = binary.LittleEndian.AppendUint32(buf, uint32(s.n))
	}
	return buf
}

func parseSpans(b []byte) ([]span, error) {
	if len(b) == 0 || len(b)%spanSize != 0 || len(b) > maxSpans*spanSize {
		return nil, fmt.Errorf("%w: runs of blocks in %d bytes", errFrame, len(b))
	}
	spans := make([]span, 0, len(b)/spanSize)
	for ; len(b) > 0; b = b[spanSize:] {
		first, n := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])
		if n == 0 || first > maxBlocks || uint64(n) > maxBlocks-first {
			return nil, fmt.Errorf("%w: %d blocks from %d", errFrame, n, first)
		}
		spans = append(spans, span{int64(first), int64(n)})
	}
	return spans, nil
}

func appendWant(buf []byte, flags uint8, number uint32, id ID, spans []span) []byte {
	start := len(buf)
	buf = append(begin(buf, kindWant, flags, number), id[:]...)
	return end(appendSpans(buf, spans), start)
}

func (f *frame) want() (id ID, spans []span, err error) {
	if len(f.body) < wantHeader {
		return id, nil, fmt.Errorf("%w: a request of %d bytes", errFrame, len(f.body))
	}
	spans, err = parseSpans(f.body[wantHeader:])
	return ID(f.body), spans, err
}

// beginBlocks appends the header of a piece, whose blocks have to follow.
func beginBlocks(buf []byte, number uint32, first, n int64) []byte {
	buf = begin(buf, kindBlocks, 0, number)
	buf = binary.LittleEndian.AppendUint64(buf, uint64(first))
	return binary.LittleEndian.AppendUint32(buf, uint32(n))
}

// setFlags changes the flags of the frame that begins at start.
func setFlags(buf []byte, start int, flags uint8) { buf[start+5] |= flags }

func setShare(buf []byte, start int, share uint16) {
	binary.LittleEndian.PutUint16(buf[start+6:], share)
}

// blocks returns the piece of an answer; its data may still be compressed.
func (f *frame) blocks() (first, n int64, data []byte, err error) {
	if len(f.body) <= blocksHeader {
		return 0, 0, nil, fmt.Errorf("%w: blocks in %d bytes", errFrame, len(f.body))
	}
	b, c := binary.LittleEndian.Uint64(f.body), binary.LittleEndian.Uint32(f.body[8:])
	data = f.body[blocksHeader:]
	if c == 0 || c > pieceBlocks || b > maxBlocks-pieceBlocks ||
		f.flags&flagPacked == 0 && len(data) != int(c)*slice.BlockSize {
		return 0, 0, nil, fmt.Errorf("%w: %d blocks from %d in %d bytes", errFrame, c, b, len(data))
	}
	return int64(b), int64(c), data, nil
}

func appendRefuse(buf []byte, number uint32, code refusal, text string) []byte {
	start := len(buf)
	buf = append(begin(buf, kindRefuse, 0, number), byte(code))
	return end(append(buf, text[:min(len(text), maxText)]...), start)
}

func (f *frame) refuse() (code refusal, text string, err error) {
	if len(f.body) < 1 || len(f.body) > 1+maxText {
		return 0, "", fmt.Errorf("%w: a refusal of %d bytes", errFrame, len(f.body))
	}
	return refusal(f.body[0]), string(f.body[1:]), nil
}

// appendBare appends a frame without a body, or with an id for one.
func appendBare(buf []byte, k kind, number uint32, body ...byte) []byte {
	start := len(buf)
	return end(append(begin(buf, k, 0, number), body...), start)
}

// id is the body of a question about an object.
func (f *frame) id() (id ID, err error) {
	if len(f.body) != len(id) {
		return id, fmt.Errorf("%w: an id of %d bytes", errFrame, len(f.body))
	}
	return ID(f.body), nil
}

// about is what a receiver has to know of an object before its blocks.
type about struct {
	size int64
	sum  [32]byte // SHA-256
}

func (a about) append(buf []byte) []byte {
	buf = binary.LittleEndian.AppendUint64(buf, uint64(a.size))
	return append(buf, a.sum[:]...)
}

func parseAbout(b []byte) (a about, err error) {
	if len(b) != objectSize {
		return a, fmt.Errorf("%w: an object in %d bytes", errFrame, len(b))
	}
	size := binary.LittleEndian.Uint64(b)
	if size > MaxObject {
		return a, fmt.Errorf("%w: an object of %d bytes, at most %d are allowed", errFrame, size, MaxObject)
	}
	return about{int64(size), [32]byte(b[8:])}, nil
}

// offer is what an origin tells its receivers to ask for: blocks of a slice, or a whole object. They are numbered by
// their place in the list, for the tree.
type offer struct {
	id     ID
	object bool
	about  about // of an object
	to     []int
	spans  []span // of a slice
}

func (o *offer) append(buf []byte, number uint32) []byte {
	start := len(buf)
	var flags uint8
	if o.object {
		flags = flagObject
	}
	buf = append(begin(buf, kindOffer, flags, number), o.id[:]...)
	buf = o.about.append(buf)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(o.to)))
	for _, host := range o.to {
		buf = binary.LittleEndian.AppendUint32(buf, uint32(host))
	}
	return end(appendSpans(buf, o.spans), start)
}

func (f *frame) offer() (o *offer, err error) {
	b := f.body
	if len(b) < offerHeader {
		return nil, fmt.Errorf("%w: an offer of %d bytes", errFrame, len(b))
	}
	o = &offer{id: ID(b), object: f.flags&flagObject != 0}
	if o.about, err = parseAbout(b[16 : 16+objectSize]); err != nil {
		return nil, err
	}
	count := binary.LittleEndian.Uint32(b[offerHeader-4:])
	b = b[offerHeader:]
	if count > maxHosts || len(b) < int(count)*4 {
		return nil, fmt.Errorf("%w: an offer to %d hosts", errFrame, count)
	}
	for range count {
		o.to, b = append(o.to, int(binary.LittleEndian.Uint32(b))), b[4:]
	}
	if o.object {
		if len(b) > 0 {
			return nil, fmt.Errorf("%w: an offer of a whole object names blocks", errFrame)
		}
		return o, nil
	}
	o.spans, err = parseSpans(b)
	return o, err
}
