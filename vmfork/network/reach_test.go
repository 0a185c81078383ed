package network

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestCloneReachesHostListenerAndOtherClone(t *testing.T) {
	n := create(t)
	ids := []int{1, 2}
	var clones []*fakeClone
	for _, id := range ids {
		clone := newFakeClone(t, addTap(t, n, id))
		clone.configure(t, n.plan.Guest(id, ids))
		clones = append(clones, clone)
	}
	up(t, n, ids...)

	file, address, err := n.ListenFile(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	onHost, err := net.FileListener(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer onHost.Close()
	if address.Addr() != n.plan.Host() {
		t.Errorf("listens on %v, not on the host's address %v", address, n.plan.Host())
	}
	var onClone net.Listener
	err = clones[1].inside(func() (err error) {
		onClone, err = net.Listen("tcp4", netip.AddrPortFrom(n.plan.IP(2), 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer onClone.Close()

	for name, listener := range map[string]net.Listener{"host": onHost, "clone": onClone} {
		go func() {
			if conn, err := listener.Accept(); err == nil {
				_, _ = io.WriteString(conn, "from the "+name)
				conn.Close()
			}
		}()
		err := clones[0].inside(func() error {
			conn, err := net.DialTimeout("tcp4", listener.Addr().String(), 5*time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			got, err := io.ReadAll(conn)
			if err == nil && string(got) != "from the "+name {
				err = fmt.Errorf("read %q", got)
			}
			if from := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); from != n.plan.IP(1) {
				err = fmt.Errorf("came from %v", from)
			}
			return err
		})
		if err != nil {
			t.Errorf("clone 1 to %s: %v", name, err)
		}
	}

	// The neighbours are the configured ones, and nobody had to ask.
	neighbours, err := clones[0].handle.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, neighbour := range neighbours {
		if neighbour.State != netlink.NUD_PERMANENT && !neighbour.IP.IsMulticast() && !neighbour.IP.IsLoopback() {
			t.Errorf("neighbour %v was learnt", neighbour)
		}
	}
}

func TestNobodyCanBeAnother(t *testing.T) {
	n := create(t)
	plug := addTap(t, n, 1)
	addTap(t, n, 2)
	up(t, n, 1, 2)
	listener, err := n.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	clone := newFakeClone(t, plug)
	dial := func() error {
		return clone.inside(func() error {
			conn, err := net.DialTimeout("tcp4", listener.Addr().String(), 500*time.Millisecond)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	asOne, asTwo, asThree := n.plan.Guest(1, nil), n.plan.Guest(2, nil), n.plan.Guest(3, nil)
	mixed := asTwo
	mixed.MAC = asOne.MAC
	for name, config := range map[string]GuestConfig{"another": asTwo, "another with its own MAC address": mixed, "nobody": asThree} {
		clone.configure(t, config)
		if err := dial(); err == nil {
			t.Errorf("clone 1 reached the host as %s", name)
		}
	}
	clone.configure(t, asOne)
	if err := dial(); err != nil {
		t.Errorf("as itself: %v", err)
	}
}

// serve answers every connection with a text.
func serve(listener net.Listener, text string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.WriteString(conn, text)
		}()
	}
}

// fetch reads what a server has to say.
func fetch(address string) (string, error) {
	conn, err := net.DialTimeout("tcp4", address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(conn)
	return string(text), err
}
