package device

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/xen/gntdev"
)

// netGuest plays a guest's network driver. Grants below 16 are its pages, 100 and 101 its
// rings.
type netGuest struct {
	*guest
	rings            [2][]byte // out, in
	pages            [16][]byte
	outProd, outSeen uint32
	inProd, inSeen   uint32
}

// newNetwork makes one over a pair of sockets, which keep frames apart as a tap does.
func newNetwork(t *testing.T) (*Network, *netGuest, *os.File) {
	bus, g, _ := newBus(t)
	ng := &netGuest{guest: g, rings: [2][]byte{make([]byte, 4096), make([]byte, 4096)}}
	for i := range ng.pages {
		ng.pages[i] = make([]byte, 4096)
	}
	bus.Map = func(_ uint16, ref uint32) ([]byte, func() error, error) {
		if ref < 100 || ref > 101 {
			return nil, nil, fmt.Errorf("grant %d is not there", ref)
		}
		g.mapped++
		return ng.rings[ref-100], func() error { g.mapped--; return nil }, nil
	}
	bus.Copy = func(parts []gntdev.Segment) error {
		for _, p := range parts {
			if int(p.Ref) >= len(ng.pages) || p.Offset+len(p.Bytes) > 4096 {
				return fmt.Errorf("grant %d is not there", p.Ref)
			}
			if place := ng.pages[p.Ref][p.Offset:][:len(p.Bytes)]; p.Write {
				copy(place, p.Bytes)
			} else {
				copy(p.Bytes, place)
			}
		}
		return nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	tap, wire := os.NewFile(uintptr(fds[0]), "tap"), os.NewFile(uintptr(fds[1]), "wire")
	t.Cleanup(func() { tap.Close(); wire.Close() })
	wire.SetDeadline(time.Now().Add(20 * time.Second))
	n, err := bus.NewNetwork(limit(t), 7, net.HardwareAddr{2, 0, 0, 0, 0, 1}, tap)
	if err != nil {
		t.Fatal(err)
	}
	return n, ng, wire
}

func (g *netGuest) connect() {
	g.t.Helper()
	ctx := limit(g.t)
	front := "/local/domain/7/device/vif/0"
	if mac, err := g.store.Read(ctx, front+"/mac"); mac != "02:00:00:00:00:01" || err != nil {
		g.t.Errorf("the guest finds the address %q (%v)", mac, err)
	}
	for _, e := range [][2]string{{"tx-ring-ref", "100"}, {"rx-ring-ref", "101"}, {"event-channel", "9"}, {"request-rx-copy", "1"}, {"state", "4"}} {
		if err := g.store.Write(ctx, front+"/"+e[0], e[1]); err != nil {
			g.t.Fatal(err)
		}
	}
}

func (g *netGuest) index(ring, at int) *uint32 { return (&sharedRing{page: g.rings[ring]}).index(at) }

// send puts a part of a frame into the ring.
func (g *netGuest) send(id uint16, page uint32, offset, size, flags uint16) {
	slot := g.rings[0][ringHead+int(g.outProd%outSlots)*outSlot:]
	binary.LittleEndian.PutUint32(slot, page)
	for i, v := range []uint16{offset, flags, id, size} {
		binary.LittleEndian.PutUint16(slot[4+2*i:], v)
	}
	g.outProd++
}

func (g *netGuest) push() {
	atomic.StoreUint32(g.index(0, requestProd), g.outProd)
	atomic.StoreUint32(g.index(1, requestProd), g.inProd)
	g.channel.Notify()
}

// sent waits for the answer to a part.
func (g *netGuest) sent(id uint16, status int16) {
	g.t.Helper()
	g.await("an answer", func() bool { return atomic.LoadUint32(g.index(0, answerProd)) != g.outSeen })
	slot := g.rings[0][ringHead+int(g.outSeen%outSlots)*outSlot:]
	g.outSeen++
	if gotID, got := binary.LittleEndian.Uint16(slot), int16(binary.LittleEndian.Uint16(slot[2:])); gotID != id || got != status {
		g.t.Errorf("answered is %d to %d, want %d to %d", got, gotID, status, id)
	}
}

// offer gives room for a frame in a page.
func (g *netGuest) offer(id uint16, page uint32) {
	slot := g.rings[1][ringHead+int(g.inProd%inSlots)*inSlot:]
	binary.LittleEndian.PutUint16(slot, id)
	binary.LittleEndian.PutUint32(slot[4:], page)
	g.inProd++
}

// received waits for a frame, and returns which offer took it and its length.
func (g *netGuest) received() (id uint16, status int16) {
	g.t.Helper()
	g.await("a frame", func() bool { return atomic.LoadUint32(g.index(1, answerProd)) != g.inSeen })
	slot := g.rings[1][ringHead+int(g.inSeen%inSlots)*inSlot:]
	g.inSeen++
	return binary.LittleEndian.Uint16(slot), int16(binary.LittleEndian.Uint16(slot[6:]))
}

func TestNetwork(t *testing.T) {
	n, g, wire := newNetwork(t)
	g.connect()
	for i := range g.pages {
		copy(g.pages[i], noise(4096))
	}
	buf := make([]byte, 2000)
	g.send(1, 0, 100, 60, 0)
	g.send(2, 1, 4000, 1096, moreData) // in two pages: the size is the whole frame's
	g.send(3, 2, 0, 1000, 0)
	g.push()
	if got, err := wire.Read(buf); err != nil || !bytes.Equal(buf[:got], g.pages[0][100:160]) {
		t.Errorf("a frame of %d bytes came (%v)", got, err)
	}
	if got, err := wire.Read(buf); err != nil || !bytes.Equal(buf[:got], append(bytes.Clone(g.pages[1][4000:]), g.pages[2][:1000]...)) {
		t.Errorf("a frame of %d bytes came (%v)", got, err)
	}
	for id := range uint16(3) {
		g.sent(id+1, netOK)
	}
	// A frame waits for room.
	first, second := noise(64), noise(1514)
	for _, f := range [][]byte{first, make([]byte, 5000), second} { // the middle one is too long for a page
		if _, err := wire.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	g.offer(7, 5)
	g.push()
	if id, status := g.received(); id != 7 || status != 64 || !bytes.Equal(g.pages[5][:64], first) {
		t.Errorf("offer %d received %d bytes", id, status)
	}
	if err := n.Drain(limit(t)); err != nil {
		t.Error(err)
	}
	g.offer(8, 77) // a page that is not granted
	g.offer(9, 6)
	g.push()
	n.Resume()
	if id, status := g.received(); id != 8 || status != netError {
		t.Errorf("offer %d received %d bytes", id, status)
	}
	if _, err := wire.Write(second); err != nil {
		t.Fatal(err)
	}
	if id, status := g.received(); id != 9 || status != 1514 || !bytes.Equal(g.pages[6][:1514], second) {
		t.Errorf("offer %d received %d bytes", id, status)
	}
	if err := n.Close(limit(t)); err != nil || n.Err() != nil {
		t.Errorf("%v, %v", err, n.Err())
	}
	if g.mapped != 0 {
		t.Errorf("%d pages are mapped", g.mapped)
	}
}

func TestBadFrames(t *testing.T) {
	n, g, wire := newNetwork(t)
	g.connect()
	g.send(1, 77, 0, 60, 0)       // not granted
	g.send(2, 0, 4090, 60, 0)     // beyond its page
	g.send(3, 0, 0, 60, moreData) // of parts that are more than it
	g.send(4, 1, 0, 60, 0)
	g.send(5, 0, 0, 0, 0) // empty
	g.send(6, 0, 0, 60, 0)
	g.push()
	for id, status := range []int16{netError, netError, netError, netError, netError, netOK} {
		g.sent(uint16(id+1), status)
	}
	if got, err := wire.Read(make([]byte, 2000)); got != 60 || err != nil {
		t.Errorf("a frame of %d bytes came (%v)", got, err)
	}
	g.send(7, 0, 0, 60, extraInfo)
	g.push()
	g.await("the device to be given up", func() bool { return n.Err() != nil })
	if !strings.Contains(n.Err().Error(), "not offered") {
		t.Error(n.Err())
	}
	if err := n.Close(limit(t)); err != nil {
		t.Error(err)
	}
}

func FuzzOutRequests(f *testing.F) {
	f.Add(make([]byte, outSlot*3))
	f.Fuzz(func(t *testing.T, b []byte) {
		var parts []outRequest
		for ; len(b) >= outSlot && len(parts) < partsLimit; b = b[outSlot:] {
			parts = append(parts, parseOutRequest(b))
		}
		if len(parts) == 0 {
			return
		}
		list, frame, err := segments(7, parts, 10)
		if err != nil {
			return
		}
		sum := 10
		for _, s := range list {
			sum += len(s.Bytes)
		}
		if sum != len(frame) || len(frame) > 10+frameLimit {
			t.Errorf("a frame of %d bytes has parts of %d", len(frame), sum)
		}
	})
}
