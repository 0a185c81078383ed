package network

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests need root and /dev/net/tun; Create says so where they are missing.

// TestMain turns the test binary into the victim of TestKillLeavesNothing.
func TestMain(m *testing.M) {
	if os.Getenv("NETWORK_TEST_VICTIM") != "" {
		victim()
	}
	os.Exit(m.Run())
}

func create(t *testing.T) *Network {
	t.Helper()
	n, err := Create(t.Context(), NewPlan(t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

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

func TestProbe(t *testing.T) {
	if err := Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestMissingErrorsSayWhatToDo(t *testing.T) {
	for _, err := range []error{
		namespaceError(unix.EPERM), namespaceError(unix.EINVAL), namespaceError(unix.ENOSPC),
		bridgeError(unix.EOPNOTSUPP), bridgeError(unix.EPERM),
		tunError(&os.PathError{Op: "open", Path: "/dev/net/tun", Err: unix.ENOENT}),
		tunError(unix.ENODEV), tunError(unix.EACCES), tunError(unix.EPERM),
	} {
		var missing *MissingError
		wrapped := fmt.Errorf("create network: %w", err)
		if !errors.Is(wrapped, ErrMissing) || !errors.As(wrapped, &missing) || missing.What == "" || missing.Do == "" {
			t.Errorf("%v", wrapped)
		}
	}
	if err := tunError(unix.EIO); errors.Is(err, ErrMissing) {
		t.Errorf("%v has no remedy", err)
	}
}

// A fakeClone is a namespace with an interface whose frames are carried to and from a tap, as QEMU would.
type fakeClone struct {
	namespace *os.File
	handle    *netlink.Handle
}

func (c *fakeClone) inside(f func() error) error {
	return (&Network{namespace: c.namespace}).inside(f)
}

func newFakeClone(t *testing.T, plug *os.File) *fakeClone {
	t.Helper()
	namespace, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	clone := &fakeClone{namespace: namespace}
	var socket *os.File
	err = clone.inside(func() (err error) {
		if socket, err = openTap("eth0"); err != nil {
			return err
		}
		clone.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clone.handle.Close)
	if plug == nil {
		t.Cleanup(func() { socket.Close() })
		return clone
	}
	done := make(chan struct{}, 2)
	carry := func(to, from *os.File) {
		defer func() { done <- struct{}{} }()
		buffer := make([]byte, 65536+VNetHeader)
		for {
			size, err := from.Read(buffer)
			if err != nil {
				return
			}
			// A frame that the other side cannot take is lost, as frames are.
			_, _ = to.Write(buffer[:size])
		}
	}
	go carry(plug, socket)
	go carry(socket, plug)
	t.Cleanup(func() {
		socket.Close()
		_ = plug.SetReadDeadline(time.Unix(1, 0))
		<-done
		<-done
	})
	return clone
}

func (c *fakeClone) configure(t *testing.T, config GuestConfig) {
	t.Helper()
	if err := c.inside(func() error { return Configure(t.Context(), config) }); err != nil {
		t.Fatal(err)
	}
}

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

func TestConfigureReplacesIdentity(t *testing.T) {
	clone := newFakeClone(t, nil)
	before, after := NewPlan("before"), NewPlan("after, with another subnet")
	if before == after {
		t.Fatal("choose other job ids")
	}
	clone.configure(t, before.Guest(0, []int{0, 1, 2}))
	clone.configure(t, after.Guest(7, []int{7, 8}))

	link, err := clone.handle.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if got := link.Attrs().HardwareAddr; got.String() != after.MAC(7).String() {
		t.Errorf("MAC address %v, want %v", got, after.MAC(7))
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		t.Error("the interface is down")
	}
	addrs, err := clone.handle.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	if len(addrs) != 1 || addrs[0].IPNet.String() != after.IP(7).String()+"/16" {
		t.Errorf("addresses %v", addrs)
	}
	neighbours, err := clone.handle.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, neighbour := range neighbours {
		if neighbour.State == netlink.NUD_PERMANENT {
			got[neighbour.IP.String()] = neighbour.HardwareAddr.String()
		}
	}
	want := map[string]string{
		after.Host().String(): after.HostMAC().String(),
		after.IP(8).String():  after.MAC(8).String(),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("permanent neighbours %v, want %v", got, want)
	}
}

func TestConfigureErrors(t *testing.T) {
	plan := NewPlan("job")
	good := plan.Guest(1, nil)
	clone := newFakeClone(t, nil)
	for name, test := range map[string]struct {
		config GuestConfig
		want   string
	}{
		"no MAC":     {GuestConfig{Address: good.Address}, "hardware address"},
		"group MAC":  {GuestConfig{Address: good.Address, MAC: net.HardwareAddr{1, 0, 0, 0, 0, 0}}, "hardware address"},
		"no address": {GuestConfig{MAC: good.MAC}, "IPv4"},
		"member":     {GuestConfig{MAC: good.MAC, Address: good.Address, Members: []Member{{Name: "x"}}}, `"x"`},
		"interface":  {GuestConfig{Interface: "eth9", MAC: good.MAC, Address: good.Address}, "eth9"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := clone.inside(func() error { return Configure(ctx, test.config) })
		cancel()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}

	var second *os.File
	err := clone.inside(func() (err error) {
		second, err = openTap("eth1")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	err = clone.inside(func() error { return Configure(t.Context(), good) })
	if err == nil || !strings.Contains(err.Error(), "eth0, eth1") {
		t.Errorf("two interfaces: %v", err)
	}
	good.Interface = "eth1"
	clone.configure(t, good)
}

func TestConfigureWaitsForInterface(t *testing.T) {
	clone := newFakeClone(t, nil)
	config := NewPlan("job").Guest(1, nil)
	config.Interface = "eth1"
	late := make(chan *os.File, 1)
	go func() {
		time.Sleep(30 * time.Millisecond)
		_ = clone.inside(func() error {
			file, err := openTap("eth1")
			late <- file
			return err
		})
	}()
	clone.configure(t, config)
	(<-late).Close()
}

func TestNoWayOut(t *testing.T) {
	n := create(t)
	addTap(t, n, 1)
	up(t, n, 1)
	links, err := n.handle.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		// Some kernels put their fallback tunnels into every namespace, down and without address.
		if name := link.Attrs().Name; !slices.Contains([]string{"lo", bridgeName, "tap1"}, name) && link.Attrs().Flags&net.FlagUp != 0 {
			t.Errorf("interface %s is up in the namespace", name)
		}
	}
	routes, err := n.handle.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range routes {
		if route.Dst == nil || route.Gw != nil || route.Dst.String() != n.plan.Subnet.String() {
			t.Errorf("route %v", route)
		}
	}
	err = n.inside(func() error {
		conn, err := net.DialTimeout("tcp4", "192.0.2.1:80", time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
	if !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("dial out: %v", err)
	}
}

// outside is what a network must not change: the interfaces and routes of this process's namespace.
func outside(t *testing.T) []string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, link := range links {
		all = append(all, link.Attrs().Name)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range routes {
		all = append(all, route.String())
	}
	return all
}

func TestNothingShowsOutsideOrIsLeft(t *testing.T) {
	before := outside(t)
	n, err := Create(t.Context(), NewPlan(t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	addTap(t, n, 1)
	identity := namespaceOf(t, n.Path())
	if namespaceOf(t, "/proc/self/ns/net") == identity {
		t.Error("this process is in the private namespace")
	}
	if during := outside(t); !reflect.DeepEqual(before, during) {
		t.Errorf("outside, %v became %v", before, during)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if after := outside(t); !reflect.DeepEqual(before, after) {
		t.Errorf("outside, %v became %v", before, after)
	}
	if holder := holderOf(identity); holder != "" {
		t.Errorf("%s still holds the namespace", holder)
	}
}

func TestKillLeavesNothing(t *testing.T) {
	before := outside(t)
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), "NETWORK_TEST_VICTIM=yes")
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	path, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	identity := namespaceOf(t, strings.TrimSpace(path))
	if holder := holderOf(identity); holder == "" {
		t.Error("nobody holds the namespace while the victim lives: the search is no use")
	}
	if err := command.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()
	if holder := holderOf(identity); holder != "" {
		t.Errorf("%s still holds the namespace", holder)
	}
	if after := outside(t); !reflect.DeepEqual(before, after) {
		t.Errorf("outside, %v became %v", before, after)
	}
}

// victim makes a network with all there is to it, says where, and waits for its end.
func victim() {
	ctx := context.Background()
	n, err := Create(ctx, NewPlan("victim"))
	if err == nil {
		_, err = n.AddTap(1)
	}
	if err == nil {
		_, err = n.Listen(ctx, 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(n.Path())
	select {}
}

func namespaceOf(t *testing.T, path string) string {
	t.Helper()
	identity, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// holderOf finds a process, or a thread of one, that is in the namespace or has it open.
func holderOf(identity string) string {
	for _, pattern := range []string{"/proc/[0-9]*/task/[0-9]*/ns/net", "/proc/[0-9]*/fd/*"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			if got, err := os.Readlink(path); err == nil && got == identity {
				return path
			}
		}
	}
	return ""
}
