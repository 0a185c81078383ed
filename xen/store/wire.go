package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// kind is the type of a message, as in Xen's public header io/xs_wire.h.
type kind uint32

const (
	kindDirectory      kind = 1
	kindRead           kind = 2
	kindGetPermissions kind = 3
	kindWatch          kind = 4
	kindUnwatch        kind = 5
	kindWrite          kind = 11
	kindMkdir          kind = 12
	kindRemove         kind = 13
	kindSetPermissions kind = 14
	kindWatchEvent     kind = 15
	kindError          kind = 16
)

const (
	headerSize = 16
	bodyLimit  = 4096 // XENSTORE_PAYLOAD_MAX
	pathLimit  = 3072 // XENSTORE_ABS_PATH_MAX
)

// message is one message of either direction. Transactions are not used.
type message struct {
	kind   kind
	number uint32
	body   []byte
}

// errProtocol is matched by the error of a connection on which nonsense came.
var errProtocol = errors.New("what XenStore says makes no sense")

// readMessage reads one. At the end of the connection it returns io.EOF.
func readMessage(r io.Reader) (message, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return message{}, err
	}
	field := func(i int) uint32 { return binary.LittleEndian.Uint32(h[4*i:]) }
	if field(3) > bodyLimit {
		return message{}, fmt.Errorf("%w: a message of %d bytes", errProtocol, field(3))
	}
	m := message{kind: kind(field(0)), number: field(1), body: make([]byte, field(3))}
	if _, err := io.ReadFull(r, m.body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, err
	}
	return m, nil
}

// append makes the bytes of one.
func (m message) append(b []byte) []byte {
	for _, v := range []uint32{uint32(m.kind), m.number, 0, uint32(len(m.body))} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(b, m.body...)
}

// names are the errors that XenStore has, as it calls them.
var names = map[string]syscall.Errno{
	"EINVAL": syscall.EINVAL, "EACCES": syscall.EACCES, "EEXIST": syscall.EEXIST, "EISDIR": syscall.EISDIR,
	"ENOENT": syscall.ENOENT, "ENOMEM": syscall.ENOMEM, "ENOSPC": syscall.ENOSPC, "EIO": syscall.EIO,
	"ENOTEMPTY": syscall.ENOTEMPTY, "ENOSYS": syscall.ENOSYS, "EROFS": syscall.EROFS, "EBUSY": syscall.EBUSY,
	"EAGAIN": syscall.EAGAIN, "EISCONN": syscall.EISCONN, "E2BIG": syscall.E2BIG, "EPERM": syscall.EPERM,
}

// parseError makes an error of the body of one.
func parseError(body []byte) error {
	name := string(trimNul(body))
	if e, ok := names[name]; ok {
		return e
	}
	return fmt.Errorf("XenStore's error %.40q", name)
}

func trimNul(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == 0 {
		return b[:n-1]
	}
	return b
}
