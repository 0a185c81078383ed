package multicast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// A message is what is sealed in a packet. Its first byte says what it is, and where it goes to or comes from one
// receiver, the 16 bytes of the id follow; a group's key names the id by itself. Numbers are big endian.
type message byte

const (
	// Sender to receivers.
	messageData    message = 1 // a symbol of a batch; to the group, or to one receiver
	messageBeacon  message = 2 // to the group: the sender is there, and what it has sent
	messageWelcome message = 3
	messagePong    message = 4 // answers a report that wants it
	messageRefuse  message = 5

	// Receiver to sender.
	messageJoin   message = 16
	messageLeave  message = 17
	messageWant   message = 18
	messageReport message = 19
)

const (
	// maxBatchBlocks bounds what one batch holds: 128 KB, which is 93 symbols at an MTU of 1500. Longer batches would
	// need a little less parity (7 % instead of 8 % for losses of 5 %), but take longer until they can be used.
	maxBatchBlocks = 32
	// maxSymbols bounds symbols and parity symbols of a batch together: Reed-Solomon's field has 256 elements.
	maxSymbols = 255
	// maxBatchRuns bounds the encoding of the runs of a batch, in bytes. It is repeated in each packet, so that whoever
	// gets any packet of a batch knows which blocks are on their way.
	maxBatchRuns = 48
	// maxObject bounds a published object, in bytes.
	maxObject = 256 << 20
	// maxWant bounds the blocks that one want may name.
	maxWant = 1 << 16
	// maxNaks bounds the batches that one report may name.
	maxNaks = 128
)

var errMalformed = errors.New("malformed message")

// data is a symbol: a piece of a batch, or parity over its pieces.
type data struct {
	batch  uint32
	k      int // symbols without parity
	index  int // k and more: parity
	flags  byte
	length int    // of the content, bytes
	stamp  uint32 // when it was sealed, µs of the sender's clock
	runs   []byte // encoded
	symbol []byte
}

const (
	flagCompressed byte = 1 << iota // the content is an s2 block
	flagUrgent                      // asked for by somebody who waits: numbers of later batches say nothing about it
	flagPushed                      // nobody asked for it
	flagObject                      // of a welcome: what is served is a published object
	flagPong                        // of a report: answer it
	flagIdle                        // of a beacon: nothing waits to be sent
)

const dataHeader = 17

func appendData(p []byte, d *data) []byte {
	p = append(p, byte(messageData))
	p = binary.BigEndian.AppendUint32(p, d.batch)
	p = append(p, byte(d.k), byte(d.index), d.flags, byte(len(d.runs)))
	p = binary.BigEndian.AppendUint32(p, uint32(d.length))
	p = binary.BigEndian.AppendUint32(p, d.stamp)
	p = append(p, d.runs...)
	return append(p, d.symbol...)
}

func parseData(p []byte) (d data, err error) {
	if len(p) < dataHeader {
		return d, errMalformed
	}
	d.batch = binary.BigEndian.Uint32(p[1:])
	d.k, d.index, d.flags = int(p[5]), int(p[6]), p[7]
	d.length = int(binary.BigEndian.Uint32(p[9:]))
	d.stamp = binary.BigEndian.Uint32(p[13:])
	runs := int(p[8])
	p = p[dataHeader:]
	if runs > maxBatchRuns || runs >= len(p) {
		return d, errMalformed
	}
	d.runs, d.symbol = p[:runs], p[runs:]
	if d.k == 0 || d.k > maxSymbols || d.index >= maxSymbols || d.length == 0 ||
		d.length > maxBatchBlocks*slice.BlockSize || d.k != (d.length+len(d.symbol)-1)/len(d.symbol) {
		return d, errMalformed
	}
	return d, nil
}

// beacon tells a group's members what was sent: nothing that comes later in the group has a lower counter.
type beacon struct {
	batch uint32 // the number that the next batch will have
	flags byte
	stamp uint32
}

func appendBeacon(p []byte, b beacon) []byte {
	p = append(p, byte(messageBeacon))
	p = binary.BigEndian.AppendUint32(p, b.batch)
	p = append(p, b.flags)
	return binary.BigEndian.AppendUint32(p, b.stamp)
}

func parseBeacon(p []byte) (b beacon, err error) {
	if len(p) != 10 {
		return b, errMalformed
	}
	return beacon{binary.BigEndian.Uint32(p[1:]), p[5], binary.BigEndian.Uint32(p[6:])}, nil
}

// welcome answers a join; flags, size and echo are all that a pong and a welcome differ in.
type welcome struct {
	size  int64
	flags byte
	echo  uint32 // the stamp of the join
}

func appendWelcome(p []byte, id ID, w welcome) []byte {
	p = append(append(p, byte(messageWelcome)), id[:]...)
	p = binary.BigEndian.AppendUint64(p, uint64(w.size))
	p = append(p, w.flags)
	return binary.BigEndian.AppendUint32(p, w.echo)
}

