package ninep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// HeaderSize is the size in bytes of what every message begins with: size, type and tag.
const HeaderSize = 7

// DataOverhead is how many bytes of a message with data (Twrite, Rread, Rreaddir) are not data, at most. Linux reserves
// the same number.
const DataOverhead = 24

// ErrMalformed is what errors.Is finds in an error about a message whose fields do not fit its size, or which is of a
// type that this package does not know.
var ErrMalformed = errors.New("malformed 9P message")

// A Header begins a message.
type Header struct {
	Size uint32 // of the whole message, bytes
	Type Type
	Tag  uint16
}

// ParseHeader reads a header. It checks nothing.
func ParseHeader(b [HeaderSize]byte) Header {
	return Header{
		Size: binary.LittleEndian.Uint32(b[0:]),
		Type: Type(b[4]),
		Tag:  binary.LittleEndian.Uint16(b[5:]),
	}
}

// A Message is a pointer to one of the T and R structs.
type Message interface {
	Type() Type
	layout(*codec)
}

// Decode reads the fields of a message of type t, all that follows the header. The data of a Twrite, Rread or Rreaddir is
// a part of body afterwards, not a copy. The errors are ErrMalformed's.
func Decode(t Type, body []byte) (Message, error) {
	m := newMessage(t)
	if m == nil {
		return nil, fmt.Errorf("%w: unknown %v", ErrMalformed, t)
	}
	c := codec{decoding: true, buf: body}
	m.layout(&c)
	switch {
	case c.failed:
		return nil, fmt.Errorf("%w: %v of %d bytes is cut short, or a count in it is too high", ErrMalformed, t, len(body))
	case len(c.buf) != 0:
		return nil, fmt.Errorf("%w: %d bytes too many in %v", ErrMalformed, len(c.buf), t)
	}
	return m, nil
}

// Encode appends a message to b, save for the data that ends a Twrite, Rread or Rreaddir: it is returned as it is, to be
// sent after the first part without having been copied.
func Encode(b []byte, tag uint16, m Message) (head, data []byte) {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(m.Type()))
	b = binary.LittleEndian.AppendUint16(b, tag)
	c := codec{buf: b}
	m.layout(&c)
	binary.LittleEndian.PutUint32(c.buf[start:], uint32(len(c.buf)-start+len(c.data)))
	return c.buf, c.data
}

// A codec walks the fields of a message. Decoding, it takes them from the front of buf; encoding, it appends them. After
// a failure it goes on, leaving zeros; the failure is looked at once, at the end.
type codec struct {
	decoding bool
	failed   bool
	buf      []byte
	data     []byte // encoding: what follows buf
}

// take cuts n bytes off when decoding; nil when there are fewer.
func (c *codec) take(n int) []byte {
	if len(c.buf) < n {
		c.failed = true
		c.buf = nil
		return nil
	}
	taken := c.buf[:n:n]
	c.buf = c.buf[n:]
	return taken
}

func (c *codec) u8(v *uint8) {
	if !c.decoding {
		c.buf = append(c.buf, *v)
	} else if b := c.take(1); b != nil {
		*v = b[0]
	}
}

func (c *codec) u16(v *uint16) {
	if !c.decoding {
		c.buf = binary.LittleEndian.AppendUint16(c.buf, *v)
	} else if b := c.take(2); b != nil {
		*v = binary.LittleEndian.Uint16(b)
	}
}

func (c *codec) u32(v *uint32) {
	if !c.decoding {
		c.buf = binary.LittleEndian.AppendUint32(c.buf, *v)
	} else if b := c.take(4); b != nil {
		*v = binary.LittleEndian.Uint32(b)
	}
}

func (c *codec) u64(v *uint64) {
	if !c.decoding {
		c.buf = binary.LittleEndian.AppendUint64(c.buf, *v)
	} else if b := c.take(8); b != nil {
		*v = binary.LittleEndian.Uint64(b)
	}
}

func (c *codec) str(v *string) {
	// A string that its count cannot express is a mistake of the sender's; nothing that comes from a file system is.
	if !c.decoding && len(*v) > math.MaxUint16 {
		panic(fmt.Sprintf("ninep: a string of %d bytes", len(*v)))
	}
	size := uint16(len(*v))
	c.u16(&size)
	if !c.decoding {
		c.buf = append(c.buf, *v...)
	} else {
		*v = string(c.take(int(size)))
	}
}

// bytes is data with its count, and always the last field.
func (c *codec) bytes(v *[]byte) {
	size := uint32(len(*v))
	c.u32(&size)
	if !c.decoding {
		c.data = *v
	} else if uint64(size) <= uint64(len(c.buf)) {
		*v = c.take(int(size))
	} else {
		c.failed = true
	}
}

func (c *codec) qid(v *QID) {
	c.u8((*uint8)(&v.Type))
	c.u32(&v.Version)
	c.u64(&v.Path)
}

func (c *codec) time(v *Time) {
	c.u64(&v.Sec)
	c.u64(&v.Nsec)
}

// count is the number of elements that follow, at most MaxWalk.
func (c *codec) count(n int) int {
	size := uint16(n)
	c.u16(&size)
	if size > MaxWalk {
		c.failed = true
		return 0
	}
	return int(size)
}
