package agent

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// breakConnections makes the TCP connections that this clone's processes have
// with other machines fail, as connections do whose other end is gone: they are
// the parent's. Otherwise a read would wait for ever, for the clone has another
// address and nobody sends to it. What goes from process to process in
// the machine stays.
//
// The link is down, so the other ends, which are in good order, hear nothing.
// The processes stand still, so none waits in a call.
func breakConnections() error {
	sockets := map[string]bool{}
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("find connections of the parent: %w", err)
		}
		for _, inode := range foreign(table) {
			sockets["socket:["+inode+"]"] = true
		}
	}
	if len(sockets) == 0 || group == nil {
		return nil
	}
	// No other process than those that are frozen: a relay of shared folders
	// sees to its connection itself.
	pids, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/cgroup.procs", group.dir))
	if err != nil {
		return fmt.Errorf("find connections of the parent: %w", err)
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		fds, err := os.ReadDir("/proc/" + pid + "/fd")
		if err != nil {
			continue // it is a zombie
		}
		for _, fd := range fds {
			if target, err := os.Readlink("/proc/" + pid + "/fd/" + fd.Name()); err == nil && sockets[target] {
				if err := disconnect(pid, fd.Name()); err != nil {
					return fmt.Errorf("break the connection that process %s has as its file %s: %w", pid, fd.Name(), err)
				}
				delete(sockets, target)
			}
		}
	}
	return nil
}

// disconnect makes a process's connected socket one that is not, with
// ECONNRESET for whoever uses it next: connect(2), AF_UNSPEC.
func disconnect(pid, fd string) error {
	p, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	f, err := strconv.Atoi(fd)
	if err != nil {
		return err
	}
	process, err := unix.PidfdOpen(p, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	socket, err := unix.PidfdGetfd(process, f, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	var unspec [16]byte // struct sockaddr; AF_UNSPEC is 0
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(socket), uintptr(unsafe.Pointer(&unspec)), uintptr(len(unspec))); errno != 0 {
		return errno
	}
	return nil
}

// TCP states as /proc/net/tcp has them (include/net/tcp_states.h).
const (
	tcpTimeWait = "06"
	tcpListen   = "0A"
)

// foreign lists the inodes of connections with other machines in a table of
// proc(5)'s /proc/net/tcp or tcp6:
//
//	sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...
func foreign(table []byte) (inodes []string) {
	for line := range bytes.Lines(table) {
		f := strings.Fields(string(line))
		if len(f) < 10 || f[3] == tcpListen || f[3] == tcpTimeWait || f[9] == "0" {
			continue
		}
		remote, ok := procAddress(f[2])
		if ok && !remote.IsLoopback() && !remote.IsUnspecified() {
			inodes = append(inodes, f[9])
		}
	}
	return inodes
}

// procAddress reads an address and port of these tables: words of 32 bits in
// hex, each in the machine's byte order, which is little-endian.
func procAddress(s string) (a netip.Addr, ok bool) {
	digits, _, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return a, false
	}
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	a, ok = netip.AddrFromSlice(b)
	return a.Unmap(), ok
}
