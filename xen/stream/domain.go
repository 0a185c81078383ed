package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What can be wrong with a stream that is read, besides the reader's own errors.
var (
	// ErrTruncated: the input ends before the stream does.
	ErrTruncated = errors.New("the saved domain is truncated")
	// ErrForeign: the input is not what xl save writes.
	ErrForeign = errors.New("this is not a saved domain")
	// ErrUnknown: a version, a flag or a record that must be understood is not.
	ErrUnknown = errors.New("the saved domain is of a kind that is not known here")
	// ErrCorrupt: fields contradict each other.
	ErrCorrupt = errors.New("the saved domain is corrupt")
)

// Domain is a saved domain without its pages.
type Domain struct {
	// MandatoryFlags and Config are xl's header: what is in Config, and the
	// configuration that "xl restore" takes when it is given no other one.
	MandatoryFlags, OptionalFlags uint32
	Config                        []byte

	Guest              Guest
	XenMajor, XenMinor uint32   // of the hypervisor that the domain ran on
	Records            []Record // libxc's, in their order, without PAGE_DATA and END
	Toolstack          []Record // libxl's that follow, without END
}

// Record is one record of libxc's or libxl's stream.
type Record struct {
	Type uint32
	Body []byte
}

// Guest is the type of a guest in libxc's domain header. PVH is HVM.
type Guest uint32

// The types of guests.
const (
	PV  Guest = 1
	HVM Guest = 2
)

func (g Guest) String() string {
	switch g {
	case PV:
		return "PV"
	case HVM:
		return "HVM"
	}
	return fmt.Sprintf("guest type %d", uint32(g))
}

// Types of libxc's records.
const (
	End           uint32 = 0x00
	PageData      uint32 = 0x01
	PVInfo        uint32 = 0x02
	P2MFrames     uint32 = 0x03
	VCPUBasic     uint32 = 0x04
	VCPUExtended  uint32 = 0x05
	VCPUXSave     uint32 = 0x06
	SharedInfo    uint32 = 0x07
	TSCInfo       uint32 = 0x08
	HVMContext    uint32 = 0x09
	HVMParams     uint32 = 0x0a
	VCPUMSRs      uint32 = 0x0c
	Verify        uint32 = 0x0d // not for a saved domain, as what follows
	Checkpoint    uint32 = 0x0e
	DirtyPFNs     uint32 = 0x0f
	StaticDataEnd uint32 = 0x10
	CPUIDPolicy   uint32 = 0x11
	MSRPolicy     uint32 = 0x12
)

// Types of libxl's records.
const (
	LibxcContext  uint32 = 0x01
	EmulatorStore uint32 = 0x02
	EmulatorState uint32 = 0x03
)

// optional marks the types of records that a reader need not know.
const optional = 1 << 31

// Record returns the body of the first of libxc's records of a type.
func (d *Domain) Record(kind uint32) (body []byte, ok bool) {
	for _, r := range d.Records {
		if r.Type == kind {
			return r.Body, true
		}
	}
	return nil, false
}

// Param is a parameter of an HVM guest, as HVMOP_get_param gives it.
type Param struct{ Index, Value uint64 }

// Params are the HVM parameters, none for a PV guest.
func (d *Domain) Params() ([]Param, error) {
	b, ok := d.Record(HVMParams)
	if !ok {
		return nil, nil
	}
	if len(b) < 8 || uint64(len(b)) != 8+16*uint64(binary.LittleEndian.Uint32(b)) {
		return nil, fmt.Errorf("%w: its list of parameters has %d bytes", ErrCorrupt, len(b))
	}
	var params []Param
	for b = b[8:]; len(b) > 0; b = b[16:] {
		params = append(params, Param{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])})
	}
	return params, nil
}

// check refuses what cannot be written.
func (d *Domain) check() error {
	if d.Guest != PV && d.Guest != HVM {
		return fmt.Errorf("%w: %v", ErrUnknown, d.Guest)
	}
	if len(d.Config) > configLimit {
		return fmt.Errorf("%w: a configuration of %d bytes", ErrCorrupt, len(d.Config))
	}
	for _, r := range d.Records {
		if err := knownInner(r.Type); err != nil {
			return err
		}
		if r.Type == End || r.Type == PageData || len(r.Body) > recordLimit {
			return fmt.Errorf("%w: a record of type %#x and %d bytes", ErrCorrupt, r.Type, len(r.Body))
		}
	}
	for _, r := range d.Toolstack {
		if err := knownOuter(r.Type); err != nil {
			return err
		}
		if r.Type == End || r.Type == LibxcContext || len(r.Body) > recordLimit {
			return fmt.Errorf("%w: a record of libxl's type %#x and %d bytes", ErrCorrupt, r.Type, len(r.Body))
		}
	}
	if d.first() > len(d.Records) {
		return fmt.Errorf("%w: nothing ends its static data", ErrCorrupt)
	}
	return nil
}

// first is the index of the record that pages come before; more than there are
// if what must come before pages is missing.
func (d *Domain) first() int {
	last := StaticDataEnd
	if d.Guest == PV {
		last = P2MFrames
	}
	for i, r := range d.Records {
		if r.Type == last {
			return i + 1
		}
	}
	return len(d.Records) + 1
}

// knownInner refuses libxc's records that must be understood and are not, and
// those that only a migration has.
func knownInner(kind uint32) error {
	switch {
	case kind&optional != 0, kind <= VCPUMSRs && kind != 0x0b, kind >= StaticDataEnd && kind <= MSRPolicy:
		return nil
	case kind >= Verify && kind <= DirtyPFNs:
		return fmt.Errorf("%w: it has a record of a live migration (type %#x)", ErrUnknown, kind)
	}
	return fmt.Errorf("%w: it has a record of type %#x", ErrUnknown, kind)
}

// knownOuter does so for libxl's.
func knownOuter(kind uint32) error {
	if kind&optional != 0 || kind <= EmulatorState {
		return nil
	}
	return fmt.Errorf("%w: it has a record of libxl's type %#x", ErrUnknown, kind)
}
