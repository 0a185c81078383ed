package rig

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/klauspost/compress/zstd"
)

// VMLinux takes the kernel out of a bzImage, as an ELF file without what nobody who loads it needs, which QEMU, Xen and xl start as well: a bzImage's own
// decompressing is five billion instructions, which under emulation cost each start several seconds.
func VMLinux(ctx context.Context, bzImage []byte) ([]byte, error) {
	payload, err := payloadOf(bzImage)
	if err != nil {
		return nil, err
	}
	var kernel []byte
	switch {
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		// What follows the stream is the kernel's length, which xz would take for a second stream.
		ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("xz had no end after a minute"))
		defer cancel()
		cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", "--single-stream")
		var out, said bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(payload), &out, &said
		// It complains of what it has not read.
		if err := cmd.Run(); err != nil && out.Len() == 0 {
			return nil, fmt.Errorf("decompress the kernel: %w: %s (apt-get install xz-utils)", err, said.Bytes())
		}
		kernel = out.Bytes()
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		d, err := zstd.NewReader(nil)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		if kernel, err = d.DecodeAll(payload[:len(payload)-4], nil); err != nil {
			return nil, fmt.Errorf("decompress the kernel: %w", err)
		}
	case bytes.HasPrefix(payload, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, fmt.Errorf("decompress the kernel: %w", err)
		}
		z.Multistream(false)
		if kernel, err = io.ReadAll(z); err != nil {
			return nil, fmt.Errorf("decompress the kernel: %w", err)
		}
	default:
		return nil, fmt.Errorf("the kernel is compressed with what is neither xz, zstd nor gzip (it begins with % x)", payload[:min(6, len(payload))])
	}
	if want := binary.LittleEndian.Uint32(payload[len(payload)-4:]); uint32(len(kernel)) != want {
		return nil, fmt.Errorf("decompress the kernel: %d bytes came out of it instead of %d", len(kernel), want)
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return nil, errors.New("what is compressed in the kernel's image is no ELF file")
	}
	return trim(kernel)
}

// Offsets in a bzImage, of Linux' Documentation/arch/x86/boot.rst.
const (
	setupSectors  = 0x1f1
	headerMagic   = 0x202
	protocol      = 0x206
	payloadOffset = 0x248
	payloadLength = 0x24c
	headerEnd     = 0x250
)

// payloadOf returns the compressed kernel, whose last four bytes are its length when decompressed.
func payloadOf(bzImage []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(bzImage) < headerEnd || string(bzImage[headerMagic:headerMagic+4]) != "HdrS" {
		return nil, errors.New("the kernel is no bzImage")
	}
	if v := le.Uint16(bzImage[protocol:]); v < 0x208 {
		return nil, fmt.Errorf("the kernel's boot protocol is %d.%02d, and 2.08 is the oldest that says where the kernel is", v>>8, v&0xff)
	}
	sectors := uint64(bzImage[setupSectors])
	if sectors == 0 {
		sectors = 4
	}
	begin := (sectors+1)*512 + uint64(le.Uint32(bzImage[payloadOffset:]))
	end := begin + uint64(le.Uint32(bzImage[payloadLength:]))
	if end > uint64(len(bzImage)) || end-begin < 16 {
		return nil, fmt.Errorf("the kernel's payload is said to be at %d…%d of %d bytes", begin, end, len(bzImage))
	}
	return bzImage[begin:end], nil
}
