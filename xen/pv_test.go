package xen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

func TestGuests(t *testing.T) {
	for _, c := range []struct {
		makes   privcmd.Makes
		best    Guests
		ok      bool
		pvh, pv string // what the errors say
	}{
		{privcmd.Makes{PV: true, HVM: true}, PVH, true, "", ""},
		{privcmd.Makes{PV: true}, PV, true, "choose xen-pv", ""},
		{privcmd.Makes{HVM: true}, PVH, true, "", "choose xen"},
		{privcmd.Makes{}, PV, false, "no guests", "no guests"},
	} {
		if g, ok := best(c.makes); g != c.best || ok != c.ok {
			t.Errorf("of %+v it takes %v (%v)", c.makes, g, ok)
		}
		for g, want := range map[Guests]string{PVH: c.pvh, PV: c.pv} {
			err := g.lacks(c.makes)
			if want == "" && err != nil || want != "" && (!errors.Is(err, hypervisor.ErrNotSupported) || !strings.Contains(err.Error(), want)) {
				t.Errorf("where Xen makes %+v, %v guests lack %v, want %q", c.makes, g, err, want)
			}
		}
	}
	// Names are those of the kinds that are registered.
	for _, g := range []Guests{PVH, PV} {
		if k, err := hypervisor.Choose(g.Name()); err != nil || k.Name != g.Name() || (&Driver{guests: g}).Name() != k.Name {
			t.Errorf("%v guests are of the kind %+v (%v)", g, k, err)
		}
		if got := config("x", g, hypervisor.Shape{}, hypervisor.Kernel{}); !strings.Contains(got, "\ntype=\""+g.String()+"\"\n") {
			t.Errorf("%v guests are configured as\n%s", g, got)
		}
	}
	if l := PV.memoryMap(6 << 30); len(l) != 1 || l[0].Start != 0 || l[0].Size != 6<<30 {
		t.Errorf("a PV guest has its memory at %+v", l)
	}
}

// pvDomain is a saved PV guest with 600 frames of RAM and one beyond it. The list of its machine frames is in frames 2 and 599; frame 3
// is a page table, 4 is not there. n is the machine frame of frame 0.
func pvDomain(n uint64) (*stream.Domain, []stream.Page) {
	list := binary.LittleEndian.AppendUint32(nil, 0)
	list = binary.LittleEndian.AppendUint32(list, 600)
	list = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(list, 2), 599)
	d := &stream.Domain{MandatoryFlags: 2, Guest: stream.PV, XenMajor: 4, XenMinor: 17, Records: []stream.Record{
		{Type: stream.PVInfo, Body: []byte{8, 4, 0, 0, 0, 0, 0, 0}}, {Type: stream.StaticDataEnd}, {Type: stream.P2MFrames, Body: list}}}
	var pages []stream.Page
	for f := range uint64(601) {
		pages = append(pages, stream.Page{Frame: f, Content: bytes.Repeat([]byte{byte(f), byte(f >> 8)}, pageSize/2)})
	}
	pages[3].Type = stream.L1 | 8
	pages[4] = stream.Page{Frame: 4, Type: stream.Invalid}
	entries := func(first, count uint64) []byte {
		b := bytes.Repeat([]byte{0xff}, pageSize)
		for i := range count {
			if first+i != 4 {
				binary.LittleEndian.PutUint64(b[8*i:], n+first+i)
			}
		}
		return b
	}
	pages[2].Content, pages[599].Content = entries(0, 512), entries(512, 601-512)
	return d, pages
}

const pvSize = 600 * pageSize

// saved is what xl writes of one.
func saved(t testing.TB, d *stream.Domain, pages []stream.Page) io.Reader {
	t.Helper()
	var b bytes.Buffer
	if err := d.Write(&b, pages); err != nil {
		t.Fatal(err)
	}
	return &b
}

// image takes what is written to a memory file.
type image []byte

func (m image) write(offset int64, content []byte) error { copy(m[offset:], content); return nil }

// A PV guest that was saved is what is written to be restored, from its state and its memory file.
func TestWriteWhole(t *testing.T) {
	d, pages := pvDomain(1000)
	memory := make(image, pvSize)
	s := &sink{layout: PV.memoryMap(pvSize), ram: memory.write}
	got, err := s.read(saved(t, d, pages))
	if err != nil {
		t.Fatal(err)
	}
	b, err := encodeState(got, &s.frames, s.kept)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.kept) != 1 || len(b) > 2*pageSize {
		t.Errorf("the state has %d bytes and %d pages, want the one that is beyond RAM", len(b), len(s.kept))
	}
	if _, err := decodeState(b, PVH); !errors.Is(err, errState) {
		t.Errorf("as a state of a PVH guest: %v", err)
	}
	st, err := decodeState(b, PV)
	if err != nil {
		t.Fatal(err)
	}
	var whole bytes.Buffer
	if err := st.writeWhole(t.Context(), &whole, PV.memoryMap(pvSize), bytes.NewReader(memory)); err != nil {
		t.Fatal(err)
	}
	var back []stream.Page
	again, err := stream.Read(&whole, func(p stream.Page) error {
		p.Content = bytes.Clone(p.Content)
		back = append(back, p)
		return nil
	})
	if err != nil || !reflect.DeepEqual(back, pages) {
		t.Fatalf("it is another with %d pages (%v)", len(back), err)
	}
	if list, err := again.P2M(); err != nil || list.Frames != 601 {
		t.Errorf("it has machine frames of %+v (%v)", list, err)
	}
	// What is missing is said, not made up.
	if err := st.writeWhole(t.Context(), io.Discard, PV.memoryMap(pvSize), bytes.NewReader(memory[:pvSize-1])); !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "memory file") {
		t.Errorf("of a memory file that is too short: %v", err)
	}
	st.kept = nil
	if err := st.writeWhole(t.Context(), io.Discard, PV.memoryMap(pvSize), bytes.NewReader(memory)); !errors.Is(err, errState) {
		t.Errorf("without a page that is not RAM: %v", err)
	}
}

