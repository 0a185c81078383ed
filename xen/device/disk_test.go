package device

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/xen/gntdev"
)

const diskFront = "/local/domain/7/device/vbd/51712"

// diskGuest plays a guest's disk driver. Its pages are granted by their index.
type diskGuest struct {
	*guest
	pages [16][]byte
	prod  uint32
	seen  uint32 // answers
}

func newDisk(t *testing.T, sectors int) (*Disk, *diskGuest, string) {
	bus, g, _ := newBus(t)
	dg := &diskGuest{guest: g}
	for i := range dg.pages {
		dg.pages[i] = make([]byte, 4096)
	}
	var mu sync.Mutex // what the ring's indices order, the race detector does not see
	bus.Copy = func(parts []gntdev.Segment) error {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range parts {
			if p.Domain != 7 || int(p.Ref) >= len(dg.pages) {
				return fmt.Errorf("grant %d is not there", p.Ref)
			}
			if place := dg.pages[p.Ref][p.Offset:][:len(p.Bytes)]; p.Write {
				copy(place, p.Bytes)
			} else {
				copy(p.Bytes, place)
			}
		}
		return nil
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, noise(sectors*sectorSize), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := bus.NewDisk(limit(t), 7, path)
	if err != nil {
		t.Fatal(err)
	}
	return d, dg, path
}

func (g *diskGuest) connect(protocol string) {
	g.t.Helper()
	ctx := limit(g.t)
	for _, e := range [][2]string{{"protocol", protocol}, {"ring-ref", "8"}, {"event-channel", "9"}, {"state", "3"}} {
		if err := g.store.Write(ctx, diskFront+"/"+e[0], e[1]); err != nil {
			g.t.Fatal(err)
		}
	}
}

func (g *diskGuest) awaitHost() {
	g.t.Helper()
	back, err := g.store.Read(limit(g.t), diskFront+"/backend")
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.store.Await(limit(g.t), back+"/state", "the host", func(v string) bool { return v == "4" }); err != nil {
		g.t.Fatal(err)
	}
}

func (g *diskGuest) index(at int) *uint32 { return (&sharedRing{page: g.page}).index(at) }

// ask puts a request into the ring.
func (g *diskGuest) ask(op byte, id, sector uint64, segments ...blockSegment) {
	slot := g.page[ringHead+int(g.prod%blockSlots)*blockSlot:][:blockSlot]
	clear(slot)
	slot[0], slot[1] = op, byte(len(segments))
	binary.LittleEndian.PutUint64(slot[8:], id)
	binary.LittleEndian.PutUint64(slot[16:], sector)
	for i, s := range segments[:min(len(segments), blockSegments)] {
		binary.LittleEndian.PutUint32(slot[24+8*i:], s.ref)
		slot[28+8*i], slot[29+8*i] = s.first, s.last
	}
	g.prod++
	atomic.StoreUint32(g.index(requestProd), g.prod)
	g.channel.Notify()
}

// hear waits for so many answers, and returns their statuses by id.
func (g *diskGuest) hear(n int) map[uint64]int16 {
	g.t.Helper()
	statuses := map[uint64]int16{}
	for range n {
		g.await("an answer", func() bool { return atomic.LoadUint32(g.index(answerProd)) != g.seen })
		slot := g.page[ringHead+int(g.seen%blockSlots)*blockSlot:]
		statuses[binary.LittleEndian.Uint64(slot)] = int16(binary.LittleEndian.Uint16(slot[10:]))
		g.seen++
		atomic.StoreUint32(g.index(answerEvent), g.seen+1)
	}
	return statuses
}

func TestDisk(t *testing.T) {
	d, g, path := newDisk(t, 1000)
	g.connect("x86_64-abi")
	g.awaitHost()
	for entry, want := range map[string]string{"sectors": "1000", "sector-size": "512", "info": "0"} {
		if v, err := g.store.Read(limit(t), d.back+"/"+entry); v != want || err != nil {
			t.Errorf("%s is %q (%v)", entry, v, err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	g.ask(blockRead, 1, 10, blockSegment{0, 0, 7}, blockSegment{1, 2, 3})
	if s := g.hear(1); s[1] != blockOK || !bytes.Equal(g.pages[0], content[10*512:18*512]) || !bytes.Equal(g.pages[1][1024:2048], content[18*512:20*512]) {
		t.Errorf("what was read is not on the disk (%v)", s)
	}
	copy(g.pages[2], bytes.Repeat([]byte{7}, 4096))
	g.ask(blockWrite, 2, 999, blockSegment{2, 5, 5})
	g.ask(blockFlush, 3, 0)
	if s := g.hear(2); s[2] != blockOK || s[3] != blockOK {
		t.Errorf("the answers are %v", s)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(after[999*512:], bytes.Repeat([]byte{7}, 512)) || !bytes.Equal(after[:999*512], content[:999*512]) {
		t.Errorf("what was written is not on the disk (%v)", err)
	}
	// More than the ring has places, in two rounds.
	for round := range 2 {
		for i := range uint64(blockSlots) {
			g.ask(blockRead, 100+i, i, blockSegment{uint32(i % 16), 0, 0})
		}
		for id, s := range g.hear(blockSlots) {
			if s != blockOK {
				t.Errorf("round %d: request %d: %d", round, id, s)
			}
		}
	}
	if err := d.Drain(limit(t)); err != nil {
		t.Error(err)
	}
	g.ask(blockRead, 5, 0, blockSegment{0, 0, 0})
	d.Resume()
	if s := g.hear(1); s[5] != blockOK {
		t.Errorf("resumed, it answers %v", s)
	}
	if err := d.Close(limit(t)); err != nil || d.Err() != nil {
		t.Errorf("%v, %v", err, d.Err())
	}
	if g.mapped != 0 {
		t.Errorf("%d pages are mapped", g.mapped)
	}
}

// A bad request is answered as one, and harms no other.
func TestBadRequests(t *testing.T) {
	d, g, path := newDisk(t, 100)
	g.connect("x86_64-abi")
	g.awaitHost()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := blockSegment{0, 0, 7}
	g.ask(blockWrite, 1, 93, page)
	g.ask(blockWrite, 2, 1<<63, page)
	g.ask(blockWrite, 3, 0)
	g.ask(blockWrite, 4, 0, blockSegment{0, 3, 2})
	g.ask(blockWrite, 5, 0, blockSegment{0, 0, 8})
	g.ask(blockWrite, 6, 0, blockSegment{77, 0, 7})
	g.ask(blockWrite, 7, 0, page, page, page, page, page, page, page, page, page, page, page, page)
	g.ask(9, 8, 0, page)
	g.ask(blockRead, 9, 92, page)
	want := map[uint64]int16{1: -1, 2: -1, 3: -1, 4: -1, 5: -1, 6: -1, 7: -1, 8: -2, 9: 0}
	got := g.hear(len(want))
	for id, status := range want {
		if got[id] != status {
			t.Errorf("request %d: %d, want %d", id, got[id], status)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the disk has changed (%v)", err)
	}
	atomic.StoreUint32(g.index(requestProd), g.prod+1000)
	g.channel.Notify()
	g.await("the disk to be given up", func() bool { return d.Err() != nil })
	if !strings.Contains(d.Err().Error(), "impossible indices") {
		t.Error(d.Err())
	}
	if err := d.Close(limit(t)); err != nil {
		t.Error(err)
	}
}

func TestDiskOfAnotherABI(t *testing.T) {
	d, g, _ := newDisk(t, 8)
	g.connect("x86_32-abi")
	g.await("the disk to be given up", func() bool { return d.Err() != nil })
	if err := d.Err(); err.Error() != `vbd 51712 of domain 7: the guest's driver speaks "x86_32-abi", not x86_64-abi` {
		t.Error(err)
	}
	if err := d.Close(limit(t)); err != nil {
		t.Error(err)
	}
}

func TestDiskThatIsNone(t *testing.T) {
	bus, _, _ := newBus(t)
	odd := filepath.Join(t.TempDir(), "odd")
	if err := os.WriteFile(odd, make([]byte, 700), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{odd: "700 bytes", "/no/such/disk": "no such file"} {
		if _, err := bus.NewDisk(limit(t), 7, path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func FuzzBlockRequest(f *testing.F) {
	f.Add(make([]byte, blockSlot), uint64(100))
	f.Fuzz(func(t *testing.T, b []byte, sectors uint64) {
		q := parseBlockRequest(append(b, make([]byte, blockSlot)...))
		n, err := q.bytes(sectors)
		if err != nil {
			return
		}
		if n <= 0 || n > blockSegments*4096 || q.sector+uint64(n/sectorSize) > sectors {
			t.Errorf("%d bytes at sector %d of %d", n, q.sector, sectors)
		}
	})
}
