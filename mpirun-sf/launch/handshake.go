package launch

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// A clone of the VM that a launcher runs in holds a copy of the launcher, and so
// of the secret that it made before the fork: nothing has to be handed over.
// What goes over the wire, in bytes:
//
//	clone → parent   magic 16, the clone's id 4, its ticket 63 (zeros after it), nonce 32
//	parent → clone   nonce 32, HMAC-SHA256 32 with the label "parent"
//	clone → parent   HMAC-SHA256 32 with the label "clone"
//
// Both codes are of the label, id and ticket, and both nonces. The parent answers first,
// so a clone never proves anything to a stranger that it could use elsewhere;
// and its nonce is of this connection alone, so what was heard of another one
// proves nothing.

// member is a clone among those of a checkpoint.
type member struct {
	ticket string
	id     int
}

// key is the secret of one checkpoint.
type key [32]byte

// newKey makes the secret of one checkpoint.
func newKey() (k key) {
	rand.Read(k[:])
	return k
}

// handshakeLimit is how long either side waits for the other.
const handshakeLimit = 30 * time.Second

const (
	helloMagic = "mpirun-sf fork 2"
	nonceSize  = 32
	helloSize  = len(helloMagic) + 4 + api.MaxName + nonceSize

	labelParent = "parent"
	labelClone  = "clone"
)

var errStranger = errors.New("the other end does not know the secret of this fork")

// hello is what a clone says first.
type hello struct {
	member
	nonce [nonceSize]byte
}

func (h hello) bytes() []byte {
	b := binary.BigEndian.AppendUint32([]byte(helloMagic), uint32(h.id))
	var name [api.MaxName]byte
	copy(name[:], h.ticket)
	return slices.Concat(b, name[:], h.nonce[:])
}

// parseHello reads a hello that anybody on the network may have sent.
func parseHello(b []byte) (h hello, err error) {
	if len(b) != helloSize || string(b[:len(helloMagic)]) != helloMagic {
		return h, errors.New("it does not begin as a clone of this launcher does")
	}
	b = b[len(helloMagic):]
	id := binary.BigEndian.Uint32(b)
	if id < 1 || id > network.MaxID {
		return h, fmt.Errorf("it says that it is clone %d, which there cannot be", id)
	}
	name, rest := b[4:4+api.MaxName], b[4+api.MaxName:]
	h.id, h.ticket = int(id), string(bytes.TrimRight(name, "\x00"))
	if !api.IsName(h.ticket) {
		return h, fmt.Errorf("it says that its ticket is %q, which is no name", h.ticket)
	}
	copy(h.nonce[:], rest)
	return h, nil
}

// proof is what only who has the key can say of a connection.
func (k key) proof(label string, h hello, parent [nonceSize]byte) []byte {
	m := hmac.New(sha256.New, k[:])
	m.Write([]byte(label))
	m.Write([]byte{0})
	m.Write(h.bytes())
	m.Write(parent[:])
	return m.Sum(nil)
}

// introduce is the clone's side. conn is closed on an error.
func (k key) introduce(conn net.Conn, who member) (err error) {
	defer func() {
		if err != nil {
			conn.Close()
			err = fmt.Errorf("meet the parent: %w", err)
		}
	}()
	conn.SetDeadline(time.Now().Add(handshakeLimit))
	h := hello{member: who}
	rand.Read(h.nonce[:])
	if _, err := conn.Write(h.bytes()); err != nil {
		return err
	}
	var answer struct {
		nonce [nonceSize]byte
		proof [sha256.Size]byte
	}
	if _, err := io.ReadFull(conn, answer.nonce[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, answer.proof[:]); err != nil {
		return err
	}
	if !hmac.Equal(answer.proof[:], k.proof(labelParent, h, answer.nonce)) {
		return errStranger
	}
	if _, err := conn.Write(k.proof(labelClone, h, answer.nonce)); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

// admit is the parent's side: it returns which clone conn leads to. conn is
// closed on an error.
func (k key) admit(conn net.Conn) (who member, err error) {
	defer func() {
		if err != nil {
			conn.Close()
			err = fmt.Errorf("admit %v: %w", conn.RemoteAddr(), err)
		}
	}()
	conn.SetDeadline(time.Now().Add(handshakeLimit))
	var first [helloSize]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return member{}, err
	}
	h, err := parseHello(first[:])
	if err != nil {
		return member{}, err
	}
	var nonce [nonceSize]byte
	rand.Read(nonce[:])
	if _, err := conn.Write(append(nonce[:], k.proof(labelParent, h, nonce)...)); err != nil {
		return member{}, err
	}
	var proof [sha256.Size]byte
	if _, err := io.ReadFull(conn, proof[:]); err != nil {
		return member{}, err
	}
	if !hmac.Equal(proof[:], k.proof(labelClone, h, nonce)) {
		return member{}, errStranger
	}
	return h.member, conn.SetDeadline(time.Time{})
}
