package xen

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/paging"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

func TestLayout(t *testing.T) {
	small, big := PVH.memoryMap(128<<20), PVH.memoryMap(6<<30)
	for _, c := range []struct {
		l      layout
		frame  uint64
		offset int64
		ok     bool
	}{
		{small, 0, 0, true},
		{small, 0x7fff, 128<<20 - pageSize, true},
		{small, 0x8000, 0, false},
		{small, 0xfeffc, 0, false},
		{big, 0xfbfff, 0xfc000000 - pageSize, true},
		{big, 0xfc000, 0, false},
		{big, 0x100000, 0xfc000000, true},
		{big, 0x100000 + (6<<30-0xfc000000)/pageSize - 1, 6<<30 - pageSize, true},
		{big, 0x100000 + (6<<30-0xfc000000)/pageSize, 0, false},
	} {
		offset, ok := c.l.offset(c.frame)
		if offset != c.offset || ok != c.ok {
			t.Errorf("frame %#x is at %#x (%v), want %#x (%v)", c.frame, offset, ok, c.offset, c.ok)
		}
		if frame, ok := c.l.frame(offset); c.ok && (frame != c.frame || !ok) {
			t.Errorf("at %#x is frame %#x (%v), want %#x", offset, frame, ok, c.frame)
		}
	}
	if _, ok := big.frame(6 << 30); ok {
		t.Error("there is a frame behind the end")
	}
}

func framesOf(t *testing.T, runs ...stream.Run) *stream.Frames {
	f := &stream.Frames{}
	for _, r := range runs {
		for i := range r.Count {
			if err := f.Add(r.First+i, r.Type); err != nil {
				t.Fatal(err)
			}
		}
	}
	return f
}

func TestPieces(t *testing.T) {
	frames := framesOf(t, stream.Run{First: 0, Count: 0xa0}, stream.Run{First: 0x100, Count: 0x600}, stream.Run{First: 0x700, Count: 1, Type: stream.Invalid},
		stream.Run{First: 0xfbffe, Count: 4}, stream.Run{First: 0x100000, Count: 2})
	got := slices.Collect(PVH.memoryMap(5 << 30).pieces(frames))
	want := []paging.Piece{
		{First: 0, Count: 0xa0, Offset: 0}, {First: 0x100, Count: 0x600, Offset: 0x100000},
		{First: 0xfbffe, Count: 2, Offset: 0xfbffe000}, {First: 0x100000, Count: 2, Offset: 0xfc000000},
	}
	if !slices.Equal(got, want) {
		t.Errorf("the pieces are %x, want %x", got, want)
	}
	super, single := split(want[1])
	if !slices.Equal(super, []uint64{0x200, 0x400}) || len(single) != 0x200 || single[0] != 0x100 || single[0x1ff] != 0x6ff {
		t.Errorf("superpages are %x, and %d single pages", super, len(single))
	}
}

// domain is a small saved one, with three pages of RAM and one that is not.
func domain() (*stream.Domain, []stream.Page) {
	d := &stream.Domain{MandatoryFlags: 2, Guest: stream.HVM, XenMajor: 4, XenMinor: 17,
		Records: []stream.Record{{Type: stream.StaticDataEnd}, {Type: stream.HVMContext, Body: make([]byte, 8)}}}
	page := func(frame uint64, b byte) stream.Page {
		return stream.Page{Frame: frame, Content: bytes.Repeat([]byte{b}, pageSize)}
	}
	return d, []stream.Page{page(0, 1), page(1, 0), page(2, 3), page(0xfeffc, 4)}
}

func TestMemoryFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 2 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	_, pages := domain()
	w := &imageWriter{f: f}
	s := &sink{layout: PVH.memoryMap(size), ram: w.write}
	for _, p := range append(pages, stream.Page{Frame: 0xff000, Type: stream.Invalid}) {
		if err := s.take(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	if len(s.kept) != 1 || s.kept[0].Frame != 0xfeffc || s.content != 3 || s.frames.Len() != 5 {
		t.Errorf("kept are %d pages, of %d in RAM and %d in all", len(s.kept), s.content, s.frames.Len())
	}
	b, err := os.ReadFile(path)
	if err != nil || b[0] != 1 || b[pageSize] != 0 || b[2*pageSize] != 3 || b[3*pageSize] != 0 {
		t.Errorf("the memory file is another (%v)", err)
	}
	// Of the machine that was made of it, one page is another.
	c := newComparer(f, size)
	s = &sink{layout: PVH.memoryMap(size), ram: c.compare}
	pages[1].Content = bytes.Repeat([]byte{9}, pageSize)
	for _, p := range pages {
		if err := s.take(p); err != nil {
			t.Fatal(err)
		}
	}
	if c.dirtied.Count() != 1 || !c.dirtied.Test(1) || c.dirtied.Len() != size/pageSize {
		t.Errorf("dirtied are %v", c.dirtied)
	}
	if err := s.take(pages[0]); !errors.Is(err, stream.ErrCorrupt) {
		t.Errorf("a page that comes twice: %v", err)
	}
	// Suspended again, what has become zero is zero.
	w = &imageWriter{f: f, whole: true}
	if err := errors.Join(w.write(0, zeroPage[:]), w.flush()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || b[0] != 0 {
		t.Errorf("a page of zeros was not written (%v)", err)
	}
}

func TestState(t *testing.T) {
	d, pages := domain()
	frames := framesOf(t, stream.Run{First: 0, Count: 3}, stream.Run{First: 0xfeffc, Count: 1})
	b, err := encodeState(d, frames, pages[3:])
	if err != nil {
		t.Fatal(err)
	}
	s, err := decodeState(b, PVH)
	if err != nil || !reflect.DeepEqual(&s.frames, frames) {
		t.Fatalf("it came back as %+v (%v)", s, err)
	}
	var kept []uint64
	if _, err := stream.Read(bytes.NewReader(s.saved), func(p stream.Page) error { kept = append(kept, p.Frame); return nil }); err != nil || !slices.Equal(kept, []uint64{0xfeffc}) {
		t.Errorf("the saved domain has the pages %x (%v)", kept, err)
	}
	for n := range b {
		if _, err := decodeState(b[:n], PVH); err == nil {
			t.Fatalf("%d of %d bytes load", n, len(b))
		}
	}
	if _, err := decodeState(append(b, 0), PVH); !errors.Is(err, errState) {
		t.Errorf("a byte behind it: %v", err)
	}
	d.Guest = stream.PV
	d.Records = append(d.Records, stream.Record{Type: stream.P2MFrames, Body: make([]byte, 8)})
	if b, err = encodeState(d, frames, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := decodeState(b, PVH); !errors.Is(err, errState) {
		t.Errorf("a PV guest as a PVH one: %v", err)
	}
	if _, err := decodeState(b, PV); !errors.Is(err, stream.ErrCorrupt) {
		t.Errorf("a PV guest that has no list of machine frames: %v", err)
	}
}

func FuzzState(f *testing.F) {
	for _, of := range []func() (*stream.Domain, []stream.Page){domain, func() (*stream.Domain, []stream.Page) { return pvDomain(1000) }} {
		d, pages := of()
		var frames stream.Frames
		for _, p := range pages[:4] {
			if err := frames.Add(p.Frame, p.Type); err != nil {
				f.Fatal(err)
			}
		}
		b, err := encodeState(d, &frames, pages[3:4])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, g := range []Guests{PVH, PV} {
			s, err := decodeState(b, g)
			if err != nil {
				continue
			}
			for p := range g.memoryMap(1 << 40).pieces(&s.frames) {
				if p.Offset < 0 || p.Offset+int64(p.Count)*pageSize > 1<<40 {
					t.Errorf("%d frames are at %#x", p.Count, p.Offset)
				}
			}
			if s.frames.Len() < 1<<12 { // what can be read can be written, or is said to lack something
				err := s.writeWhole(t.Context(), io.Discard, g.memoryMap(1<<20), bytes.NewReader(make([]byte, 1<<20)))
				if err != nil && !errors.Is(err, errState) {
					t.Error(err)
				}
			}
		}
	})
}

func TestConfig(t *testing.T) {
	got := config("clone-1", PVH, hypervisor.Shape{VCPUs: 2, Memory: 256 << 20}, hypervisor.Kernel{Image: "/k", Initrd: "/i", Cmdline: `a "b"`})
	want := "name=\"clone-1\"\ntype=\"pvh\"\nmemory=256\nvcpus=2\nkernel=\"/k\"\nramdisk=\"/i\"\ncmdline='a \"b\"'\n"
	if got != want {
		t.Errorf("it is\n%s, want\n%s", got, want)
	}
	if got := config("x", PVH, hypervisor.Shape{}, hypervisor.Kernel{}); !strings.HasSuffix(got, "kernel=\"/dev/null\"\n") {
		t.Errorf("of a restored one it is\n%s", got)
	}
	for _, bad := range []string{"a\nb", `"'`, `\`} {
		if checkQuotable("a", bad) == nil {
			t.Errorf("%q can be quoted", bad)
		}
	}
	if line := cmdline("own", []hypervisor.Port{{Name: "control"}, {Name: "data"}}); !strings.HasSuffix(line, " own mpirun-sf.port=control:hvc1 mpirun-sf.port=data:hvc2") {
		t.Errorf("the command line is %s", line)
	}
}

func TestComplaints(t *testing.T) {
	for said, want := range map[string]string{
		"": "",
		"Parsing config from /x.cfg\nxc: error: Unable to allocate (12): Internal error\nlibxl: error: libxl_create.c:1:f: Domain 3:cannot restore\nlast": "Unable to allocate (12): Internal error",
		"one\ntwo\n": "two",
	} {
		if got := complaintOf([]byte(said)); got != want {
			t.Errorf("of %q it is %q, want %q", said, got, want)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := toolError(over, "save", errors.New("signal: killed"), nil); !errors.Is(err, context.Canceled) || err.Error() != "xl save: context canceled" {
		t.Errorf("it is %v", err)
	}
}

// What is only prepared has no domain, and number 0 is this one's own.
func TestPrepared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := hypervisor.Config{Name: "clone-1", Dir: t.TempDir(), Shape: hypervisor.Shape{VCPUs: 1, Memory: 1 << 20}, MemoryPath: path}
	d := &Driver{owner: &owner{mark: strings.Repeat("0", markLength)}}
	vm, err := d.Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Suspend(t.Context()); !errors.Is(err, errNotStarted) {
		t.Errorf("suspended: %v", err)
	}
	if err := vm.Resume(t.Context()); !errors.Is(err, errNotStarted) {
		t.Errorf("resumed: %v", err)
	}
	err = vm.Restore(t.Context(), []byte("noise"))
	if !errors.Is(err, errState) || !strings.HasPrefix(err.Error(), "restore clone-1: the device state does not load: ") {
		t.Errorf("restored: %v", err)
	}
	<-vm.Done()
	vm.Kill()
	if !errors.Is(vm.Err(), errState) {
		t.Errorf("it is gone because of %v", vm.Err())
	}
	cfg.Memory = 2 << 20
	if _, err := d.Prepare(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "1048576 bytes, want 2097152") {
		t.Errorf("a memory file of another size: %v", err)
	}
}
