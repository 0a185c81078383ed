package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func addTap(t *testing.T, n *Network, id int) *os.File {
	t.Helper()
	file, err := n.AddTap(id)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func up(t *testing.T, n *Network, ids ...int) {
	t.Helper()
	for _, id := range ids {
		if err := n.Up(id); err != nil {
			t.Fatal(err)
		}
	}
}

// frame is what a guest would send: a virtio header that asks for nothing, and a UDP packet. A hardware address of the plan
// says which IP address goes with it.
func frame(to, from net.HardwareAddr, payload string) []byte {
	payload = fmt.Sprintf("%-60s", payload)
	f := make([]byte, VNetHeader, 256)
	f = append(f, to...)
	f = append(f, from...)
	f = append(f, 0x08, 0x00)
	return append(f, packet([4]byte(from[2:]), [4]byte(to[2:]), 7777, 7777, payload)...)
}

// packet is an IPv4 packet with a UDP datagram.
func packet(from, to [4]byte, fromPort, toPort uint16, payload string) []byte {
	p := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(payload)))
	p = append(append(p, from[:]...), to[:]...)
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	p = binary.BigEndian.AppendUint16(p, fromPort)
	p = binary.BigEndian.AppendUint16(p, toPort)
	p = binary.BigEndian.AppendUint16(p, uint16(8+len(payload)))
	p = append(p, 0, 0) // no checksum
	return append(p, payload...)
}

// body is where frame's payload begins.
const body = VNetHeader + 14 + 20 + 8

// isFrame tells what frame made from what the kernel says of its own accord.
func isFrame(f []byte) bool {
	return len(f) >= body+60 && bytes.Equal(f[VNetHeader+12:VNetHeader+14], []byte{8, 0}) && bytes.Equal(f[body-8:body-4], []byte{0x1e, 0x61, 0x1e, 0x61})
}

// received waits for a frame from another member, and returns nil when none comes.
func received(t *testing.T, file *os.File) []byte { return receivedWithin(t, file, 2*time.Second) }

// stray is a frame that should not have come, at the side of one that has.
func stray(t *testing.T, file *os.File) []byte { return receivedWithin(t, file, 20*time.Millisecond) }

func receivedWithin(t *testing.T, file *os.File, wait time.Duration) []byte {
	t.Helper()
	buffer := make([]byte, 2048)
	for {
		if err := file.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		size, err := file.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := buffer[:size]; isFrame(got) {
			return got
		}
	}
}

func TestFrameCrossesTheBridge(t *testing.T) {
	n := create(t)
	one, two, three := addTap(t, n, 1), addTap(t, n, 2), addTap(t, n, 3)
	up(t, n, 1, 2, 3)

	want := frame(n.plan.MAC(2), n.plan.MAC(1), "hello")
	if _, err := one.Write(want); err != nil {
		t.Fatal(err)
	}
	if got := received(t, two); !bytes.Equal(got[VNetHeader:], want[VNetHeader:]) {
		t.Errorf("received %q, want %q", got, want)
	}
	if got := stray(t, three); got != nil {
		t.Errorf("a third clone received %q", got)
	}
}

func TestFramesDoNotFollowAForgedSender(t *testing.T) {
	n := create(t)
	one, two, three := addTap(t, n, 1), addTap(t, n, 2), addTap(t, n, 3)
	up(t, n, 1, 2, 3)

	broadcast := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	if _, err := three.Write(frame(broadcast, n.plan.MAC(2), "I am clone 2")); err != nil {
		t.Fatal(err)
	}
	stray(t, two)
	if _, err := one.Write(frame(n.plan.MAC(2), n.plan.MAC(1), "secret")); err != nil {
		t.Fatal(err)
	}
	if got := received(t, two); got == nil {
		t.Error("the frame did not arrive")
	}
	if got := stray(t, three); got != nil {
		t.Errorf("the forger received %q", got)
	}
}

func TestDownTapIsSilent(t *testing.T) {
	n := create(t)
	one, two := addTap(t, n, 1), addTap(t, n, 2)
	up(t, n, 1)
	send := func() {
		if _, err := one.Write(frame(n.plan.MAC(2), n.plan.MAC(1), "hello")); err != nil {
			t.Fatal(err)
		}
	}
	send()
	if err := n.Up(2); err != nil {
		t.Fatal(err)
	}
	if got := stray(t, two); got != nil {
		t.Errorf("before Up: received %q", got)
	}
	send()
	if got := received(t, two); got == nil {
		t.Error("after Up: received nothing")
	}
	if err := n.Down(2); err != nil {
		t.Fatal(err)
	}
	send()
	if err := n.Up(2); err != nil {
		t.Fatal(err)
	}
	if got := stray(t, two); got != nil {
		t.Errorf("after Down: received %q", got)
	}
}

// A tap that cannot be let through the filter is an error, and leaves no device.
func TestTapThatCannotSend(t *testing.T) {
	n := create(t)
	n.filter.close()
	if _, err := n.AddTap(1); err == nil || !strings.Contains(err.Error(), "send by tap1") {
		t.Errorf("without a filter: %v", err)
	}
	if _, err := n.handle.LinkByName("tap1"); err == nil {
		t.Error("the tap is still there")
	}
}

func TestTapErrors(t *testing.T) {
	n := create(t)
	addTap(t, n, 1)
	if _, err := n.AddTap(1); err == nil {
		t.Error("two taps for one clone")
	}
	for _, id := range []int{-1, MaxID + 1} {
		if _, err := n.AddTap(id); err == nil {
			t.Errorf("a tap for clone %d", id)
		}
	}
	if err := n.Up(2); err == nil {
		t.Error("a clone without tap came up")
	}
	if err := n.Remove(1); err != nil {
		t.Error(err)
	}
	if err := n.Remove(1); err == nil {
		t.Error("a tap was removed twice")
	}
	addTap(t, n, 1) // the id is free again
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, err := n.AddTap(2); !errors.Is(err, net.ErrClosed) {
		t.Errorf("add tap to closed network: %v", err)
	}
	if _, err := n.Listen(t.Context(), 0); err == nil {
		t.Error("a closed network listens")
	}
}
