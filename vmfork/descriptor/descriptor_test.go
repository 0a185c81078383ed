package descriptor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

func example() *Descriptor {
	const memory = 512 << 20
	zero := bitset.New(memory / PageSize)
	for i := range zero.Len() {
		zero.SetTo(i, i%7 < 4)
	}
	state := make([]byte, 1000)
	rng := rand.NewChaCha8([32]byte{})
	rng.Read(state)
	return &Descriptor{
		Format: metadataFormat, ID: "4fe5c0", Generation: 3, Created: time.Date(2025, 11, 20, 13, 0, 0, 5, time.UTC),
		Hypervisor: Hypervisor{Name: "qemu", Version: "7.2.19", Accelerator: "tcg", Machine: "pc-q35-7.2"},
		VCPUs:      2, Memory: memory,
		Devices: []string{"virtio-net-pci,id=net0", "virtio-balloon-pci,free-page-reporting=on"},
		MemoryMap: []Range{
			{Start: 0, Size: 256 << 20},
			{Start: 4 << 30, Size: 256 << 20, Offset: 256 << 20},
		},
		MemoryImage: Image{Name: "ram", Size: memory, Slices: []slice.ID{{1}, {2}}},
		Disks:       []Image{{Name: "root", Size: 1 << 30, Slices: []slice.ID{{3}}}},
		Properties:  map[string]string{"channel": "virtio-serial"},
		ZeroPages:   zero, DeviceState: state,
	}
}

func encoded(t testing.TB, d *Descriptor) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, d); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func equal(a, b *Descriptor) bool {
	x, y := *a, *b
	same := x.ZeroPages.Equal(y.ZeroPages)
	x.ZeroPages, y.ZeroPages = nil, nil
	return same && reflect.DeepEqual(x, y)
}

func TestRoundTrip(t *testing.T) {
	d := example()
	path := filepath.Join(t.TempDir(), "descriptor")
	if err := d.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil || !equal(got, d) {
		t.Fatalf("read back %+v (%v)", got, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v)", info.Mode(), err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("Save left %v", left)
	}
	// On a stream, what follows is not touched.
	stream := io.MultiReader(bytes.NewReader(encoded(t, d)), strings.NewReader("next"))
	if got, err := Read(iotest.OneByteReader(stream)); err != nil || !equal(got, d) {
		t.Errorf("from a slow stream: %v", err)
	}
	if rest, _ := io.ReadAll(stream); string(rest) != "next" {
		t.Errorf("left on the stream: %q", rest)
	}
}

func TestWriteRefusesWhatCannotBe(t *testing.T) {
	for name, spoil := range map[string]func(*Descriptor){
		"id":                 func(d *Descriptor) { d.ID = "" },
		"accelerator":        func(d *Descriptor) { d.Hypervisor.Accelerator = "" },
		"vcpus":              func(d *Descriptor) { d.VCPUs = 0 },
		"memory":             func(d *Descriptor) { d.Memory++ },
		"memory image":       func(d *Descriptor) { d.MemoryImage.Size /= 2 },
		"no map":             func(d *Descriptor) { d.MemoryMap = nil },
		"overlap":            func(d *Descriptor) { d.MemoryMap[1].Start = 4096 },
		"outside the image":  func(d *Descriptor) { d.MemoryMap[1].Offset += 4096 },
		"wraps":              func(d *Descriptor) { d.MemoryMap[1].Start = 1<<64 - 4096 },
		"no bitmap":          func(d *Descriptor) { d.ZeroPages = nil },
		"bitmap too short":   func(d *Descriptor) { d.ZeroPages = bitset.New(5) },
		"disk without slice": func(d *Descriptor) { d.Disks[0].Slices = nil },
	} {
		d := example()
		spoil(d)
		if err := Write(io.Discard, d); err == nil {
			t.Errorf("%s: was written", name)
		}
	}
	path := filepath.Join(t.TempDir(), "d")
	if err := new(Descriptor).Save(path); err == nil {
		t.Error("an empty descriptor was saved")
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("a failed Save left %v", left)
	}
}

