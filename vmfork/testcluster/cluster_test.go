package testcluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests need root; New says so. What they wait for comes within milliseconds on an idle machine.
const patience = 20 * time.Second

// TestMain turns the test binary into the victim of TestKillLeavesNothing.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TESTCLUSTER_VICTIM"); dir != "" {
		victim(dir)
	}
	os.Exit(m.Run())
}

// output runs a program in a host and is what it says.
func output(t *testing.T, h *Host, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := h.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s %v: %v: %s", h.Name, name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// socket is a UDP socket of a host, on port 7000 of its address.
func socket(t *testing.T, h *Host) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.Address, 7000)))
		return err
	})
	try(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func send(t *testing.T, from *net.UDPConn, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte(text), to); err != nil {
		t.Fatal(err)
	}
}

// receives waits for a text.
func receives(t *testing.T, conn *net.UDPConn, text string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 65536)
	n, err := conn.Read(b)
	if err != nil || string(b[:n]) != text {
		t.Fatalf("received %q, %v instead of %q", b[:n], err, text)
	}
}

// reach is nil when b answers a, if only to say that nobody listens.
func reach(a, b *Host) error {
	return answers(a, netip.AddrPortFrom(b.Address, 9), patience)
}

// silent is nil when b does not answer a, and nobody does it for b. It gives an answer a moment, which is much for the
// idle machine that nothing is proved on otherwise.
func silent(a, b *Host) error {
	err := answers(a, netip.AddrPortFrom(b.Address, 9), 200*time.Millisecond)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return nil
	}
	return fmt.Errorf("not silence but %w", err)
}

func answers(a *Host, address netip.AddrPort, within time.Duration) error {
	return a.Do(func() error {
		conn, err := net.DialTimeout("tcp4", address.String(), within)
		if err == nil {
			conn.Close()
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
		return err
	})
}

// shapes are the clusters that what is true of any is true of.
var shapes = map[string]Options{
	"plain": {Hosts: 3},
	"slow":  {Hosts: 3, Link: Link{Rate: 1e9}},
	"far":   {Hosts: 3, Link: Link{Delay: 200 * time.Microsecond, Rate: 1e9}},
	"jumbo": {Hosts: 3, MTU: 9000, Links: map[int]Link{1: {Delay: time.Millisecond}}},
}

func TestHostsAreApart(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "/nowhere")
	c := ForTest(t, Options{Hosts: 4})
	seen := map[string]bool{}
	for _, h := range c.Hosts() {
		if got := output(t, h, "hostname"); got != h.Name {
			t.Errorf("%s is called %q", h.Name, got)
		}
		for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc"} {
			identity := output(t, h, "readlink", "/proc/self/ns/"+kind)
			if own, _ := os.Readlink("/proc/self/ns/" + kind); seen[identity] || identity == own {
				t.Errorf("%s shares %s", h.Name, identity)
			}
			seen[identity] = true
		}
		if got := output(t, h, "sh", "-c", "echo $HOME:$XDG_CACHE_HOME; getent passwd root | cut -d: -f6"); got != h.Home+":\n"+h.Home {
			t.Errorf("%s has the home %q", h.Name, got)
		}
		for _, other := range c.Hosts() {
			if got := output(t, h, "getent", "hosts", other.Name); !strings.HasPrefix(got, other.Address.String()+" ") {
				t.Errorf("%s knows %s as %q", h.Name, other.Name, got)
			}
		}
		if got := output(t, h, "ls", "/sys/class/net"); got != "eth0\nlo" {
			t.Errorf("%s has the interfaces %q", h.Name, got)
		}
		if got := output(t, h, "sh", "-c", "ls -A /run; mkdir /run/"+h.Name); got != "" {
			t.Errorf("%s has %q in /run", h.Name, got)
		}
		if _, err := os.Stat("/run/" + h.Name); err == nil {
			t.Errorf("what %s makes in /run is the machine's", h.Name)
		}
	}
	first, err := os.Hostname()
	try(t, err)
	if strings.HasPrefix(first, "host0") {
		t.Error("the machine has a host's name")
	}
}

