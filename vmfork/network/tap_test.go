package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"
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

// frame is what a guest would send: a virtio header that asks for nothing, and an Ethernet frame of an unused type.
func frame(to, from net.HardwareAddr, payload string) []byte {
	f := make([]byte, VNetHeader, 128)
	f = append(f, to...)
	f = append(f, from...)
	f = append(f, 0x88, 0xb5)
	return append(f, fmt.Sprintf("%-60s", payload)...)
}

// received waits a second for a frame from another member, and returns nil when none comes.
func received(t *testing.T, file *os.File) []byte {
	t.Helper()
	buffer := make([]byte, 2048)
	for {
		if err := file.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		size, err := file.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := buffer[:size]; bytes.Equal(got[VNetHeader+12:VNetHeader+14], []byte{0x88, 0xb5}) {
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
	if got := received(t, three); got != nil {
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
	received(t, two)
	if _, err := one.Write(frame(n.plan.MAC(2), n.plan.MAC(1), "secret")); err != nil {
		t.Fatal(err)
	}
	if got := received(t, two); got == nil {
		t.Error("the frame did not arrive")
	}
	if got := received(t, three); got != nil {
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
	if got := received(t, two); got != nil {
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
	if got := received(t, two); got != nil {
		t.Errorf("after Down: received %q", got)
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
