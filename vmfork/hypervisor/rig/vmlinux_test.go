package rig

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// bzImage makes an image around a compressed kernel of so many bytes.
func bzImage(compressed []byte, length int) []byte {
	payload := binary.LittleEndian.AppendUint32(bytes.Clone(compressed), uint32(length))
	image := make([]byte, 3*512)
	image[setupSectors] = 1
	copy(image[headerMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[protocol:], 0x20f)
	binary.LittleEndian.PutUint32(image[payloadOffset:], 512)
	binary.LittleEndian.PutUint32(image[payloadLength:], uint32(len(payload)))
	return append(append(image, payload...), "what follows"...)
}

func TestVMLinux(t *testing.T) {
	content := bytes.Repeat([]byte("kernel "), 10000)
	kernel, want := elfOf(content, 5000), elfOf(content, 0)
	clear(want[sectionEntry:64])
	binary.LittleEndian.PutUint64(want[64+segmentContent+8:], uint64(len(content)+5000)) // in memory it is as large
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(kernel)
	z.Close()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	xz := exec.Command("xz", "--check=crc32", "--stdout")
	xz.Stdin = bytes.NewReader(kernel)
	xzed, err := xz.Output()
	if err != nil {
		t.Fatalf("xz: %v (apt-get install xz-utils)", err)
	}
	for name, compressed := range map[string][]byte{"gzip": zipped.Bytes(), "zstd": e.EncodeAll(kernel, nil), "xz": xzed} {
		got, err := VMLinux(t.Context(), bzImage(compressed, len(kernel)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if _, err := VMLinux(t.Context(), bzImage(compressed, len(kernel)-1)); err == nil {
			t.Errorf("%s: a kernel of the wrong length is taken", name)
		}
		if _, err := VMLinux(t.Context(), bzImage(compressed[:len(compressed)/2], len(kernel))); err == nil {
			t.Errorf("%s: a half of a kernel is taken", name)
		}
	}
	if _, err := VMLinux(t.Context(), bzImage([]byte("LZMA or so, of some length"), 1)); err == nil || !strings.Contains(err.Error(), "neither xz, zstd nor gzip") {
		t.Errorf("of another compression: %v", err)
	}
	if _, err := VMLinux(t.Context(), []byte("no kernel")); err == nil {
		t.Error("what is no image is taken")
	}
}

// elfOf makes an ELF file of one segment, with zeros behind its content.
func elfOf(content []byte, zeros int) []byte {
	var b bytes.Buffer
	size := uint64(len(content) + zeros)
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: segmentSize, Phnum: 1, Shentsize: 64}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	binary.Write(&b, binary.LittleEndian, h)
	binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD), Off: 64 + segmentSize, Filesz: size, Memsz: size})
	b.Write(content)
	b.Write(make([]byte, zeros))
	return b.Bytes()
}

func FuzzTrim(f *testing.F) {
	f.Add(elfOf([]byte("content"), 10))
	f.Fuzz(func(t *testing.T, kernel []byte) {
		if trimmed, err := trim(kernel); err == nil && len(trimmed) > len(kernel) {
			t.Errorf("of %d bytes became %d", len(kernel), len(trimmed))
		}
	})
}

func FuzzPayload(f *testing.F) {
	f.Add(bzImage([]byte("some compressed kernel"), 100))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, image []byte) {
		payload, err := payloadOf(image)
		if err == nil && len(payload) < 16 {
			t.Errorf("a payload of %d bytes", len(payload))
		}
	})
}
