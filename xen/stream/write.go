package stream

import (
	"encoding/binary"
	"io"
	"iter"
)

// Write writes a stream for "xl restore", with pages or without, in many small
// writes. What [Read] made of a stream, with its pages, makes the same stream but
// for the distribution of pages over records.
func (d *Domain) Write(w io.Writer, pages []Page) error {
	return d.WriteWith(w, func(yield func([]Page, error) bool) { yield(pages, nil) })
}

// WriteWith does what [Domain.Write] does, with pages that come some at a time. Their error ends it.
func (d *Domain) WriteWith(w io.Writer, pages iter.Seq2[[]Page, error]) error {
	if err := d.check(); err != nil {
		return err
	}
	if _, err := w.Write(d.headers()); err != nil {
		return err
	}
	first := d.first()
	if err := writeRecords(w, d.Records[:first]); err != nil {
		return err
	}
	for some, err := range pages {
		if err != nil {
			return err
		}
		if err := writePages(w, some); err != nil {
			return err
		}
	}
	for _, records := range [][]Record{d.Records[first:], {{End, nil}}, d.Toolstack, {{End, nil}}} {
		if err := writeRecords(w, records); err != nil {
			return err
		}
	}
	return nil
}

// headers are xl's, libxl's, that of the record for libxc, and libxc's.
func (d *Domain) headers() []byte {
	le, be := binary.LittleEndian, binary.BigEndian
	b := le.AppendUint32([]byte(magic), byteOrder)
	b = le.AppendUint32(b, d.MandatoryFlags)
	b = le.AppendUint32(b, d.OptionalFlags)
	if len(d.Config) == 0 {
		b = le.AppendUint32(b, 0)
	} else {
		b = le.AppendUint32(b, uint32(len(d.Config)+4))
		b = le.AppendUint32(b, uint32(len(d.Config)))
		b = append(b, d.Config...)
	}
	b = append(b, libxlIdent...)
	b = be.AppendUint32(b, libxlVersion)
	b = be.AppendUint32(b, 0)

	b = le.AppendUint32(b, LibxcContext)
	b = le.AppendUint32(b, 0)

	b = be.AppendUint64(b, libxcMarker)
	b = append(b, libxcIdent...)
	b = be.AppendUint32(b, libxcVersion)
	b = be.AppendUint64(b, 0) // options, and what is reserved
	b = le.AppendUint32(b, uint32(d.Guest))
	b = le.AppendUint32(b, pageShift)
	b = le.AppendUint32(b, d.XenMajor)
	return le.AppendUint32(b, d.XenMinor)
}

func writeRecords(w io.Writer, records []Record) error {
	for _, r := range records {
		b := binary.LittleEndian.AppendUint32(nil, r.Type)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(r.Body)))
		b = append(b, r.Body...)
		if _, err := w.Write(append(b, make([]byte, -len(r.Body)&7)...)); err != nil {
			return err
		}
	}
	return nil
}