func parseWelcome(p []byte) (w welcome, err error) {
	if len(p) != 30 {
		return w, errMalformed
	}
	w = welcome{int64(binary.BigEndian.Uint64(p[17:])), p[25], binary.BigEndian.Uint32(p[26:])}
	if w.size < 0 || w.size > slice.MaxImageSize {
		return w, errMalformed
	}
	return w, nil
}

// A stamped message has a time and nothing else: join (the receiver's clock), pong (the same, back).
func appendStamped(p []byte, m message, id ID, stamp uint32) []byte {
	p = append(append(p, byte(m)), id[:]...)
	return binary.BigEndian.AppendUint32(p, stamp)
}

func parseStamped(p []byte) (stamp uint32, err error) {
	if len(p) != 21 {
		return 0, errMalformed
	}
	return binary.BigEndian.Uint32(p[17:]), nil
}

// reasons are the errors that a sender can refuse with; their places in the list are what is sent.
var reasons = []error{ErrUnknown, ErrWithdrawn, ErrSlow, ErrTooMany, ErrUnreadable, ErrSilent}

func appendRefuse(p []byte, id ID, reason error) []byte {
	p = append(append(p, byte(messageRefuse)), id[:]...)
	for i, e := range reasons {
		if errors.Is(reason, e) {
			return append(p, byte(i))
		}
	}
	panic(fmt.Sprintf("refuse with %v, which receivers do not know", reason))
}

func parseRefuse(p []byte) (reason error, err error) {
	if len(p) != 18 || int(p[17]) >= len(reasons) {
		return nil, errMalformed
	}
	return reasons[p[17]], nil
}

// want asks for blocks.
type want struct {
	urgent  bool
	attempt byte   // how often it was asked for before
	seen    uint64 // one above the highest counter seen in the group: what was sent later may be on its way
	runs    []byte // encoded
}

const wantHeader = 17 + 10

func appendWant(p []byte, id ID, w want) []byte {
	p = append(append(p, byte(messageWant)), id[:]...)
	var flags byte
	if w.urgent {
		flags = flagUrgent
	}
	p = append(p, flags, w.attempt)
	p = binary.BigEndian.AppendUint64(p, w.seen)
	return append(p, w.runs...)
}

func parseWant(p []byte) (w want, err error) {
	if len(p) < wantHeader {
		return w, errMalformed
	}
	return want{p[17]&flagUrgent != 0, p[18], binary.BigEndian.Uint64(p[19:]), p[wantHeader:]}, nil
}

// report is a receiver's sign of life: what has come in the group since it joined, and which batches are short of symbols.
type report struct {
	flags   byte
	stamp   uint32 // µs of the receiver's clock
	seen    uint64 // as in want
	packets uint64 // that have come from the group
	bytes   uint64
	queue   uint32 // µs by which packets came to the host later than the fastest did
	lag     uint32 // µs for which they waited there to be looked at
	naks    []nak
}

// nak says how many more symbols of a batch a receiver needs.
type nak struct {
	batch uint32
	short byte
}

const reportHeader = 17 + 37

func appendReport(p []byte, id ID, r *report) []byte {
	p = append(append(p, byte(messageReport)), id[:]...)
	p = append(p, r.flags)
	p = binary.BigEndian.AppendUint32(p, r.stamp)
	p = binary.BigEndian.AppendUint64(p, r.seen)
	p = binary.BigEndian.AppendUint64(p, r.packets)
	p = binary.BigEndian.AppendUint64(p, r.bytes)
	p = binary.BigEndian.AppendUint32(p, r.queue)
	p = binary.BigEndian.AppendUint32(p, r.lag)
	for _, n := range r.naks {
		p = append(binary.BigEndian.AppendUint32(p, n.batch), n.short)
	}
	return p
}

func parseReport(p []byte) (r report, err error) {
	if len(p) < reportHeader || (len(p)-reportHeader)%5 != 0 || (len(p)-reportHeader)/5 > maxNaks {
		return r, errMalformed
	}
	r = report{
		flags: p[17], stamp: binary.BigEndian.Uint32(p[18:]),
		seen: binary.BigEndian.Uint64(p[22:]), packets: binary.BigEndian.Uint64(p[30:]),
		bytes: binary.BigEndian.Uint64(p[38:]), queue: binary.BigEndian.Uint32(p[46:]),
		lag: binary.BigEndian.Uint32(p[50:]),
	}
	for p = p[reportHeader:]; len(p) > 0; p = p[5:] {
		r.naks = append(r.naks, nak{binary.BigEndian.Uint32(p), p[4]})
	}
	return r, nil
}

// idOf returns the id that a message to or from one receiver begins with.
func idOf(p []byte) (id ID, err error) {
	if len(p) < 17 {
		return id, errMalformed
	}
	copy(id[:], p[1:])
	return id, nil
}

// microseconds is a stamp: it wraps, so stamps are only ever subtracted.
func microseconds(t time.Time) uint32 { return uint32(t.UnixMicro()) }
