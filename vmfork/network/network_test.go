package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
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

	"github.com/google/nftables"
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
	hosts := newTestHosts(t, 2, false)
	before := hostState(t, hosts[0])
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), "NETWORK_TEST_VICTIM=yes")
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	must(t, hosts[0].inside(command.Start))
	path, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	identity := namespaceOf(t, strings.TrimSpace(path))
	if holder := holderOf(identity); holder == "" {
		t.Error("nobody holds the namespace while the victim lives: the search is no use")
	}
	during := hostState(t, hosts[0])
	if !strings.Contains(during, "mpirun-sf-11259375-4789") || !strings.Contains(during, ":12B5 ") || !strings.Contains(during, ":1F90 ") {
		t.Errorf("the victim's table and ports cannot be seen, so the search is no use: %s", during)
	}
	if err := command.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()
	if holder := holderOf(identity); holder != "" {
		t.Errorf("%s still holds the namespace", holder)
	}
	waitForNoVXLAN(t, hosts[0])
	if after := hostState(t, hosts[0]); before != after {
		t.Errorf("on the host, %s became %s", before, after)
	}
}

// hostState is all of a host that a network may change while it lives.
func hostState(t *testing.T, h *testHost) (state string) {
	t.Helper()
	must(t, h.inside(func() error {
		state = fmt.Sprintln(outside(t))
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := conn.ListTables()
		if err != nil {
			return err
		}
		for _, table := range tables {
			state += fmt.Sprintln("table", table.Name, "of family", table.Family)
		}
		rules, err := netlink.RuleList(netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, rule := range rules {
			state += fmt.Sprintln(rule)
		}
		for _, file := range []string{"net/udp", "net/tcp", "sys/net/ipv4/ip_forward", "sys/net/ipv4/icmp_ratelimit", "sys/net/ipv4/conf/all/forwarding", "sys/net/ipv4/conf/eth0/forwarding"} {
			if strings.HasPrefix(file, "net") {
				file = "thread-self/" + file
			}
			content, err := os.ReadFile("/proc/" + file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(content)) { // without an entry's number, counters and the like
				if fields := strings.Fields(line); len(fields) > 3 {
					line = strings.Join(fields[1:4], " ") + "\n"
				}
				state += line
			}
		}
		return nil
	}))
	return state
}

// victim makes a network with all there is to it, says where, and waits for its end.
func victim() {
	ctx := context.Background()
	n, err := Create(ctx, NewPlan("victim"))
	if err == nil {
		err = n.Join(ctx, Fabric{VNI: 0xabcdef, Local: netip.MustParseAddr("192.0.2.1"), Port: 4789, Hosts: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Gateway: true})
	}
	if err == nil {
		_, err = n.AddTap(1)
	}
	if err == nil {
		err = n.Up(1)
	}
	if err == nil {
		_, err = n.Spare(1)
	}
	if err == nil {
		err = n.Locate(2, netip.MustParseAddr("192.0.2.2"))
	}
	if err == nil {
		_, err = n.Listen(ctx, 0)
	}
	if err == nil {
		err = n.OpenWay(ctx, Way{Forward: []Forward{{Host: netip.MustParseAddrPort("192.0.2.1:8080"), Port: 80}}})
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
