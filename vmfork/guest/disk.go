package guest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sectorSize = 512

	maxCluster = 2 << 20 // of a qcow2 image, bytes

	// diskTimeout bounds the conversion of a user's disk image, which may be large.
	diskTimeout = 30 * time.Minute
)

// FromDisk returns a guest image whose root disk is a copy of the user's own disk
// image at path, raw or qcow2, and whose kernel and initramfs are those that
// Build would use; of spec only Agent, Kernel and Modules count. It is cached like any
// other, by the disk's identity, size and time.
//
// It is a copy, because an image must not change under a job: on a file system
// that can, it shares the disk's blocks. Which partition is the root is found out
// by the agent. Errors are one line, for the user.
func FromDisk(ctx context.Context, cache *Cache, path string, spec Spec, progress func(string)) (*Image, error) {
	start := time.Now()
	if progress == nil {
		progress = func(string) {}
	}
	if err := checkAgent(spec.Agent); err != nil {
		return nil, err
	}
	disk, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find the disk image: %w", err)
	}
	qcow, info, err := checkDisk(disk)
	if err != nil {
		return nil, err
	}
	kernel := spec.Kernel
	if kernel == nil {
		if kernel, err = cache.FindKernel(ctx, progress, spec.Modules...); err != nil {
			return nil, err
		}
	}
	h := sha256.New()
	if err := hashBoot(h, spec.Agent, kernel); err != nil {
		return nil, err
	}
	st, _ := info.Sys().(*syscall.Stat_t)
	fmt.Fprintf(h, "disk %q %d %d %d %d\n", disk, info.Size(), info.ModTime().UnixNano(), st.Ino, st.Dev)
	key := hex.EncodeToString(h.Sum(nil))

	m := &Manifest{Key: key, Source: "disk", Program: disk}
	img, err := cache.obtain(ctx, m, kernel, spec.Agent, progress, func(dst string) error {
		progress("copying the disk image " + path + " into the cache")
		fill := copySparse
		if qcow {
			fill = convertDisk
		}
		if err := fill(ctx, dst, disk); err != nil {
			return fmt.Errorf("copy disk image %s: %w", path, err)
		}
		now, err := os.Stat(disk)
		if err != nil || now.Size() != info.Size() || !now.ModTime().Equal(info.ModTime()) {
			return fmt.Errorf("disk image %s changed while it was copied: stop what writes to it and start again", path)
		}
		return checkRawFile(path, dst)
	})
	if err != nil {
		return nil, err
	}
	img.Took = time.Since(start)
	return img, nil
}

// foreignDisks are formats that users have, by what their files begin with.
var foreignDisks = []struct{ magic, name string }{
	{"KDMV", "a VMDK image"}, {"COWD", "a VMDK image"}, {"# Disk DescriptorFile", "a VMDK image"},
	{"<<< ", "a VirtualBox image"}, {"vhdxfile", "a VHDX image"}, {"conectix", "a VHD image"},
	{"QED\x00", "a QED image"}, {"\x1f\x8b", "compressed with gzip"}, {"\xfd7zXZ\x00", "compressed with xz"},
	{"\x28\xb5\x2f\xfd", "compressed with zstd"}, {"PK\x03\x04", "a zip archive"},
}

// checkDisk looks at a user's disk image before anything is made from it.
func checkDisk(path string) (qcow bool, info fs.FileInfo, err error) {
	info, err = os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil, fmt.Errorf("disk image %s does not exist", path)
	case err != nil:
		return false, nil, fmt.Errorf("look at the disk image: %w", err)
	case !info.Mode().IsRegular():
		return false, nil, fmt.Errorf("disk image %s is not a regular file: give a raw or qcow2 image", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return false, nil, fmt.Errorf("read the disk image: %w", err)
	}
	defer f.Close()
	head := make([]byte, 4096)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, nil, fmt.Errorf("read the disk image: %w", err)
	}
	head = head[:n]
	if hasPrefix(head, "QFI\xfb") {
		if err := checkQcow2(head, info.Size()); err != nil {
			return false, nil, fmt.Errorf("disk image %s %w", path, err)
		}
		return true, info, nil
	}
	for _, d := range foreignDisks {
		if hasPrefix(head, d.magic) {
			return false, nil, fmt.Errorf("disk image %s is %s: make a raw or qcow2 image of it (qemu-img convert -O qcow2)", path, d.name)
		}
	}
	if err := checkRaw(f, info.Size()); err != nil {
		return false, nil, fmt.Errorf("disk image %s %w", path, err)
	}
	return false, info, nil
}

func hasPrefix(b []byte, s string) bool { return len(b) >= len(s) && string(b[:len(s)]) == s }

