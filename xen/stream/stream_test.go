package stream

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// sample is a PVH guest with what each kind of length and padding needs.
func sample() (*Domain, []Page) {
	params := binary.LittleEndian.AppendUint64(nil, 2)
	for _, v := range []uint64{1, 0xfeffc, 17, 0xfefff} {
		params = binary.LittleEndian.AppendUint64(params, v)
	}
	d := &Domain{
		MandatoryFlags: flagJSON | flagStreamV2, Config: []byte(`{"c_info":{"type":"pvh"}}` + "\x00"),
		Guest: HVM, XenMajor: 4, XenMinor: 17,
		Records: []Record{
			{CPUIDPolicy, bytes.Repeat([]byte{1}, 24)}, {MSRPolicy, bytes.Repeat([]byte{2}, 13)}, {StaticDataEnd, nil},
			{TSCInfo, make([]byte, 24)}, {HVMParams, params}, {HVMContext, bytes.Repeat([]byte{3}, 1001)},
			{optional | 7, []byte("may be skipped")},
		},
		Toolstack: []Record{{EmulatorStore, []byte("12345678key\x00value\x00")}},
	}
	var pages []Page
	for i := range uint64(1500) {
		pages = append(pages, Page{Frame: i, Content: bytes.Repeat([]byte{byte(i), byte(i >> 8)}, PageSize/2)})
	}
	return d, append(pages, Page{Frame: 0xf0000, Type: Invalid}, Page{Frame: 0xfeffc, Content: make([]byte, PageSize)})
}

// pv makes of the sample one of a PV guest with 700 frames.
func pv(d *Domain, p *[]Page) {
	frames := []byte{0, 0, 0, 0, 0xbb, 2, 0, 0}
	for _, f := range []uint64{7, 0x20} {
		frames = binary.LittleEndian.AppendUint64(frames, f)
	}
	d.Guest = PV
	d.Records = []Record{{PVInfo, []byte{8, 4, 0, 0, 0, 0, 0, 0}}, {StaticDataEnd, nil}, {P2MFrames, frames}, {VCPUBasic, make([]byte, 100)}}
	(*p)[3].Type, (*p)[4].Type = L1, L4Pinned
}

func write(t testing.TB, d *Domain, pages []Page) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := d.Write(&b, pages); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(r io.Reader) (*Domain, []Page, error) {
	var pages []Page
	d, err := Read(r, func(p Page) error {
		p.Content = slices.Clone(p.Content)
		pages = append(pages, p)
		return nil
	})
	return d, pages, err
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for name, change := range map[string]func(d *Domain, pages *[]Page){
		"PVH":               func(*Domain, *[]Page) {},
		"no pages":          func(_ *Domain, p *[]Page) { *p = nil },
		"no configuration":  func(d *Domain, _ *[]Page) { d.Config, d.MandatoryFlags = nil, flagStreamV2 },
		"nothing of libxl":  func(d *Domain, _ *[]Page) { d.Toolstack = nil },
		"no body of a page": func(_ *Domain, p *[]Page) { *p = []Page{{Frame: 1, Type: Broken}, {Frame: 2, Type: AllocOnly}} },
		"PV":                pv,
	} {
		t.Run(name, func(t *testing.T) {
			d, pages := sample()
			change(d, &pages)
			whole := write(t, d, pages)
			if len(whole)%8 != (4+len(d.Config))%8*min(1, len(d.Config)) {
				t.Errorf("the stream has %d bytes, which are not whole words", len(whole))
			}
			in := bytes.NewReader(append(whole, "behind"...))
			gotDomain, gotPages, err := read(iotest.HalfReader(in))
			if err != nil {
				t.Fatal(err)
			}
			if in.Len() != len("behind") {
				t.Errorf("%d bytes behind the stream are left", in.Len())
			}
			for i := range gotDomain.Records {
				if len(gotDomain.Records[i].Body) == 0 {
					gotDomain.Records[i].Body = nil
				}
			}
			if !reflect.DeepEqual(gotDomain, d) {
				t.Errorf("read back is %+v, want %+v", gotDomain, d)
			}
			if !reflect.DeepEqual(gotPages, pages) {
				t.Error("the pages are not those that were written")
			}
		})
	}
}