func TestCommandIsAsTheProgramIs(t *testing.T) {
	h := ForTest(t, Options{Hosts: 1}).Host(0)
	dir := t.TempDir()
	run := func(script string) *exec.Cmd {
		cmd := h.Command(t.Context(), "sh", "-c", script)
		cmd.Dir = dir
		cmd.Env = append(cmd.Env, "GIVEN=what was given")
		return cmd
	}

	cmd := run(`cat; pwd; echo "$GIVEN"; cat <&3; exit 7`)
	file, err := os.Create(filepath.Join(dir, "file"))
	try(t, err)
	defer file.Close()
	_, err = file.WriteString("from file\n")
	try(t, err)
	_, err = file.Seek(0, 0)
	try(t, err)
	cmd.Stdin, cmd.ExtraFiles = strings.NewReader("from input\n"), []*os.File{file}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("ended with %v instead of 7", err)
	}
	if want := "from input\n" + dir + "\nwhat was given\nfrom file\n"; string(out) != want {
		t.Errorf("said %q instead of %q", out, want)
	}

	cmd = run("kill -TERM $$")
	if err := cmd.Run(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v instead of SIGTERM", err)
	}

	cmd = run("trap 'echo caught; exit 3' USR1; echo waiting; while :; do sleep 0.01; done")
	pipe, err := cmd.StdoutPipe()
	try(t, err)
	try(t, cmd.Start())
	lines := bufio.NewScanner(pipe)
	if !lines.Scan() || lines.Text() != "waiting" {
		t.Fatalf("said %q", lines.Text())
	}
	try(t, cmd.Process.Signal(syscall.SIGUSR1))
	if !lines.Scan() || lines.Text() != "caught" {
		t.Errorf("said %q after the signal", lines.Text())
	}
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("ended with %v instead of 3", err)
	}

	// A signal to the group of processes arrives once.
	cmd = run("trap 'n=$((n+1)); echo caught $n' USR1; echo waiting; while :; do sleep 0.01; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err = cmd.StdoutPipe()
	try(t, err)
	try(t, cmd.Start())
	lines = bufio.NewScanner(pipe)
	lines.Scan()
	try(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGUSR1))
	lines.Scan()
	time.Sleep(50 * time.Millisecond) // a second one would have come
	try(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGUSR1))
	if lines.Scan(); lines.Text() != "caught 2" {
		t.Errorf("said %q after two signals", lines.Text())
	}
	try(t, cmd.Process.Kill())
	_ = cmd.Wait()

	if out, err := h.Command(t.Context(), "no-such-program").CombinedOutput(); err == nil || !strings.Contains(string(out), "no-such-program") {
		t.Errorf("a program that there is not: %v: %s", err, out)
	}
}

// TestCommandAtATerminal: a program reads from it, and Ctrl-C there is for the program.
func TestCommandAtATerminal(t *testing.T) {
	h := ForTest(t, Options{Hosts: 1}).Host(0)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	try(t, err)
	defer master.Close()
	try(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	try(t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	try(t, err)
	defer slave.Close()
	cmd := h.Command(t.Context(), "sh", "-c", "trap 'echo caught; exit 4' INT; read line; echo read $line; sleep 1000")
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout = slave, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	try(t, cmd.Start())
	_, err = master.WriteString("something\n")
	try(t, err)
	for !strings.Contains(output(t, h, "ps", "-eo", "args"), "\nsleep 1000") { // then it has read the line
	}
	_, err = master.WriteString("\x03")
	try(t, err)
	_ = cmd.Wait()
	if got := out.String(); cmd.ProcessState.ExitCode() != 4 || got != "read something\ncaught\n" {
		t.Errorf("%v, said %q", cmd.ProcessState, got)
	}
}

func TestProgramIsKilledWithItsCommand(t *testing.T) {
	h := ForTest(t, Options{Hosts: 1}).Host(0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := h.Command(ctx, "sleep", "1000")
	try(t, cmd.Start())
	for running := true; running; {
		running = !strings.Contains(output(t, h, "ps", "-eo", "args"), "sleep 1000")
	}
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("the command ended well")
	}
	for end := time.Now().Add(patience); strings.Contains(output(t, h, "ps", "-eo", "args"), "sleep 1000"); {
		if time.Now().After(end) {
			t.Fatal("the program goes on")
		}
	}
}

func TestHostsReachEachOther(t *testing.T) {
	for name, options := range shapes {
		t.Run(name, func(t *testing.T) {
			c := ForTest(t, options)
			for _, a := range c.Hosts() {
				for _, b := range c.Hosts() {
					if err := reach(a, b); err != nil {
						t.Errorf("%s does not reach %s: %v", a.Name, b.Name, err)
					}
				}
			}
			one, two := socket(t, c.Host(0)), socket(t, c.Host(1))
			send(t, one, netip.AddrPortFrom(c.Host(1).Address, 7000), "hello")
			receives(t, two, "hello")
			tcp(t, c.Host(0), c.Host(2), 8<<20)
			tcp(t, c.Host(2), c.Host(1), 8<<20)
		})
	}
}

// tcp sends so many bytes from one host to another, and is how long that took.
func tcp(t *testing.T, from, to *Host, size int) time.Duration {
	t.Helper()
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(to.Address, 0).String())
		return err
	})
	try(t, err)
	defer listener.Close()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	begin := time.Now()
	sent := make(chan error, 1)
	go func() {
		var conn net.Conn
		err := from.Do(func() (err error) {
			conn, err = net.Dial("tcp4", listener.Addr().String())
			return err
		})
		if err == nil {
			_, err = conn.Write(data)
			err = errors.Join(err, conn.Close())
		}
		sent <- err
	}()
	listener.(*net.TCPListener).SetDeadline(begin.Add(patience))
	conn, err := listener.Accept()
	try(t, err)
	defer conn.Close()
	conn.SetDeadline(begin.Add(3 * patience))
	var got bytes.Buffer
	if _, err := got.ReadFrom(conn); err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Fatalf("%d bytes of %d came from %s to %s, or not the same: %v", got.Len(), size, from.Name, to.Name, err)
	}
	try(t, <-sent)
	return time.Since(begin)
}

