package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	magic     = "Xen saved domain, xl format\n \x00 \r" // xl.c
	byteOrder = 0x01020304

	// Of xl's mandatory flags, all that Xen 4.17 to 4.20 have.
	flagJSON     = 1 << 0 // Config is JSON
	flagStreamV2 = 1 << 1 // libxl's stream follows, and not libxc's

	libxlIdent   = "LibxlFmt"
	libxlVersion = 2
	libxcMarker  = 1<<64 - 1
	libxcIdent   = "XENF"
	libxcVersion = 3
	pageShift    = 12
)

// Limits of lengths, in bytes: libxc's reader has the second, the first is far
// above any configuration.
const (
	configLimit = 16 << 20
	recordLimit = 128 << 20
)

// Read reads a saved domain up to its end and no further. It calls page for
// each page as it comes, in whose Content the next one will be; an error that
// page returns ends the reading. Other errors are ErrTruncated, ErrForeign,
// ErrUnknown, ErrCorrupt, or r's own.
func Read(r io.Reader, page func(Page) error) (*Domain, error) {
	d := &Domain{}
	if err := d.ReadWith(r, page); err != nil {
		return nil, err
	}
	return d, nil
}

// ReadWith does what [Read] does for an empty Domain, which page can look at: it has what has come so far.
func (d *Domain) ReadWith(r io.Reader, page func(Page) error) error {
	if err := d.readHeader(r); err != nil {
		return err
	}
	for {
		kind, length, err := readRecordHeader(r)
		if err != nil {
			return err
		}
		if err := knownOuter(kind); err != nil {
			return err
		}
		switch kind {
		case End:
			if length != 0 || d.Guest == 0 {
				return fmt.Errorf("%w: it ends without a domain", ErrCorrupt)
			}
			return d.check()
		case LibxcContext:
			if length != 0 || d.Guest != 0 {
				return fmt.Errorf("%w: it has more than one domain", ErrCorrupt)
			}
			if err := d.readContext(r, page); err != nil {
				return err
			}
		default:
			if d.Guest == 0 {
				return fmt.Errorf("%w: its state of emulators comes before its domain", ErrCorrupt)
			}
			body, err := readBody(r, int64(length))
			if err != nil {
				return err
			}
			d.Toolstack = append(d.Toolstack, Record{kind, body})
		}
	}
}

// readHeader reads xl's header and libxl's.
func (d *Domain) readHeader(r io.Reader) error {
	var h [len(magic) + 16]byte
	if err := full(r, h[:]); err != nil {
		return err
	}
	if string(h[:len(magic)]) != magic {
		return ErrForeign
	}
	field := func(i int) uint32 { return binary.LittleEndian.Uint32(h[len(magic)+4*i:]) }
	if field(0) != byteOrder {
		return fmt.Errorf("%w: its byte order is %#x", ErrUnknown, field(0))
	}
	d.MandatoryFlags, d.OptionalFlags = field(1), field(2)
	if d.MandatoryFlags&^(flagJSON|flagStreamV2) != 0 || d.MandatoryFlags&flagStreamV2 == 0 {
		return fmt.Errorf("%w: its flags are %#x", ErrUnknown, d.MandatoryFlags)
	}
	if err := d.readConfig(r, field(3)); err != nil {
		return err
	}
	var l [16]byte
	if err := full(r, l[:]); err != nil {
		return err
	}
	version, options := binary.BigEndian.Uint32(l[8:]), binary.BigEndian.Uint32(l[12:])
	if string(l[:8]) != libxlIdent {
		return fmt.Errorf("%w: libxl's header is not where it should be", ErrCorrupt)
	}
	if version != libxlVersion || options != 0 {
		return fmt.Errorf("%w: libxl's version %d with options %#x", ErrUnknown, version, options)
	}
	return nil
}

