package link

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
)

// token names a link, or a call for a connection, to those who have been told it: the two ends.
type token [16]byte

func newToken() (t token) {
	rand.Read(t[:]) // never fails: it ends the process instead
	return t
}

func (t token) String() string { return hex.EncodeToString(t[:4]) }

// The first bytes after a handshake are the dialler's:
//
//	role  1 byte   what this connection is to be
//	token 16 bytes asLink: zeros; asConnection: of the link; asAnswer: of the call
//	kind  1 byte   what the connection is for; 0 for a link
//
// and the listener answers:
//
//	verdict 1 byte
//	token   16 bytes  accepted, of a link: its token; otherVersion: the listener's protocol, four bytes, high first
//
// Of the layout nothing may ever change, for daemons of different versions read it.
const (
	asLink       = 1
	asConnection = 2 // one more for a link, by wish of the end that dials
	asAnswer     = 3 // one more for a link, by wish of the end that listens

	accepted     = 1
	unknown      = 2 // no such link, or no such call: it has ended
	otherVersion = 3
)

type preface struct {
	role  byte
	token token
	kind  byte
}

func (p preface) write(w io.Writer) error {
	b := append([]byte{p.role}, p.token[:]...)
	_, err := w.Write(append(b, p.kind))
	return err
}

func readPreface(r io.Reader) (p preface, err error) {
	var b [18]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return p, err
	}
	p.role, p.token, p.kind = b[0], token(b[1:17]), b[17]
	isLink := p.role == asLink
	if p.role < asLink || p.role > asAnswer || isLink != (p.kind == 0) || isLink != (p.token == token{}) {
		return p, fmt.Errorf("it began with role %d and kind %d, which is no beginning", p.role, p.kind)
	}
	return p, nil
}

func writeVerdict(w io.Writer, verdict byte, t token) error {
	_, err := w.Write(append([]byte{verdict}, t[:]...))
	return err
}

func readVerdict(r io.Reader) (verdict byte, t token, err error) {
	var b [17]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, t, err
	}
	return b[0], token(b[1:]), nil
}

// protocolToken carries a protocol's number where a token would be.
func protocolToken(protocol uint32) (t token) {
	binary.BigEndian.PutUint32(t[:], protocol)
	return t
}

func (t token) protocol() uint32 { return binary.BigEndian.Uint32(t[:]) }