func TestCannotLeave(t *testing.T) {
	c, other := ForTest(t, Options{Hosts: 1}), ForTest(t, Options{Hosts: 2})
	addresses, err := net.InterfaceAddrs()
	try(t, err)
	for _, a := range addresses {
		ip, _, err := net.ParseCIDR(a.String())
		if err != nil || ip.IsLoopback() || ip.To4() == nil {
			continue
		}
		own := netip.AddrPortFrom(netip.MustParseAddr(ip.String()), 9)
		if err := answers(c.Host(0), own, patience); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("the machine's %v from a host: %v", ip, err)
		}
	}
	// A host that the first cluster does not have.
	if err := silent(c.Host(0), other.Host(1)); err != nil {
		t.Errorf("from one cluster to another: %v", err)
	}
}

func TestDo(t *testing.T) {
	h := ForTest(t, Options{Hosts: 1}).Host(0)
	failure := errors.New("its own")
	if err := h.Do(func() error { return failure }); err != failure {
		t.Errorf("Do returned %v", err)
	}
	var names []string
	try(t, h.Do(func() error {
		all, err := net.Interfaces()
		for _, i := range all {
			names = append(names, i.Name)
		}
		return err
	}))
	if got := strings.Join(names, " "); got != "lo eth0" {
		t.Errorf("the interfaces are %s", got)
	}
	func() {
		defer func() {
			if recover() != "oh" {
				t.Error("no panic came through")
			}
		}()
		_ = h.Do(func() error { panic("oh") })
	}()
}

func TestKill(t *testing.T) {
	for name, options := range shapes {
		t.Run(name, func(t *testing.T) {
			c := ForTest(t, options)
			a, b := c.Host(0), c.Host(1)
			cmd := b.Command(t.Context(), "sh", "-c", "sleep 1000 & sleep 1000")
			try(t, cmd.Start())
			conn := socket(t, b)
			try(t, reach(a, b))
			try(t, c.Kill(1))
			try(t, c.Kill(1))
			if err := cmd.Wait(); err == nil {
				t.Error("a program ended well on a host that was killed")
			}
			select {
			case <-b.Dead():
			case <-time.After(patience):
				t.Error("it is not dead")
			}
			if err := silent(a, b); err != nil {
				t.Errorf("of a dead host: %v", err)
			}
			conn.SetWriteDeadline(time.Now().Add(patience))
			_, _ = conn.WriteToUDPAddrPort([]byte("late"), netip.AddrPortFrom(a.Address, 7000))
			if b.Do(func() error { return nil }) == nil || b.Command(t.Context(), "true").Run() == nil {
				t.Error("a dead host does things")
			}
			try(t, reach(a, c.Host(2)))
		})
	}
}