// readConfig reads xl's optional data, which begins with the configuration.
// What may come behind it is what a newer xl has to say and need not.
func (d *Domain) readConfig(r io.Reader, length uint32) error {
	if length > configLimit {
		return fmt.Errorf("%w: a configuration of %d bytes", ErrCorrupt, length)
	}
	b, err := readExactly(r, int64(length))
	if err != nil || length == 0 {
		return err
	}
	if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
		return fmt.Errorf("%w: its configuration is longer than its header says", ErrCorrupt)
	}
	d.Config = b[4:][:binary.LittleEndian.Uint32(b)]
	return nil
}

// readContext reads libxc's headers and records.
func (d *Domain) readContext(r io.Reader, page func(Page) error) error {
	var h [40]byte
	if err := full(r, h[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(h[:]) != libxcMarker || string(h[8:12]) != libxcIdent {
		return fmt.Errorf("%w: libxc's header is not where it should be", ErrCorrupt)
	}
	if version, options := binary.BigEndian.Uint32(h[12:]), binary.BigEndian.Uint16(h[16:]); version != libxcVersion || options != 0 {
		return fmt.Errorf("%w: libxc's version %d with options %#x", ErrUnknown, version, options)
	}
	d.Guest = Guest(binary.LittleEndian.Uint32(h[24:]))
	if shift := binary.LittleEndian.Uint16(h[28:]); (d.Guest != PV && d.Guest != HVM) || shift != pageShift {
		return fmt.Errorf("%w: %v with pages of 2^%d bytes", ErrUnknown, d.Guest, shift)
	}
	d.XenMajor, d.XenMinor = binary.LittleEndian.Uint32(h[32:]), binary.LittleEndian.Uint32(h[36:])
	var pages pageReader
	for {
		kind, length, err := readRecordHeader(r)
		if err != nil {
			return err
		}
		if err := knownInner(kind); err != nil {
			return err
		}
		switch kind {
		case End:
			if length != 0 {
				return fmt.Errorf("%w: its end has %d bytes", ErrCorrupt, length)
			}
			return nil
		case PageData:
			if d.first() > len(d.Records) {
				return fmt.Errorf("%w: a page comes before the static data", ErrCorrupt)
			}
			if err := pages.read(r, int64(length), page); err != nil {
				return err
			}
			if err := readPadding(r, int64(length)); err != nil {
				return err
			}
		default:
			body, err := readBody(r, int64(length))
			if err != nil {
				return err
			}
			d.Records = append(d.Records, Record{kind, body})
		}
	}
}

func readRecordHeader(r io.Reader) (kind, length uint32, err error) {
	var h [8]byte
	if err := full(r, h[:]); err != nil {
		return 0, 0, err
	}
	kind, length = binary.LittleEndian.Uint32(h[:]), binary.LittleEndian.Uint32(h[4:])
	if length > recordLimit {
		return 0, 0, fmt.Errorf("%w: a record of type %#x has %d bytes", ErrCorrupt, kind, length)
	}
	return kind, length, nil
}

// readBody reads a record's body and its padding.
func readBody(r io.Reader, length int64) ([]byte, error) {
	b, err := readExactly(r, length)
	if err != nil {
		return nil, err
	}
	return b, readPadding(r, length)
}

// readPadding reads what fills a body of so many bytes up to a multiple of 8.
// It must be ignored, whatever it is.
func readPadding(r io.Reader, length int64) error {
	var pad [8]byte
	return full(r, pad[:-length&7])
}

// readExactly grows what it returns with what comes.
func readExactly(r io.Reader, n int64) ([]byte, error) {
	var b bytes.Buffer
	if got, err := io.CopyN(&b, r, n); err != nil {
		return nil, ended(err, got)
	}
	return b.Bytes(), nil
}

func full(r io.Reader, b []byte) error {
	n, err := io.ReadFull(r, b)
	return ended(err, int64(n))
}

// ended tells an early end from a reader that fails.
func ended(err error, got int64) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w (%d bytes into a field)", ErrTruncated, got)
	case err != nil:
		return fmt.Errorf("read a saved domain: %w", err)
	}
	return nil
}
