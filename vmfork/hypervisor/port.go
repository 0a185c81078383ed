package hypervisor

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// NewPort makes a connection for a serial port: the host's end, and the port
// for [Config.Ports]. There is nothing to connect to, so there is nobody to
// authenticate. Both ends are the caller's to close.
func NewPort(name string) (*net.UnixConn, Port, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, Port{}, fmt.Errorf("make port %s: %w", name, err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, Port{}, fmt.Errorf("make port %s: %w", name, err)
	}
	return conn.(*net.UnixConn), Port{name, theirs}, nil
}