// The bytes are those of the specifications, field by field.
func TestBytes(t *testing.T) {
	d := &Domain{
		MandatoryFlags: flagJSON | flagStreamV2, Config: []byte("{}"), Guest: HVM, XenMajor: 4, XenMinor: 17,
		Records: []Record{{StaticDataEnd, nil}, {TSCInfo, []byte{1, 2, 3}}},
	}
	got := write(t, d, []Page{{Frame: 0x123, Type: Invalid}})
	want := hex.EncodeToString([]byte("Xen saved domain, xl format\n \x00 \r")) +
		"04030201" + "03000000" + "00000000" + "06000000" + "02000000" + "7b7d" +
		"4c6962786c466d74" + "00000002" + "00000000" + // LibxlFmt
		"01000000" + "00000000" + // LIBXC_CONTEXT
		"ffffffffffffffff" + "58454e46" + "00000003" + "0000" + "000000000000" + // XENF
		"02000000" + "0c00" + "0000" + "04000000" + "11000000" + // HVM, 4.17
		"10000000" + "00000000" + // STATIC_DATA_END
		"01000000" + "10000000" + "01000000" + "00000000" + "23010000000000f0" + // PAGE_DATA
		"08000000" + "03000000" + "0102030000000000" +
		"00000000" + "00000000" + "00000000" + "00000000"
	if hex.EncodeToString(got) != want {
		t.Errorf("written is\n%x, want\n%s", got, want)
	}
}

func TestParams(t *testing.T) {
	d, _ := sample()
	got, err := d.Params()
	if err != nil || !slices.Equal(got, []Param{{1, 0xfeffc}, {17, 0xfefff}}) {
		t.Errorf("the parameters are %v (%v)", got, err)
	}
	d.Records = []Record{{HVMParams, []byte{1, 0, 0, 0, 0, 0, 0, 0}}}
	if _, err := d.Params(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a list that is too short: %v", err)
	}
	d.Records = nil
	if got, err := d.Params(); len(got) != 0 || err != nil {
		t.Errorf("a guest without parameters has %v (%v)", got, err)
	}
}

func TestP2M(t *testing.T) {
	d, pages := sample()
	pv(d, &pages)
	seen := 0
	read := &Domain{}
	err := read.ReadWith(bytes.NewReader(write(t, d, pages[:3])), func(Page) error {
		seen++
		p, err := read.P2M() // before the records behind the pages
		if want := (P2M{700, []uint64{7, 0x20}}); err != nil || !reflect.DeepEqual(p, want) {
			t.Errorf("machine frames are in %+v (%v), want %+v", p, err, want)
		}
		return nil
	})
	if err != nil || seen != 3 {
		t.Fatalf("%d pages (%v)", seen, err)
	}
	for name, c := range map[string]struct {
		change func()
		kind   error
	}{
		"a page too few":    {func() { d.Records[2].Body = d.Records[2].Body[:16] }, ErrCorrupt},
		"another first":     {func() { d.Records[2].Body[0] = 1 }, ErrCorrupt},
		"too many frames":   {func() { d.Records[2].Body[7] = 0xff }, ErrCorrupt},
		"not even a header": {func() { d.Records[2].Body = d.Records[2].Body[:4] }, ErrCorrupt},
		"no list":           {func() { d.Records[2].Type = SharedInfo }, ErrCorrupt},
		"32 bits":           {func() { d.Records[0].Body = []byte{4, 3, 0, 0, 0, 0, 0, 0} }, ErrUnknown},
		"no kind":           {func() { d.Records = d.Records[1:] }, ErrCorrupt},
	} {
		d, pages = sample()
		pv(d, &pages)
		c.change()
		if _, err := d.P2M(); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
}

// What makes pages fails, in the middle.
func TestPagesThatFail(t *testing.T) {
	d, pages := sample()
	broken := errors.New("broken")
	var b bytes.Buffer
	err := d.WriteWith(&b, func(yield func([]Page, error) bool) {
		if yield(pages[:2], nil) {
			yield(nil, broken)
		}
	})
	if !errors.Is(err, broken) {
		t.Errorf("written: %v", err)
	}
	if _, got, err := read(&b); !errors.Is(err, ErrTruncated) || len(got) != 2 {
		t.Errorf("read are %d pages (%v)", len(got), err)
	}
}

func TestTruncated(t *testing.T) {
	d, pages := sample()
	whole := write(t, d, pages[:2])
	for n := range whole {
		if _, _, err := read(bytes.NewReader(whole[:n])); !errors.Is(err, ErrTruncated) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(whole), err)
		}
	}
}

