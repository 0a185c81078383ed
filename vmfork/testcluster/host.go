package testcluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Host is one of a cluster's.
type Host struct {
	Number  int
	Name    string     // host0, host1, ...
	Address netip.Addr // of eth0

	// Home is the home folder of root on this host, which the test can read and write, too. It is on the machine's disk.
	Home string

	cluster   *Cluster
	dir       string          // files of this host alone
	namespace *os.File        // keeps the network namespace
	handle    *netlink.Handle // a netlink socket in it
	eth0      netlink.Link
	port      netlink.Link // the other end, at the switch

	identity string   // of the PID namespace
	leash    *os.File // the first process ends when it is closed
	first    *exec.Cmd
	stderr   bytes.Buffer
	died     chan struct{} // closed when the first process has ended
	wire     *wire         // nil for a link without delay
	cable    [2]string     // what it is between

	kill sync.Once
}

// prefix is the network of all hosts.
var prefix = netip.MustParsePrefix("198.18.0.0/15")

// hostAddress is the address of a host's eth0.
func hostAddress(number int) netip.Addr {
	a := prefix.Addr().As4()
	n := number + 1
	a[2], a[3] = byte(n>>8), byte(n)
	return netip.AddrFrom4(a)
}

func hostName(number int) string { return fmt.Sprintf("host%d", number) }

// newHost makes a host that is not plugged in.
func (c *Cluster) newHost(ctx context.Context, number int) (*Host, error) {
	h := &Host{
		Number: number, Name: hostName(number), Address: hostAddress(number),
		cluster: c, dir: filepath.Join(c.dir, hostName(number)), died: make(chan struct{}),
	}
	h.Home = filepath.Join(h.dir, "home")
	if err := h.begin(ctx); err != nil {
		h.end()
		return nil, fmt.Errorf("make %s: %w", h.Name, err)
	}
	return h, nil
}

func (h *Host) begin(ctx context.Context) (err error) {
	if h.namespace, err = newNamespace(); err != nil {
		return err
	}
	if h.handle, err = netlink.NewHandleAt(netns.NsHandle(h.namespace.Fd()), unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	lo, err := h.handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	if err := os.MkdirAll(h.Home, 0o700); err != nil {
		return err
	}
	if err := h.keys(); err != nil {
		return err
	}
	etc, err := h.etc()
	if err != nil {
		return err
	}
	return h.start(ctx, hostConfig{Name: h.Name, Etc: etc})
}

// etc are the files in /etc that the host has instead of the machine's. Users are the machine's, but root, who can log in
// here, has another home, so that nobody's keys and settings are used.
func (h *Host) etc() (map[string]string, error) {
	hosts := "127.0.0.1 localhost\n"
	for n := range h.cluster.options.Hosts {
		hosts += fmt.Sprintf("%v %s\n", hostAddress(n), hostName(n))
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return nil, err
	}
	lines := strings.SplitAfter(string(passwd), "\n")
	for i, line := range lines {
		if fields := strings.Split(line, ":"); fields[0] == "root" && len(fields) == 7 {
			fields[5] = h.Home
			lines[i] = strings.Join(fields, ":")
		}
	}
	return map[string]string{
		"hosts": hosts, "hostname": h.Name + "\n", "passwd": strings.Join(lines, ""),
		"shadow": "root:*:19000:0:99999:7:::\n", // no password, but not locked: keys do
	}, nil
}

// start starts the first process.
func (h *Host) start(ctx context.Context, config hostConfig) error {
	input, leash, err := os.Pipe()
	if err != nil {
		return err
	}
	defer input.Close()
	h.leash = leash
	output, said, err := os.Pipe()
	if err != nil {
		return err
	}
	defer output.Close()
	defer said.Close()

	cmd := &exec.Cmd{
		Path: self, Args: []string{initName}, Env: os.Environ(), Dir: "/",
		Stdin: input, Stdout: said, Stderr: &h.stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true, // a Ctrl-C is for the test
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		},
	}
	// A child is in the network namespace of the thread that makes it.
	if err := inside(h.namespace, cmd.Start); err != nil {
		return fmt.Errorf("start its first process: %w", err)
	}
	h.first = cmd
	go func() {
		_ = cmd.Wait()
		close(h.died)
	}()
	said.Close()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	line, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if _, err := leash.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("configure its first process: %w", err)
	}
	if text, err := bufio.NewReader(output).ReadString('\n'); text != ready {
		leash.Close()
		<-h.died
		return fmt.Errorf("wait for its first process: %w: %s", errors.Join(ctx.Err(), err), &h.stderr)
	}
	h.identity, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", cmd.Process.Pid))
	return err
}

// configure gives eth0, which is there now, its address.
func (h *Host) configure() (err error) {
	if h.eth0, err = h.handle.LinkByName("eth0"); err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: h.Address.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 32)}}
	if err := h.handle.AddrAdd(h.eth0, address); err != nil {
		return fmt.Errorf("give eth0 its address: %w", err)
	}
	if err := h.handle.LinkSetUp(h.eth0); err != nil {
		return fmt.Errorf("bring eth0 up: %w", err)
	}
	return nil
}

// Command prepares a program that runs in the host, as [exec.CommandContext] does. What is started is a helper that has
// the program as its child: it passes signals on, ends as the program does, and the program is killed when it is. The
// program finds the environment of this process, with the host's HOME; and the caller's working directory, open files
// and terminal.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, self)
	cmd.Args = enterArgs(h.first.Process.Pid, h.identity, name, args)
	cmd.Env = h.Environ()
	return cmd
}

// Environ is the environment of this process as it is in the host: HOME is the host's, and nothing says where else the
// user's files are.
func (h *Host) Environ() []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch {
		case name == "HOME", name == "SSH_AUTH_SOCK", strings.HasPrefix(name, "XDG_"):
		default:
			env = append(env, entry)
		}
	}
	return append(env, "HOME="+h.Home)
}

// Do runs f on a thread that is in the host's network: sockets that f makes are the host's, and stay so wherever they are
// used later. Goroutines that f starts are not in it; so addresses are to be literal, for resolving names starts some. The
// rest, files for example, is as everywhere in this process. Do returns f's error.
func (h *Host) Do(f func() error) error {
	if h.dead() {
		return fmt.Errorf("do something in %s: the host is dead", h.Name)
	}
	return inside(h.namespace, f)
}

// PID is the host's first process, which has no other purpose, as this process knows it.
func (h *Host) PID() int { return h.first.Process.Pid }

// Dead is closed when the host is dead.
func (h *Host) Dead() <-chan struct{} { return h.died }

func (h *Host) dead() bool {
	select {
	case <-h.died:
		return true
	default:
		return false
	}
}

// end kills a host that is unplugged, or was never plugged in.
func (h *Host) end() {
	h.kill.Do(func() {
		if h.wire != nil {
			h.wire.Close()
		}
		if h.first != nil {
			_ = h.first.Process.Kill()
			<-h.died
		}
		for _, file := range []io.Closer{h.leash, h.namespace} {
			_ = file.Close()
		}
		if h.handle != nil {
			h.handle.Close()
		}
	})
}
