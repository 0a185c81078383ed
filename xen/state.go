package xen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// state is the device state of a machine: which frames the guest had, and the saved
// domain with those pages alone that are not in the memory file. What a PVH guest's processors' registers
// say of its memory is read out of the saved domain.
//
// Its bytes are a magic, the length of the list of frames as a variable-length integer,
// the list (package stream), and the stream for "xl restore".
type state struct {
	frames stream.Frames
	vcpus  []stream.VCPU // of a PVH guest
	saved  []byte
	domain *stream.Domain // what is in saved
	kept   []stream.Page  // and its pages
}

const stateMagic = "SFXEN\x00\x01\n"

var errState = errors.New("it is no device state of this driver's")

// encodeState makes the bytes of one.
func encodeState(d *stream.Domain, frames *stream.Frames, kept []stream.Page) ([]byte, error) {
	list, err := frames.AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(stateMagic)
	b.Write(binary.AppendUvarint(nil, uint64(len(list))))
	b.Write(list)
	if err := d.Write(&b, kept); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// decodeState reads all of one of a guest of that kind, so that what is wrong with it is known before there is
// a domain.
func decodeState(b []byte, g Guests) (*state, error) {
	rest, ok := bytes.CutPrefix(b, []byte(stateMagic))
	if !ok {
		if len(b) == 0 {
			return nil, fmt.Errorf("%w: it is empty", errState)
		}
		return nil, errState
	}
	length, n := binary.Uvarint(rest)
	if n <= 0 || length > uint64(len(rest)-n) {
		return nil, fmt.Errorf("%w: it is cut short", errState)
	}
	s := &state{}
	list, saved := rest[n:][:length], rest[n:][length:]
	if err := s.frames.UnmarshalBinary(list); err != nil {
		return nil, err
	}
	in := bytes.NewReader(saved)
	var err error
	s.domain, err = stream.Read(in, func(p stream.Page) error {
		p.Content = bytes.Clone(p.Content)
		s.kept = append(s.kept, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if s.domain.Guest != g.saved() || in.Len() > 0 {
		return nil, fmt.Errorf("%w: it has a guest of type %v, not %v, and %d bytes behind it", errState, s.domain.Guest, g.saved(), in.Len())
	}
	if g == PVH {
		s.vcpus, err = s.domain.VCPUs()
	} else {
		_, err = s.domain.P2M()
	}
	if err != nil {
		return nil, err
	}
	s.saved = saved
	return s, nil
}
