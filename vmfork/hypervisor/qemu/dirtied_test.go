package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

const mapsExample = `555555554000-555555558000 r--p 00000000 fe:01 1055                       /usr/bin/qemu-system-x86_64
7fff00000000-7fff08000000 rw-p 00000000 00:2f 2                          /job/memtap/memory-1
7fff08000000-7fff08001000 rw-p 08000000 00:2f 2                          /job/memtap/memory-1
7fff10000000-7fff10001000 rw-p 00000000 00:2f 3                          /job/memtap/memory-11
7fff20000000-7fff20001000 rw-p 00000000 00:2f 3                          /else/job/memtap/memory-1
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]
`

func TestParseMaps(t *testing.T) {
	both := []mapping{{0x7fff00000000, 0x7fff08000000, 0}, {0x7fff08000000, 0x7fff08001000, 0x8000000}}
	const path = "/job/memtap/memory-1"
	for name, c := range map[string]struct {
		maps string
		want []mapping
		err  string
	}{
		"two pieces":      {mapsExample, both, ""},
		"deleted":         {strings.ReplaceAll(mapsExample, path+"\n", path+" (deleted)\n"), both, ""},
		"without the end": {strings.TrimSuffix(mapsExample, "\n"), both, ""},
		"not mapped":      {strings.ReplaceAll(mapsExample, "memory-1", "memory-2"), nil, path + " is not mapped"},
		"nothing":         {"", nil, path + " is not mapped"},
		"shared":          {"7f00-8f00 rw-s 00000000 00:2f 2 " + path + "\n", nil, "not a private mapping"},
		"no addresses":    {"x-y rw-p 00000000 00:2f 2 " + path + "\n", nil, "read its mappings"},
		"no flags":        {"1000-2000 " + path + "\n", nil, "read its mappings"},
		"few flags":       {"1000-2000 rw 0 00:2f 2 " + path + "\n", nil, "read its mappings"},
		"backwards":       {"2000-1000 rw-p 00000000 00:2f 2 " + path + "\n", nil, "read its mappings"},
		"too large":       {"1000-20000000000000000 rw-p 00000000 00:2f 2 " + path + "\n", nil, "read its mappings"},
		"a long line":     {strings.Repeat("x", 1<<17) + "\n", nil, "read its mappings: "},
	} {
		got, err := parseMaps([]byte(c.maps), path)
		if c.want != nil && (err != nil || !reflect.DeepEqual(got, c.want)) || c.want == nil && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v (%v), want %v %s", name, got, err, c.want, c.err)
		}
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte(mapsExample))
	f.Add([]byte("2000-1000 rw-p 0 00:2f 2 /job/memtap/memory-1"))
	f.Add([]byte("1-2 s /job/memtap/memory-1"))
	f.Fuzz(func(t *testing.T, maps []byte) {
		pieces, err := parseMaps(maps, "/job/memtap/memory-1")
		if err != nil {
			return
		}
		if len(pieces) == 0 {
			t.Error("no pieces, and no error")
		}
		for _, m := range pieces {
			if m.end < m.start || m.offset < 0 {
				t.Errorf("a piece is %+v", m)
			}
		}
	})
}

// mapperMark makes this test's binary a process with a private mapping of a
// file: its value is the file.
const mapperMark = "MPIRUN_SF_TEST_MAPPER"

func init() {
	if path := os.Getenv(mapperMark); path != "" {
		if err := mapAndWrite(path); err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		os.Exit(0)
	}
}

// mapperPages are the sizes of the two mappings, in pages, and what is read and
// written of them. The second piece of the file is mapped apart from the first.
var (
	mapperPages   = [2]int{3000, 700}
	mapperRead    = []int{0, 1, 7, 100, 2998, 3001}
	mapperWritten = []int{1, 2, 3, 8, 511, 512, 513, 2999, 3000, 3002, 3699}
)

