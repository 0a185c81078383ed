package multicast

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"

	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist/multicast/replay"
)

// Every packet begins with a header that is authenticated but not encrypted, big endian:
//
//	 0  version and kind (4 bits each)
//	 1  cipher
//	 2  number of the host that sends it (u16)
//	 4  its session, drawn at random when its Sender or Receiver is made (8 bytes)
//	12  counter (u64): which packet this is under its key, from 0
//	20  sealed message, and 16 bytes of tag
const (
	headerSize = 20
	tagSize    = 16
	overhead   = headerSize + tagSize

	version = 1
)

// kind is where a packet goes; each has keys of its own.
type kind byte

const (
	toGroup kind = 1 // sender to all members of a group
	request kind = 2 // receiver to sender
	reply   kind = 3 // sender to one receiver
)

// A suite is an AEAD. The one who sends a packet chooses what its processor is fast at.
type suite byte

const (
	aesGCM           suite = 1
	chacha20Poly1305 suite = 2
)

// fastest takes AES where the processor has instructions for it and for GCM's multiplication.
func fastest() suite {
	switch {
	case cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ,
		cpu.ARM64.HasAES && cpu.ARM64.HasPMULL,
		runtime.GOARCH == "s390x":
		return aesGCM
	}
	return chacha20Poly1305
}

func (s suite) aead(key []byte) (cipher.AEAD, error) {
	switch s {
	case aesGCM:
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(block)
	case chacha20Poly1305:
		return chacha20poly1305.New(key)
	}
	return nil, fmt.Errorf("cipher %d is unknown", s)
}

// session is drawn at random by each Sender and each Receiver. Keys are derived from it, so no two of them ever use the
// same nonce with the same key, and what was recorded from an earlier one opens nowhere.
type session [8]byte

// An end is one of the two between whom a key is.
type end struct {
	host    uint16
	session session
}

// keyring derives all keys from the job's.
type keyring struct {
	secret []byte
}

func newKeyring(key [32]byte) keyring {
	secret, err := hkdf.Extract(sha256.New, key[:], []byte("mpirun-sf mcdist multicast 1"))
	if err != nil {
		panic(err) // only FIPS mode refuses a key, and never one of this length
	}
	return keyring{secret}
}

// derive makes a key of 32 bytes for one purpose. The parts have fixed lengths for each label.
func (k keyring) derive(label string, parts ...[]byte) []byte {
	info := []byte(label)
	for _, p := range parts {
		info = append(info, p...)
	}
	key, err := hkdf.Expand(sha256.New, k.secret, string(info), 32)
	if err != nil {
		panic(err)
	}
	return key
}

func (e end) bytes() []byte {
	return append(binary.BigEndian.AppendUint16(nil, e.host), e.session[:]...)
}

// groupKey is for what a sender multicasts of one id. Whoever of the job's hosts knows the job's key can open it, and
// could seal it: the hosts of a job trust each other.
func (k keyring) groupKey(s suite, from end, id ID) []byte {
	return k.derive("group", []byte{byte(s)}, from.bytes(), id[:])
}

// pairKey is for what one end sends to another. Because both sessions are in it, both know that the other is there now:
// the receiver learns the sender's session over a connection that is authenticated.
func (k keyring) pairKey(s suite, way kind, from, to end) []byte {
	return k.derive("pair", []byte{byte(s), byte(way)}, from.bytes(), to.bytes())
}

// A sealer makes packets under one key. It may be used by several goroutines.
type sealer struct {
	aead    cipher.AEAD
	header  [12]byte
	counter atomic.Uint64
}

func newSealer(way kind, from end, key func(suite) []byte) *sealer {
	s := fastest()
	aead, err := s.aead(key(s))
	if err != nil {
		panic(err) // fastest names one that exists
	}
	sl := &sealer{aead: aead}
	sl.header[0], sl.header[1] = version<<4|byte(way), byte(s)
	binary.BigEndian.PutUint16(sl.header[2:], from.host)
	copy(sl.header[4:], from.session[:])
	return sl
}

// seal seals p in place and returns it. The message is at p[headerSize:]; p must have room for the tag behind it.
func (s *sealer) seal(p []byte) (sealed []byte, counter uint64) {
	counter = s.counter.Add(1) - 1
	copy(p, s.header[:])
	binary.BigEndian.PutUint64(p[12:], counter)
	var nonce [12]byte
	binary.BigEndian.PutUint64(nonce[4:], counter)
	return s.aead.Seal(p[:headerSize], nonce[:], p[headerSize:], p[:headerSize]), counter
}

// header is what can be read of a packet before it is opened.
type header struct {
	way     kind
	suite   suite
	from    end
	counter uint64
}

var (
	errForeign  = errors.New("no packet of ours")
	errForged   = errors.New("does not open")
	errReplayed = errors.New("came before, or is too old")
)

func parseHeader(p []byte) (h header, err error) {
	if len(p) < overhead || p[0]>>4 != version {
		return h, errForeign
	}
	h.way, h.suite = kind(p[0]&15), suite(p[1])
	if h.way < toGroup || h.way > reply || h.suite < aesGCM || h.suite > chacha20Poly1305 {
		return h, errForeign
	}
	h.from.host = binary.BigEndian.Uint16(p[2:])
	copy(h.from.session[:], p[4:])
	h.counter = binary.BigEndian.Uint64(p[12:])
	return h, nil
}

// An opener opens packets under the keys of one way between two ends. It has no lock.
type opener struct {
	key    func(suite) []byte
	suite  suite
	aead   cipher.AEAD
	window replay.Window
}

// open opens a packet in place and returns its message. Only a packet that opens is asked for its counter.
func (o *opener) open(h header, p []byte) ([]byte, error) {
	if o.aead == nil || o.suite != h.suite {
		aead, err := h.suite.aead(o.key(h.suite))
		if err != nil {
			return nil, errForeign
		}
		// A forged packet must not make the next good one derive a key again.
		message, err := openWith(aead, h, p)
		if err != nil {
			return nil, err
		}
		o.aead, o.suite = aead, h.suite
		return o.accept(h, message)
	}
	message, err := openWith(o.aead, h, p)
	if err != nil {
		return nil, err
	}
	return o.accept(h, message)
}

func (o *opener) accept(h header, message []byte) ([]byte, error) {
	if !o.window.Accept(h.counter) {
		return nil, errReplayed
	}
	return message, nil
}

func openWith(aead cipher.AEAD, h header, p []byte) ([]byte, error) {
	var nonce [12]byte
	binary.BigEndian.PutUint64(nonce[4:], h.counter)
	message, err := aead.Open(p[headerSize:headerSize], nonce[:], p[headerSize:], p[:headerSize])
	if err != nil {
		return nil, errForged
	}
	return message, nil
}
