package memtap

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

func TestDiskFetchesOnlyWhatItMust(t *testing.T) {
	tap := mounted(t, Options{})
	base := sealed(t, slice.Disk, filepath.Join(t.TempDir(), "root"), strings.Repeat("a", 64)+"00")
	path, top := disk(t, tap, "disk-1", base)
	c := opened(t, path)
	step := func(name string, want Counters) {
		t.Helper()
		got := tap.Counters("disk-1")
		got.Latency = Histogram{}
		if got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got, want)
		}
	}
	c.want("ok", "write 0 %d 98", 32*page)
	step("whole blocks", Counters{Writes: 1, BytesWritten: 32 * page})
	c.want("ok", "write %d 512 99", 40*page+1024)
	step("part of a block", Counters{Writes: 2, BytesWritten: 32*page + 512, BytesFetched: page})
	c.want("ok", "write %d 512 100", 40*page)
	step("another part of it", Counters{Writes: 3, BytesWritten: 32*page + 1024, BytesFetched: page, LocalBlocks: 1})
	c.want("b 512", "read 512 512")
	c.want("a 8192", "read %d 8192", 32*page)
	c.want("d 4096", "read %d 4096", 40*page)
	c.want("\x00 4096", "read %d 4096", 64*page)
	step("reads", Counters{Writes: 3, BytesWritten: 32*page + 1024, BytesFetched: 3 * page, LocalBlocks: 3, ZeroBlocks: 1,
		Reads: 4, BytesServed: 512 + 4*page})
	c.want("ok", "punch %d %d", page, 30*page)
	c.want("b 4096", "read 0 4096")
	c.want("\x00 4096", "read %d 4096", page)
	c.want("ok", "sync")
	if stored, zero := top.Count(); stored != 3 || zero != 30 {
		t.Errorf("the disk's own slice stores %d blocks and hides %d", stored, zero)
	}
	c.want("\x00 4096", "read %d 8192", 65*page) // the end of the disk
	c.want("ENOSPC", "write %d 8192 65", 65*page)
}

func TestClonesDisksAreIndependent(t *testing.T) {
	tap := mounted(t, Options{})
	base := sealed(t, slice.Disk, filepath.Join(t.TempDir(), "root"), "abcd")
	p1, _ := disk(t, tap, "disk-1", base)
	p2, _ := disk(t, tap, "disk-2", base)
	one, two := opened(t, p1), opened(t, p2)
	one.want("ok", "write 0 %d 49", 2*page)
	two.want("ok", "write %d %d 50", page, 2*page)
	for i, want := range []string{"11cd", "a22d"} {
		for b, c := range want {
			[]*child{one, two}[i].want(fmt.Sprintf("%c 4096", c), "read %d 4096", b*page)
		}
	}
	sealedDisk, err := tap.AddDisk("frozen", stack(t, base))
	if err != nil {
		t.Fatal(err)
	}
	c := opened(t, sealedDisk)
	c.want("EROFS", "write 0 512 65")
	c.want("a 512", "read 0 512")
}

// TestRestackedDiskIsSeenAtOnce is a fork, twice: of the VM whose disk it is, and into a clone that had no disk yet.
func TestRestackedDiskIsSeenAtOnce(t *testing.T) {
	tap := mounted(t, Options{})
	base := sealed(t, slice.Disk, filepath.Join(t.TempDir(), "root"), "abcd")
	empty := func() *slice.Slice {
		s, err := slice.Create(filepath.Join(t.TempDir(), "top"), base.Size(), slice.Disk)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	first, second, clones := empty(), empty(), empty()
	parent, clone := stack(t, first, base), stack(t, clones)
	var guests []*child
	for name, image := range map[string]*slice.Image{"parent": parent, "clone": clone} {
		path, err := tap.AddDisk(name, image)
		if err != nil {
			t.Fatal(err)
		}
		c := opened(t, path)
		if name == "parent" {
			guests = append([]*child{c}, guests...)
		} else {
			guests = append(guests, c)
		}
	}
	guests[0].want("ok", "write 0 %d 120", 2*page)
	guests[1].want("\x00 4096", "read 0 4096")
	first.Freeze()
	if err := parent.Restack(second, first, base); err != nil {
		t.Fatal(err)
	}
	if err := clone.Restack(clones, first, base); err != nil {
		t.Fatal(err)
	}
	guests[0].want("ok", "write 0 %d 121", page)
	for i, want := range []string{"yxcd", "xxcd"} {
		for b, c := range want {
			guests[i].want(fmt.Sprintf("%c 4096", c), "read %d 4096", b*page)
		}
	}
}
