package gntdev

import (
	"errors"
	"testing"
	"unsafe"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

func TestSegmentsAreAsTheKernelReadsThem(t *testing.T) {
	if unsafe.Sizeof(segment{}) != 24 {
		t.Fatalf("one has %d bytes", unsafe.Sizeof(segment{}))
	}
	b := make([]byte, 0x800)
	at := uint64(uintptr(unsafe.Pointer(&b[0])))
	const grant = 7<<48 | 0x800<<32 | 0x1234
	s := Segment{Domain: 7, Ref: 0x1234, Offset: 0x800, Bytes: b}
	if got, err := s.encode(); err != nil || got != (segment{source: grant, dest: at, length: 0x800, flags: 1}) {
		t.Errorf("to read it is %+v (%v)", got, err)
	}
	s.Write = true
	if got, err := s.encode(); err != nil || got != (segment{source: at, dest: grant, length: 0x800, flags: 2}) {
		t.Errorf("to write it is %+v (%v)", got, err)
	}
	for _, bad := range []Segment{{Offset: -1, Bytes: b}, {Offset: 0x801, Bytes: b}, {Bytes: nil}, {Bytes: make([]byte, 5000)}} {
		if _, err := bad.encode(); err == nil {
			t.Errorf("%d bytes at %d are taken", len(bad.Bytes), bad.Offset)
		}
	}
}

func TestReal(t *testing.T) {
	d, err := Open()
	if errors.Is(err, hypervisor.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Map(32000, 8); err == nil {
		t.Error("a page of a domain that is not there was mapped")
	}
	if err := d.Copy([]Segment{{Domain: 32000, Ref: 8, Bytes: make([]byte, 100)}}); err == nil {
		t.Error("a page of a domain that is not there was copied")
	}
	if err := d.Copy(nil); err != nil {
		t.Error(err)
	}
}
