package guest

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rawDisk is a small ext4 file system.
func rawDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	write(t, path, "", 0o600)
	if err := os.Truncate(path, 16<<20); err != nil {
		t.Fatal(err)
	}
	command(t, need(t, "mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", path)
	return path
}

func TestFromDisk(t *testing.T) {
	raw := rawDisk(t)
	qcow := raw + ".qcow2"
	command(t, need(t, "qemu-img", "qemu-utils"), "convert", "-O", "qcow2", raw, qcow)
	packed := raw + ".packed.qcow2"
	command(t, need(t, "qemu-img", "qemu-utils"), "convert", "-c", "-O", "qcow2", raw, packed)
	cache := &Cache{Dir: filepath.Join(t.TempDir(), "cache")}
	spec := Spec{Agent: testAgent(t), Kernel: fakeKernel(t)}
	for _, path := range []string{raw, qcow, packed} {
		img, err := FromDisk(t.Context(), cache, path, spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		if img.Found || !img.OwnDisk || !bytes.Equal(readFile(t, img.Root), readFile(t, raw)) {
			t.Errorf("%s: found %v, or another content", path, img.Found)
		}
		if info, err := os.Stat(img.Root); err != nil || info.Mode().Perm() != 0o600 || diskUsage(img.Root) > 4<<20 {
			t.Errorf("%s: %v, %v, %d bytes on disk", path, info.Mode(), err, diskUsage(img.Root))
		}
		img.Release()
		img, err = FromDisk(t.Context(), cache, path, spec, nil)
		if err != nil || !img.Found {
			t.Fatalf("%s for the second time: %v", path, err)
		}
		img.Release()
	}
}

func TestBadDisks(t *testing.T) {
	raw := rawDisk(t)
	dir := t.TempDir()
	qemuImg := need(t, "qemu-img", "qemu-utils")
	in := func(name string) string { return filepath.Join(dir, name) }
	command(t, qemuImg, "convert", "-O", "qcow2", raw, in("good.qcow2"))
	command(t, qemuImg, "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", in("backed.qcow2"))
	command(t, qemuImg, "create", "-q", "-f", "qcow2", "-o", "data_file="+in("data"), in("split.qcow2"), "1M")
	command(t, qemuImg, "create", "-q", "-f", "qcow2", in("blank.qcow2"), "1M")
	command(t, qemuImg, "convert", "-O", "vmdk", raw, in("x.vmdk"))
	good, qcow := readFile(t, raw), readFile(t, in("good.qcow2"))
	mbr := make([]byte, 1<<20)
	mbr[510], mbr[511], mbr[446+4] = 0x55, 0xaa, 0x83
	binary.LittleEndian.PutUint32(mbr[446+8:], 64)
	binary.LittleEndian.PutUint32(mbr[446+12:], 1<<20/512-64)
	emptyMBR := make([]byte, 1<<20)
	emptyMBR[510], emptyMBR[511] = 0x55, 0xaa
	gpt := bytes.Clone(mbr)
	copy(gpt[512:], "EFI PART")
	binary.LittleEndian.PutUint64(gpt[512+32:], 1<<20/512-1)

	tests := []struct{ name, content, err string }{
		{"good", string(good), ""},
		{"mbr", string(mbr), ""},
		{"gpt", string(gpt), ""},
		{"good.qcow2", "", ""},
		{"none", "", "does not exist"},
		{"empty", "", "is empty"},
		{"odd", string(good[:len(good)-7]), "not a multiple of 512"},
		{"cut", string(good[:8<<20]), "is cut off: its ext4 file system needs 16777216 bytes, the file has 8388608"},
		{"cut mbr", string(mbr[:512<<10]), "is cut off: its partition table"},
		{"cut gpt", string(gpt[:512<<10]), "is cut off: its partition table"},
		{"no partitions", string(emptyMBR), "without partitions"},
		{"zeros", string(make([]byte, 1<<20)), "neither an ext4 file system nor a partition table"},
		{"text", strings.Repeat("x", 4096), "neither an ext4 file system nor"},
		{"x.vmdk", "", "is a VMDK image: make a raw or qcow2"},
		{"disk.gz", "\x1f\x8b" + string(make([]byte, 4096)), "compressed with gzip"},
		{"backed.qcow2", "", "has a backing file"},
		{"split.qcow2", "", "has its data in another file"},
		{"blank.qcow2", "", "neither an ext4 file system nor"},
		{"cut header.qcow2", string(qcow[:60]), "is cut off"},
		{"cut tables.qcow2", string(qcow[:70000]), "is cut off"},
		{"cut data.qcow2", string(qcow[:len(qcow)/2]), "cut off"},
	}
	cache := &Cache{Dir: filepath.Join(t.TempDir(), "cache")}
	spec := Spec{Agent: testAgent(t), Kernel: fakeKernel(t)}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := in(tt.name)
			if _, err := os.Stat(path); err != nil && tt.name != "none" {
				write(t, path, tt.content, 0o600)
			}
			img, err := FromDisk(t.Context(), cache, path, spec, nil)
			if err == nil {
				img.Release()
			}
			if tt.err == "" && err != nil {
				t.Errorf("got %v", err)
			}
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
	if _, err := FromDisk(t.Context(), cache, dir, spec, nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	t.Setenv("PATH", dir)
	if _, err := lookTool("qemu-img"); err != nil {
		now := time.Now()
		os.Chtimes(in("good.qcow2"), now, now)
		if _, err := FromDisk(t.Context(), cache, in("good.qcow2"), spec, nil); err == nil || !strings.Contains(err.Error(), "apt install qemu-utils") {
			t.Errorf("without qemu-img: %v", err)
		}
	}
}

func FuzzDiskHeaders(f *testing.F) {
	sb := make([]byte, superblockOffset+superblockSize)
	binary.LittleEndian.PutUint16(sb[superblockOffset+0x38:], 0xef53)
	binary.LittleEndian.PutUint32(sb[superblockOffset+4:], 100)
	f.Add(sb, int64(1<<20))
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"), int64(8))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		checkQcow2(b, size)
		if len(b) >= superblockOffset+superblockSize {
			if s, err := parseSuperblock(b[superblockOffset:]); err == nil && (s.size() <= 0 || s.used() < 0 || s.used() > s.size()) {
				t.Errorf("size %d, used %d", s.size(), s.used())
			}
			diskEnd(b)
		}
		checkRaw(bytes.NewReader(b), int64(len(b)))
	})
}
