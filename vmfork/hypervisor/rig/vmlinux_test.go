package rig

import (
	"bytes"
	"compress/gzip"
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
	kernel := append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel "), 10000)...)
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
		if err != nil || !bytes.Equal(got, kernel) {
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