func TestRefusesNonsense(t *testing.T) {
	for _, options := range []Options{
		{}, {Hosts: -1}, {Hosts: maxHosts + 1}, {Hosts: 1, MTU: 100}, {Hosts: 1, Link: Link{Rate: -1}},
		{Hosts: 1, Link: Link{Delay: time.Hour}}, {Hosts: 1, Link: Link{Loss: Loss{Sent: 1.1}}},
		{Hosts: 2, Links: map[int]Link{1: {Buffer: -1}}},
	} {
		if c, err := New(t.Context(), options); err == nil {
			c.Close()
			t.Errorf("made a cluster of %+v", options)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := New(ctx, Options{Hosts: 2}); err == nil {
		c.Close()
		t.Error("made a cluster after the end of its context")
	}
}

// state is what a cluster must not change: this process's interfaces, and what there is in the temporary folder and in
// the namespaces' folder.
func state(t *testing.T) (all []string) {
	t.Helper()
	links, err := netlink.LinkList()
	try(t, err)
	for _, link := range links {
		all = append(all, link.Attrs().Name)
	}
	for _, pattern := range []string{os.TempDir() + "/testcluster-*", "/run/netns/*"} {
		found, err := filepath.Glob(pattern)
		try(t, err)
		all = append(all, found...)
	}
	return all
}

// holders are the processes that are in one of the namespaces, or have one open.
func holders(identities []string) (all []string) {
	for _, pattern := range []string{"/proc/[0-9]*/task/[0-9]*/ns/*", "/proc/[0-9]*/fd/*"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			if got, err := os.Readlink(path); err == nil && strings.Contains(got, ":[") {
				for _, identity := range identities {
					if identity == got {
						all = append(all, path)
					}
				}
			}
		}
	}
	return all
}

// namespaces are those that a cluster has made.
func namespaces(t *testing.T, c *Cluster) (all []string) {
	t.Helper()
	paths := []string{fmt.Sprintf("/proc/self/fd/%d", c.namespace.Fd())}
	for _, h := range c.Hosts() {
		for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc"} {
			paths = append(paths, fmt.Sprintf("/proc/%d/ns/%s", h.PID(), kind))
		}
	}
	for _, path := range paths {
		identity, err := os.Readlink(path)
		try(t, err)
		all = append(all, identity)
	}
	return all
}

func gone(t *testing.T, identities []string) {
	t.Helper()
	var left []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if left = holders(identities); len(left) == 0 {
			return
		}
	}
	t.Errorf("left are %v", left)
}

func TestCloseLeavesNothing(t *testing.T) {
	before := strings.Join(state(t), " ")
	c, err := New(t.Context(), Options{Hosts: 2, Links: map[int]Link{1: {Delay: time.Millisecond}}})
	try(t, err)
	defer c.Close()
	dir, all := c.Dir(), namespaces(t, c)
	if len(holders(all)) == 0 {
		t.Error("nobody holds the namespaces: the search is no use")
	}
	cmd := c.Host(1).Command(t.Context(), "sleep", "1000")
	try(t, cmd.Start())
	try(t, c.Close())
	try(t, c.Close())
	_ = cmd.Wait()
	gone(t, all)
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
	if after := strings.Join(state(t), " "); before != after {
		t.Errorf("%s became %s", before, after)
	}
}

func TestKillLeavesNothing(t *testing.T) {
	before := strings.Join(state(t), " ")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TESTCLUSTER_VICTIM="+t.TempDir())
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	try(t, err)
	try(t, cmd.Start())
	var all []string
	for lines := bufio.NewScanner(pipe); lines.Scan() && lines.Text() != "all"; {
		all = append(all, lines.Text())
	}
	if len(all) != 11 || len(holders(all)) == 0 {
		t.Errorf("the victim's namespaces are %v, and their holders %v", all, holders(all))
	}
	try(t, cmd.Process.Kill())
	_ = cmd.Wait()
	gone(t, all)
	if after := strings.Join(state(t), " "); before != after {
		t.Errorf("%s became %s", before, after)
	}
}

// victim makes a cluster with all there is to it, says what its namespaces are, and waits for its end.
func victim(dir string) {
	ctx := context.Background()
	c, err := New(ctx, Options{Hosts: 2, Dir: dir, Links: map[int]Link{1: {Delay: time.Millisecond}}})
	if err == nil {
		err = c.Host(0).Command(ctx, "sleep", "1000").Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	paths := []string{fmt.Sprintf("/proc/self/fd/%d", c.namespace.Fd())}
	for _, h := range c.Hosts() {
		for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc"} {
			paths = append(paths, fmt.Sprintf("/proc/%d/ns/%s", h.PID(), kind))
		}
	}
	for _, path := range paths {
		identity, _ := os.Readlink(path)
		fmt.Println(identity)
	}
	fmt.Println("all")
	select {}
}
