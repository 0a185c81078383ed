package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"github.com/bits-and-blooms/bitset"
	"golang.org/x/sys/unix"
)

// A restored machine's RAM is a private mapping: the kernel has copied exactly
// those pages that the guest has written. So the page table of the stopped
// process is the list of dirtied pages, and needs neither dirty logging while
// the guest runs nor a comparison afterwards.

const pageSize = 4096

// mapping is a piece of the RAM file in the process's address space.
type mapping struct {
	start, end uint64 // addresses
	offset     int64  // in the file
}

// Dirtied implements [hypervisor.VM].
func (v *vm) Dirtied(ctx context.Context) (*bitset.BitSet, io.ReaderAt, error) {
	pages, ram, err := v.dirtied(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("find the pages that %s has written: %w", v.cfg.Name, err)
	}
	return pages, ram, nil
}

func (v *vm) dirtied(ctx context.Context) (*bitset.BitSet, io.ReaderAt, error) {
	proc := fmt.Sprintf("/proc/%d/", v.cmd.Process.Pid)
	maps, err := os.ReadFile(proc + "maps")
	if err != nil {
		return nil, nil, err
	}
	pieces, err := parseMaps(maps, v.cfg.MemoryPath)
	if err != nil {
		return nil, nil, err
	}
	table, err := os.Open(proc + "pagemap")
	if err != nil {
		return nil, nil, err
	}
	defer table.Close()
	pages := bitset.New(uint(v.cfg.Memory / pageSize))
	for _, m := range pieces {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		found := func(start, end uint64) {
			for a := start; a < end; a += pageSize {
				pages.Set(uint((m.offset + int64(a-m.start)) / pageSize))
			}
		}
		err := scanTable(table, m, found)
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
			err = readTable(table, m, found) // Linux before 6.7
		}
		if err != nil {
			return nil, nil, err
		}
	}
	mem, err := os.Open(proc + "mem")
	if err != nil {
		return nil, nil, err
	}
	v.mu.Lock()
	v.ram = append(v.ram, mem)
	v.mu.Unlock()
	return pages, &ram{mem, pieces}, nil
}

// parseMaps finds a file's mappings in /proc/PID/maps (proc(5)).
func parseMaps(maps []byte, path string) ([]mapping, error) {
	var found []mapping
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		line := strings.TrimSuffix(lines.Text(), " (deleted)")
		if !strings.HasSuffix(line, " "+path) {
			continue
		}
		var m mapping
		var flags string
		if _, err := fmt.Sscanf(line, "%x-%x %4s %x", &m.start, &m.end, &flags, &m.offset); err != nil || m.end < m.start || m.offset < 0 || len(flags) != 4 {
			return nil, fmt.Errorf("read its mappings: %q", line)
		}
		if flags[3] != 'p' {
			return nil, errors.New("its RAM is not a private mapping")
		}
		found = append(found, m)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read its mappings: %w", err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s is not mapped", path)
	}
	return found, nil
}

// Of PAGEMAP_SCAN (Documentation/admin-guide/mm/pagemap.rst), which skips what
// was never touched without a look at each page.
const (
	pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

	pageIsFile    = 1 << 2
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
)

// scanArg is struct pm_scan_arg.
type scanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages     uint64
	categoryInverted, categoryMask, categoryAnyof, returnedMask uint64
}

// region is struct page_region.
type region struct{ start, end, categories uint64 }

// scanTable reports the private pages of a mapping, by address.
func scanTable(table *os.File, m mapping, found func(start, end uint64)) error {
	regions := make([]region, 4096)
	for at := m.start; at < m.end; {
		arg := scanArg{
			start: at, end: m.end,
			vec: uint64(uintptr(unsafe.Pointer(&regions[0]))), vecLen: uint64(len(regions)),
			// Copied on write is: somewhere, but not the file's.
			categoryInverted: pageIsFile, categoryMask: pageIsFile,
			categoryAnyof: pageIsPresent | pageIsSwapped, returnedMask: pageIsPresent,
		}
		arg.size = uint64(unsafe.Sizeof(arg))
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, table.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		runtime.KeepAlive(regions)
		if errno != 0 {
			return fmt.Errorf("scan its page table: %w", errno)
		}
		for _, r := range regions[:n] {
			found(r.start, r.end)
		}
		if arg.walkEnd <= at {
			return errors.New("scan its page table: the kernel gets nowhere")
		}
		at = arg.walkEnd
	}
	return nil
}

// readTable does the same page by page.
func readTable(table *os.File, m mapping, found func(start, end uint64)) error {
	const present, swapped, file = 1 << 63, 1 << 62, 1 << 61
	entries := make([]byte, 64<<10)
	for at := m.start; at < m.end; {
		n, err := table.ReadAt(entries[:min(uint64(len(entries)), (m.end-at)/pageSize*8)], int64(at/pageSize*8))
		if n == 0 || err != nil {
			return fmt.Errorf("read its page table: %w", err)
		}
		for i := 0; i+8 <= n; i += 8 {
			if e := binary.NativeEndian.Uint64(entries[i:]); e&(present|swapped) != 0 && e&file == 0 {
				found(at, at+pageSize)
			}
			at += pageSize
		}
	}
	return nil
}

// ram reads a process's RAM by offset in the RAM file.
type ram struct {
	mem    *os.File
	pieces []mapping
}

// ReadAt implements io.ReaderAt.
func (r *ram) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		part, at, ok := r.find(off+int64(n), len(p)-n)
		if !ok {
			return n, fmt.Errorf("read RAM: offset %d is not mapped", off+int64(n))
		}
		got, err := r.mem.ReadAt(p[n:n+part], at)
		n += got
		if err != nil {
			return n, fmt.Errorf("read RAM of a stopped machine: %w", err)
		}
	}
	return n, nil
}

// find says where an offset is in the address space, and how much of n bytes
// is there in one piece.
func (r *ram) find(off int64, n int) (part int, at int64, ok bool) {
	for _, m := range r.pieces {
		if size := int64(m.end - m.start); off >= m.offset && off < m.offset+size {
			return int(min(int64(n), m.offset+size-off)), int64(m.start) + off - m.offset, true
		}
	}
	return 0, 0, false
}