// checkQcow2 reads the header of a qcow2 file (docs/interop/qcow2.txt of QEMU) of
// size bytes. Its errors complete a sentence that begins with the image's name.
func checkQcow2(head []byte, size int64) error {
	be := binary.BigEndian
	if len(head) < 72 {
		return errors.New("is cut off: its qcow2 header is not whole; copy it again")
	}
	version := be.Uint32(head[4:])
	if version != 2 && version != 3 || version == 3 && len(head) < 104 {
		return fmt.Errorf("has the unknown qcow2 version %d: convert it to raw", version)
	}
	// A backing file is a path that anybody may have put there, of a file that
	// would then be read with our rights.
	if be.Uint64(head[8:]) != 0 {
		return errors.New("has a backing file: make it whole with qemu-img convert -O qcow2")
	}
	if be.Uint32(head[32:]) != 0 {
		return errors.New("is encrypted: decrypt it with qemu-img convert")
	}
	if version == 3 {
		incompatible := be.Uint64(head[72:])
		if incompatible&(1<<2) != 0 {
			return errors.New("has its data in another file: make it whole with qemu-img convert -O qcow2")
		}
		if incompatible&(1<<1) != 0 {
			return errors.New("is marked as corrupt: repair it with qemu-img check -r all")
		}
	}
	bits := be.Uint32(head[20:])
	if bits < 9 || bits > 21 || be.Uint64(head[24:]) == 0 {
		return errors.New("has a damaged qcow2 header; copy it again")
	}
	l1Entries, l1 := uint64(be.Uint32(head[36:])), be.Uint64(head[40:])
	refcounts := be.Uint64(head[48:])
	if l1 > uint64(size) || l1Entries*8 > uint64(size)-l1 || refcounts >= uint64(size) {
		return fmt.Errorf("is cut off: its tables lie behind its end at %d bytes; copy it again", size)
	}
	return nil
}

// checkRaw makes sure that a raw disk holds a file system or partitions, and all
// of them. Its errors complete a sentence that begins with the image's name.
func checkRaw(f io.ReaderAt, size int64) error {
	if size == 0 {
		return errors.New("is empty")
	}
	if size%sectorSize != 0 {
		return fmt.Errorf("is cut off: %d bytes are not a multiple of %d; copy it again", size, sectorSize)
	}
	head := make([]byte, superblockOffset+superblockSize)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot be read: %w", err)
	}
	end, what, err := diskEnd(head)
	if err != nil {
		return err
	}
	if end > uint64(size) {
		return fmt.Errorf("is cut off: its %s needs %d bytes, the file has %d; copy it again", what, end, size)
	}
	return nil
}

// diskEnd finds an ext4 file system, a GPT or an MBR in the first 2048 bytes of a
// disk, and how many bytes the disk must have for it.
func diskEnd(head []byte) (end uint64, what string, err error) {
	sb, err := parseSuperblock(head[superblockOffset:])
	if err == nil {
		return uint64(sb.size()), "ext4 file system", nil
	}
	if !errors.Is(err, errNoExt4) {
		return 0, "", fmt.Errorf("is damaged: %w", err)
	}
	le := binary.LittleEndian
	if string(head[sectorSize:sectorSize+8]) == "EFI PART" {
		last := le.Uint64(head[sectorSize+32:]) // the backup header, in the last sector
		if last >= 1<<54 {
			return 0, "", errors.New("has a damaged partition table")
		}
		return (last + 1) * sectorSize, "partition table", nil
	}
	if head[510] != 0x55 || head[511] != 0xaa {
		return 0, "", errors.New("holds neither an ext4 file system nor a partition table: give a disk with a Linux root")
	}
	partitions := 0
	for i := range 4 {
		e := head[446+16*i:]
		kind, first, n := e[4], uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		if kind == 0 || n == 0 {
			continue
		}
		partitions++
		end = max(end, (first+n)*sectorSize)
	}
	if partitions == 0 {
		return 0, "", errors.New("has a partition table without partitions: give a disk with a Linux root")
	}
	return end, "partition table", nil
}

// checkRawFile checks the copy, which for a qcow2 image is the first look inside.
func checkRawFile(path, copied string) error {
	f, err := os.Open(copied)
	if err != nil {
		return fmt.Errorf("read the copied disk image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read the copied disk image: %w", err)
	}
	if err := checkRaw(f, info.Size()); err != nil {
		return fmt.Errorf("disk image %s %w", path, err)
	}
	return nil
}

// convertDisk makes a raw disk of a qcow2 image.
func convertDisk(ctx context.Context, dst, src string) error {
	if _, err := lookTool("qemu-img"); err != nil {
		return fmt.Errorf("%w: apt install qemu-utils, or convert it to raw elsewhere", err)
	}
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	info, err := os.Stat(src)
	if err != nil {
		return err
	}
	// To QEMU a cluster behind the end of the file is merely zero, so a cut-off
	// image has to be found out beforehand.
	out, err := runTool(ctx, "", "qemu-img", "map", "-f", "qcow2", "--output=json", src)
	if err != nil {
		return err
	}
	var extents []struct {
		Length int64
		Offset *int64 // where the data lies in the file; not there for zeros
	}
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		return fmt.Errorf("read the output of qemu-img map: %w", err)
	}
	for _, e := range extents {
		// The last cluster may be written short.
		if e.Offset != nil && (*e.Offset >= info.Size() || *e.Offset+e.Length > info.Size()+maxCluster) {
			return fmt.Errorf("it is cut off: data up to %d bytes, of %d in the file; copy it again", *e.Offset+e.Length, info.Size())
		}
	}
	if err := os.WriteFile(dst, nil, 0o600); err != nil { // with our mode
		return err
	}
	_, err = runTool(ctx, "", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", src, dst)
	return err
}

// copySparse copies a file with its holes. The kernel shares or copies the rest
// without it passing through here.
func copySparse(ctx context.Context, dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	const step = 64 << 20 // bytes between two looks at the context
	for pos := int64(0); pos < info.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(in.Fd()), pos, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // only a hole is left
		}
		if err != nil {
			return fmt.Errorf("seek data: %w", err)
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("seek hole: %w", err)
		}
		pos = min(hole, data+step)
		if _, err := in.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, pos-data); err != nil {
			return err
		}
	}
	return out.Sync()
}