func mapAndWrite(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	var pieces [2][]byte
	offset := int64(0)
	for i, n := range mapperPages {
		if pieces[i], err = unix.Mmap(int(f.Fd()), offset, n*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err != nil {
			return err
		}
		// As the hypervisor's process is kept from it: they would be written whole.
		if err := unix.Madvise(pieces[i], unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
			return err
		}
		// So that the pieces do not touch.
		if _, err := unix.Mmap(-1, 0, pageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
			return err
		}
		offset += int64(n * pageSize)
	}
	page := func(n int) []byte {
		piece := 0
		if n >= mapperPages[0] {
			piece, n = 1, n-mapperPages[0]
		}
		return pieces[piece][n*pageSize:][:pageSize]
	}
	sum := byte(0)
	for _, n := range mapperRead {
		sum += page(n)[0]
	}
	for _, n := range mapperWritten {
		copy(page(n), fmt.Sprintf("page %d", n))
	}
	fmt.Println("mapped", sum)
	_, err = io.ReadAll(os.Stdin)
	return err
}

// startMapper starts such a process, stopped, and returns its driver's view and
// the file's content.
func startMapper(t *testing.T) (*vm, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory")
	content := make([]byte, (mapperPages[0]+mapperPages[1])*pageSize)
	rand.NewChaCha8([32]byte{1}).Read(content)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mapperMark+"="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	var word string
	if _, err := fmt.Fscan(out, &word); err != nil || word != "mapped" {
		t.Fatalf("the process says %q (%v)", word, err)
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	v := &vm{cmd: cmd, cfg: hypervisor.Config{Name: "mapper", MemoryPath: path}}
	v.cfg.Memory = int64(len(content))
	t.Cleanup(func() {
		for _, f := range v.ram {
			f.Close()
		}
	})
	return v, content
}

// The pages that a process has written are its own, by both of the kernel's
// ways to tell; those that it has only read are not.
func TestDirtied(t *testing.T) {
	v, content := startMapper(t)
	pages, ram, err := v.Dirtied(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for p := range pages.EachSet() {
		got = append(got, int(p))
	}
	if !slices.Equal(got, mapperWritten) {
		t.Errorf("written are %v, want %v", got, mapperWritten)
	}
	for _, n := range mapperWritten {
		copy(content[n*pageSize:], fmt.Sprintf("page %d", n))
	}
	// All of it, in reads that cross pages and pieces.
	for _, size := range []int{len(content), 1 << 20, 5000} {
		for off := 0; off < len(content); off += size {
			want := content[off:min(off+size, len(content))]
			buf := make([]byte, len(want))
			if n, err := ram.ReadAt(buf, int64(off)); err != nil || n != len(buf) || !bytes.Equal(buf, want) {
				t.Fatalf("%d bytes at %d were read as %d others (%v)", len(want), off, n, err)
			}
		}
	}
	for _, off := range []int64{-1, int64(len(content)), 1 << 60} {
		if _, err := ram.ReadAt(make([]byte, 1), off); err == nil || !strings.Contains(err.Error(), "is not mapped") {
			t.Errorf("at %d: %v", off, err)
		}
	}
	if n, err := ram.ReadAt(make([]byte, 100), int64(len(content)-60)); n != 60 || err == nil {
		t.Errorf("across the end %d bytes were read (%v)", n, err)
	}
	v.cmd.Process.Kill()
	v.cmd.Wait()
	if _, err := ram.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("the RAM of a process that is gone was read")
	}
	if _, _, err := v.Dirtied(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "find the pages that mapper has written: ") {
		t.Errorf("of a process that is gone: %v", err)
	}
}

// Both ways of reading the page table see the same.
func TestScanAndReadTable(t *testing.T) {
	v, _ := startMapper(t)
	proc := fmt.Sprintf("/proc/%d/", v.cmd.Process.Pid)
	maps, err := os.ReadFile(proc + "maps")
	if err != nil {
		t.Fatal(err)
	}
	pieces, err := parseMaps(maps, v.cfg.MemoryPath)
	if err != nil || len(pieces) != 2 {
		t.Fatalf("it has mapped %v (%v)", pieces, err)
	}
	table, err := os.Open(proc + "pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for _, m := range pieces {
		see := func(by func(*os.File, mapping, func(start, end uint64)) error) (seen []uint64, err error) {
			err = by(table, m, func(start, end uint64) {
				if start < m.start || end > m.end || start >= end {
					t.Errorf("%x to %x is not within %+v", start, end, m)
				}
				for ; start < end; start += pageSize {
					seen = append(seen, start)
				}
			})
			return seen, err
		}
		read, err := see(readTable)
		if err != nil {
			t.Fatal(err)
		}
		scanned, err := see(scanTable)
		if errors.Is(err, unix.ENOTTY) {
			t.Log("this kernel has no PAGEMAP_SCAN, which came with Linux 6.7: nothing to compare with")
			continue
		}
		if err != nil || !slices.Equal(read, scanned) || len(read) == 0 {
			t.Errorf("of %+v are seen %x, and scanned %x (%v)", m, read, scanned, err)
		}
	}
	for name, by := range map[string]func(*os.File, mapping, func(start, end uint64)) error{"read": readTable, "scan": scanTable} {
		closed, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		closed.Close()
		if err := by(closed, pieces[0], func(uint64, uint64) {}); err == nil {
			t.Errorf("%s of a file that is closed", name)
		}
	}
}

func TestRAMPieces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "space")
	if err := os.WriteFile(path, []byte("0123456789abcdefghij"), 0o600); err != nil {
		t.Fatal(err)
	}
	space, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	// In the file's order: fghij, then a gap of two, then 567, then 01.
	r := &ram{space, []mapping{{5, 8, 7}, {15, 20, 0}, {0, 2, 10}}}
	for _, c := range []struct {
		off  int64
		n    int
		want string
		ok   bool
	}{
		{0, 5, "fghij", true}, {1, 3, "ghi", true}, {0, 0, "", true}, {7, 5, "56701", true}, {9, 2, "70", true}, {11, 1, "1", true},
		{3, 4, "ij", false}, {5, 1, "", false}, {6, 3, "", false}, {11, 2, "1", false}, {12, 1, "", false}, {-1, 2, "", false},
	} {
		buf := make([]byte, c.n)
		n, err := r.ReadAt(buf, c.off)
		if string(buf[:n]) != c.want || (err == nil) != c.ok {
			t.Errorf("%d bytes at %d are %q (%v), want %q", c.n, c.off, buf[:n], err, c.want)
		}
	}
}