// Of a PV guest that was restored and saved again, pages are dirtied if they are others in the form in which they are saved, and read in it.
func TestTranslation(t *testing.T) {
	_, pages := pvDomain(1000)
	memory := make(image, pvSize)
	for _, p := range pages[:600] {
		copy(memory[p.Frame*pageSize:], p.Content)
	}
	d, pages := pvDomain(5000) // in other machine frames
	pages[3].Content = bytes.Repeat([]byte{3}, pageSize)
	pages[7].Content = bytes.Repeat([]byte{7, 7}, pageSize/2)
	pages[8].Type = stream.L1 | 8 // with the same content
	c := newComparer(bytes.NewReader(memory), pvSize)
	tr := &translation{layout: PV.memoryMap(pvSize), dirtied: c.dirtied}
	s := &sink{layout: tr.layout, ram: c.compare, machine: tr}
	if _, err := s.read(saved(t, d, pages)); err != nil {
		t.Fatal(err)
	}
	want := bitset.New(600).Set(2).Set(3).Set(7).Set(599)
	if !c.dirtied.Equal(want) {
		t.Errorf("dirtied are %v, want %v", c.dirtied, want)
	}
	if len(tr.tables) != 1 || !bytes.Equal(tr.tables[3*pageSize], pages[3].Content) {
		t.Errorf("kept are %d page tables, want the one that was dirtied, as it was saved", len(tr.tables))
	}
	for _, c := range []struct {
		offset int64
		frame  uint64
		ok     bool
	}{{0, 5000, true}, {7 * pageSize, 5007, true}, {4 * pageSize, 0, false}, {599 * pageSize, 5599, true}, {600 * pageSize, 0, false}} {
		if frame, ok := tr.machine(c.offset); ok != c.ok || ok && frame != c.frame {
			t.Errorf("at %#x is machine frame %d (%v), want %d (%v)", c.offset, frame, ok, c.frame, c.ok)
		}
	}
	// A list that is not all there.
	pages[599] = stream.Page{Frame: 599, Type: stream.Invalid}
	s = &sink{layout: tr.layout, ram: c.compare, machine: &translation{layout: tr.layout, dirtied: c.dirtied}}
	if _, err := s.read(saved(t, d, pages)); !errors.Is(err, stream.ErrCorrupt) {
		t.Errorf("without a page of its machine frames: %v", err)
	}
	s = &sink{layout: tr.layout, ram: c.compare, machine: &translation{layout: tr.layout, dirtied: c.dirtied}}
	if _, err := s.read(saved(t, d, nil)); !errors.Is(err, stream.ErrCorrupt) {
		t.Errorf("without pages: %v", err)
	}
}

func TestLoadError(t *testing.T) {
	ended := func(how string) error {
		cmd := exec.Command("sh", "-c", how)
		return cmd.Run()
	}
	xl := errors.New("xl restore: exit status 1")
	for name, c := range map[string]struct {
		made, written error
		said          string
		want          string
	}{
		"all is well":          {nil, nil, "", ""},
		"xl fails":             {xl, nil, "", "the device state does not load: xl restore: exit status 1"},
		"xl ends first":        {xl, ended("kill -PIPE $$"), "", "the device state does not load: xl restore: exit status 1"},
		"memory is lost":       {xl, ended("exit 1"), "read its memory file: lost\n", "read its memory file: lost"},
		"the writer is killed": {xl, ended("kill -KILL $$"), "", "what writes its memory has ended: signal: killed"},
	} {
		err := loadError(c.made, c.written, []byte(c.said))
		if got := fmt.Sprint(err); err == nil && c.want != "" || err != nil && got != c.want {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestAhead(t *testing.T) {
	in := func(yield func([]stream.Page) bool) {
		for f := range uint64(100) {
			if !yield([]stream.Page{{Frame: f}}) {
				return
			}
		}
	}
	broken := errors.New("broken")
	read := func(b *batch) error {
		b.pages[0].Content = b.room[:1]
		if b.room[0] = byte(b.pages[0].Frame); b.room[0] == 70 {
			return broken
		}
		return nil
	}
	var got []uint64
	var last error
	for p, err := range ahead(t.Context(), iter.Seq[[]stream.Page](in), read) {
		got, last = append(got, uint64(p[0].Content[0])), err
	}
	if len(got) != 71 || !slices.IsSorted(got) || !errors.Is(last, broken) {
		t.Errorf("there were %v, and the last %v", got, last)
	}
}

func TestRAMOfTables(t *testing.T) {
	gone := make(chan struct{})
	r := &ram{tables: map[int64][]byte{0: bytes.Repeat([]byte{1}, pageSize), pageSize: bytes.Repeat([]byte{2}, pageSize)}, gone: gone}
	b := make([]byte, pageSize)
	if n, err := r.ReadAt(b, pageSize/2); n != pageSize || err != nil || b[0] != 1 || b[pageSize/2] != 2 {
		t.Errorf("read %d bytes (%v): %d, %d", n, err, b[0], b[pageSize/2])
	}
	close(gone)
	if _, err := r.ReadAt(b, 0); err == nil {
		t.Error("it can be read when the domain must not be")
	}
}