// rebuilt writes sections and a right trailer.
func rebuilt(t *testing.T, f func(s *sectionWriter)) []byte {
	t.Helper()
	var b bytes.Buffer
	s, err := newSectionWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	f(s)
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// section returns the content of one section of the example.
func section(t *testing.T, kind uint32) []byte {
	t.Helper()
	s, err := newSectionReader(bytes.NewReader(encoded(t, example())))
	for err == nil {
		var k uint32
		var content []byte
		if k, content, err = s.next(); k == kind {
			return content
		}
	}
	t.Fatal(err)
	return nil
}

func TestSections(t *testing.T) {
	meta, zero, state := section(t, sectionMetadata), section(t, sectionZeroPages), section(t, sectionDeviceState)
	for _, c := range []struct {
		name  string
		build func(s *sectionWriter)
		want  error
	}{
		{"as written", func(s *sectionWriter) {
			s.section(sectionMetadata, meta)
			s.section(sectionZeroPages, zero)
			s.section(sectionDeviceState, state)
		}, nil},
		{"other order, optional ones between", func(s *sectionWriter) {
			s.section(optional|77, []byte("skip me"))
			s.section(sectionMetadata, meta)
			s.section(sectionDeviceState, state)
			s.section(optional|78, nil)
			s.section(sectionZeroPages, zero)
			s.section(optional|77, nil)
		}, nil},
		{"unknown and critical", func(s *sectionWriter) { s.section(sectionMetadata, meta); s.section(99, nil) }, ErrNewer},
		{"twice", func(s *sectionWriter) { s.section(sectionMetadata, meta); s.section(sectionMetadata, meta) }, ErrCorrupt},
		{"before the metadata", func(s *sectionWriter) { s.section(sectionDeviceState, state); s.section(sectionMetadata, meta) }, ErrCorrupt},
		{"none", func(s *sectionWriter) {}, ErrCorrupt},
		{"no device state", func(s *sectionWriter) { s.section(sectionMetadata, meta); s.section(sectionZeroPages, zero) }, ErrCorrupt},
		{"metadata is not JSON", func(s *sectionWriter) { s.section(sectionMetadata, []byte("{")) }, ErrCorrupt},
		{"metadata of a later format", func(s *sectionWriter) { s.section(sectionMetadata, []byte(`{"format":2,"memory":"large"}`)) }, ErrNewer},
		{"metadata without sense", func(s *sectionWriter) {
			s.section(sectionMetadata, bytes.Replace(meta, []byte(`"vcpus":2`), []byte(`"vcpus":0`), 1))
			s.section(sectionZeroPages, zero)
			s.section(sectionDeviceState, state)
		}, ErrCorrupt},
		{"bitmap of another size", func(s *sectionWriter) {
			small, _ := packBitmap(bitset.New(64))
			s.section(sectionMetadata, meta)
			s.section(sectionZeroPages, small)
		}, ErrCorrupt},
		{"bitmap that bursts", func(s *sectionWriter) {
			bomb, _ := packBitmap(bitset.New(1 << 32))
			s.section(sectionMetadata, meta)
			s.section(sectionZeroPages, bomb)
		}, ErrCorrupt},
		{"too many", func(s *sectionWriter) {
			for range sectionsLimit + 1 {
				s.section(optional|5, nil)
			}
		}, ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Read(bytes.NewReader(rebuilt(t, c.build)))
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want one that %v", err, c.want)
			}
			if c.want == nil && !equal(got, example()) {
				t.Error("read something else")
			}
		})
	}
}

func TestEveryCutAndFlipIsSeen(t *testing.T) {
	good := encoded(t, example())
	for n := range good {
		if _, err := Read(bytes.NewReader(good[:n])); !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut to %d bytes of %d: %v", n, len(good), err)
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x40
		if _, err := Read(bytes.NewReader(b)); err == nil {
			t.Fatalf("bit of byte %d flipped unseen", i)
		}
	}
}

func TestLoadNamesWhatIsWrong(t *testing.T) {
	good := encoded(t, example())
	newer := bytes.Clone(good)
	newer[8] = 2
	flipped := bytes.Clone(good)
	flipped[len(good)-headerSize-5] ^= 1
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"empty", nil, ErrTruncated},
		{"text", []byte("it is a text\n"), ErrForeign},
		{"newer", newer, ErrNewer},
		{"flipped", flipped, ErrCorrupt},
		{"longer", append(bytes.Clone(good), 0), ErrCorrupt},
	} {
		path := filepath.Join(t.TempDir(), "descriptor")
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want one that %v", c.name, err, c.want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	broken := errors.New("the wire broke")
	_, err := Read(io.MultiReader(bytes.NewReader(good[:100]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("a reader's own error became %v", err)
	}
}

// TestClaimedLengthCostsNothing: a few bytes that claim the longest sections must not make the reader allocate them.
func TestClaimedLengthCostsNothing(t *testing.T) {
	var b bytes.Buffer
	if _, err := newSectionWriter(&b); err != nil {
		t.Fatal(err)
	}
	b.Write(sectionHeader(sectionDeviceState, crc32.Checksum(nil, castagnoli), limits[sectionDeviceState]))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Read(bytes.NewReader(b.Bytes())); !errors.Is(err, ErrTruncated) {
		t.Errorf("got %v", err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("allocated %d bytes", n)
	}
	h := binary.LittleEndian.AppendUint64(nil, limits[sectionDeviceState]+1)
	if _, err := Read(bytes.NewReader(append(b.Bytes()[:headerSize+8], h...))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("longer than the limit: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	small := example()
	small.Memory, small.MemoryImage.Size = 64*PageSize, 64*PageSize
	small.MemoryMap = []Range{{Size: 64 * PageSize}}
	small.ZeroPages = bitset.New(64).Set(3)
	small.DeviceState = []byte("state")
	good := encoded(f, small)
	f.Add(good)
	f.Add(good[:len(good)-headerSize])
	f.Add(encoded(f, example()))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Read(bytes.NewReader(data))
		if err != nil {
			var problem *FormatError
			if !errors.As(err, &problem) || problem.Detail == "" {
				t.Fatalf("an error that says nothing: %v", err)
			}
			return
		}
		again, err := Read(bytes.NewReader(encoded(t, d)))
		if err != nil || !equal(again, d) {
			t.Fatalf("what was accepted does not survive being written: %v", err)
		}
	})
}

// FuzzMetadata gets past the checksums, which stop most of what FuzzRead tries.
func FuzzMetadata(f *testing.F) {
	s, err := newSectionReader(bytes.NewReader(encoded(f, example())))
	if err != nil {
		f.Fatal(err)
	}
	_, meta, err := s.next()
	if err != nil {
		f.Fatal(err)
	}
	zero, err := packBitmap(bitset.New(64))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(meta, zero)
	f.Add([]byte(`{"format":1,"memory":4096}`), []byte{})
	f.Fuzz(func(t *testing.T, meta, zero []byte) {
		if d, err := parseMetadata(meta); err == nil && d.Memory < 1<<34 {
			if d.ZeroPages, err = unpackBitmap(zero, d.Memory/PageSize); err == nil {
				_ = d.Validate()
			}
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	d := example()
	d.DeviceState = make([]byte, 125<<10)
	b.ReportAllocs()
	for b.Loop() {
		if err := Write(io.Discard, d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	d := example()
	d.DeviceState = make([]byte, 125<<10)
	data := encoded(b, d)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Read(bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}