func TestReaderThatFails(t *testing.T) {
	d, pages := sample()
	whole := write(t, d, pages[:2])
	broken := errors.New("broken")
	for _, n := range []int{0, 50, 100, 200, len(whole) - 4} {
		if _, _, err := read(io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	if _, err := Read(bytes.NewReader(whole), func(Page) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("the one who gets the pages fails: %v", err)
	}
}

// Each is a good stream with some bytes changed.
func TestBadStreams(t *testing.T) {
	d, _ := sample()
	d.Config, d.MandatoryFlags = nil, flagStreamV2
	good := write(t, d, []Page{{Frame: 1, Content: make([]byte, PageSize)}})
	libxl, context, libxc := 48, 64, 72
	inner := libxc + 40
	page := bytes.Index(good, []byte{1, 0, 0, 0, 16, 16, 0, 0})
	for name, c := range map[string]struct {
		at    int
		bytes string
		kind  error
	}{
		"another magic":                {0, "x", ErrForeign},
		"another byte order":           {32, "\x01\x02", ErrUnknown},
		"a flag of the future":         {36, "\x06", ErrUnknown},
		"the stream before libxl's":    {36, "\x00", ErrUnknown},
		"a huge configuration":         {44, "\xff\xff\xff\xff", ErrCorrupt},
		"no header of libxl's":         {libxl, "l", ErrCorrupt},
		"another version of libxl":     {libxl + 11, "\x03", ErrUnknown},
		"legacy":                       {libxl + 15, "\x02", ErrUnknown},
		"emulators first":              {context, "\x02", ErrCorrupt},
		"nothing":                      {context, "\x00", ErrCorrupt},
		"a checkpoint of libxl":        {context, "\x04", ErrUnknown},
		"a body in the context":        {context + 4, "\x08", ErrCorrupt},
		"no marker":                    {libxc, "\x00", ErrCorrupt},
		"version 2":                    {libxc + 15, "\x02", ErrUnknown},
		"big endian":                   {libxc + 17, "\x01", ErrUnknown},
		"another guest":                {libxc + 24, "\x03", ErrUnknown},
		"another page":                 {libxc + 28, "\x0d", ErrUnknown},
		"an unknown record":            {inner, "\x13", ErrUnknown},
		"the deprecated record":        {inner, "\x0b", ErrUnknown},
		"a verification":               {inner, "\x0d", ErrUnknown},
		"a huge record":                {inner + 4, "\xff\xff\xff\x7f", ErrCorrupt},
		"pages first":                  {inner, "\x01", ErrCorrupt},
		"pages of no number":           {page + 8, "\x00", ErrCorrupt},
		"more pages than a batch":      {page + 8, "\xff\xff", ErrCorrupt},
		"more pages than bytes":        {page + 8, "\x02", ErrCorrupt},
		"a page of an unknown type":    {page + 23, "\x50", ErrUnknown},
		"a page without its content":   {page + 23, "\xf0", ErrCorrupt},
		"an end with a body":           {len(good) - 4, "\x08", ErrCorrupt},
		"a second domain":              {len(good) - 8, "\x01", ErrCorrupt},
		"an unknown record of libxl's": {len(good) - 8, "\x06", ErrUnknown},
	} {
		b := slices.Clone(good)
		copy(b[c.at:], c.bytes)
		_, _, err := read(bytes.NewReader(b))
		if !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v has lines", name, err)
		}
	}
}

func TestWhatIsNotWritten(t *testing.T) {
	for name, change := range map[string]func(d *Domain, pages *[]Page){
		"no guest":            func(d *Domain, _ *[]Page) { d.Guest = 0 },
		"a record of pages":   func(d *Domain, _ *[]Page) { d.Records = append(d.Records, Record{PageData, nil}) },
		"a checkpoint":        func(d *Domain, _ *[]Page) { d.Records = append(d.Records, Record{Checkpoint, nil}) },
		"no static data":      func(d *Domain, _ *[]Page) { d.Records = nil },
		"libxl's own context": func(d *Domain, _ *[]Page) { d.Toolstack = []Record{{LibxcContext, nil}} },
		"half a page":         func(_ *Domain, p *[]Page) { (*p)[0].Content = make([]byte, 2048) },
		"a page too much":     func(_ *Domain, p *[]Page) { (*p)[0].Type = Invalid },
		"a frame too high":    func(_ *Domain, p *[]Page) { (*p)[0].Frame = 1 << frameBits },
	} {
		d, pages := sample()
		change(d, &pages)
		if err := d.Write(io.Discard, pages); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFrames(t *testing.T) {
	var f Frames
	for _, r := range []Run{{0, 0xa0, Normal}, {0x100, 5, Normal}, {0x105, 2, L1Pinned}, {1 << 50, 1, Invalid}} {
		for i := range r.Count {
			if err := f.Add(r.First+i, r.Type); err != nil {
				t.Fatal(err)
			}
		}
	}
	if f.Len() != 0xa0+5+2+1 {
		t.Errorf("there are %d frames", f.Len())
	}
	if err := f.Add(0x106, Normal); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a frame that comes again: %v", err)
	}
	b, err := f.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	var back Frames
	if err := back.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(back, f) {
		t.Errorf("%+v came back as %+v (%v)", f, back, err)
	}
	for n := range b {
		if err := back.UnmarshalBinary(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d of %d bytes: %v", n, len(b), err)
		}
	}
	if err := back.UnmarshalBinary(append(b, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte behind it: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	d, pages := sample()
	var small bytes.Buffer
	if err := d.Write(&small, pages[1498:]); err != nil {
		f.Fatal(err)
	}
	f.Add(small.Bytes())
	pv(d, &pages)
	small = bytes.Buffer{}
	if err := d.Write(&small, pages[2:6]); err != nil {
		f.Fatal(err)
	}
	f.Add(small.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		d, pages, err := read(bytes.NewReader(b))
		if err != nil {
			return
		}
		// Whatever can be read, can be written and read again.
		again := write(t, d, pages)
		d2, pages2, err := read(bytes.NewReader(again))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(pages, pages2) || !bytes.Equal(write(t, d2, pages2), again) {
			t.Error("read again, it is another")
		}
		d.Params()
		if p, err := d.P2M(); err == nil && uint64(len(p.Pages)) != (p.Frames+P2MEntries-1)/P2MEntries {
			t.Errorf("%d frames have %d pages of machine frames", p.Frames, len(p.Pages))
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{2, 0, 5, 0, 1, 3, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		var frames, again Frames
		if frames.UnmarshalBinary(b) != nil {
			return
		}
		b, err := frames.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(frames, again) {
			t.Errorf("%+v came back as %+v (%v)", frames, again, err)
		}
	})
}
