package ssh

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// proxyConn is a stream to a ProxyCommand.
type proxyConn struct {
	net.Conn // our end of a socket pair
	cmd      *exec.Cmd
	tail     *allocator.Tail
	close    func() error
}

// startProxy runs a command by the user's shell, as the user, with a stream as
// its standard input and output.
func startProxy(command string, a account) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "proxy"), os.NewFile(uintptr(fds[1]), "proxy")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	p := &proxyConn{Conn: conn, cmd: exec.Command("/bin/sh", "-c", "exec "+command), tail: allocator.NewTail(nil)}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = theirs, theirs, p.tail
	p.cmd.WaitDelay = time.Second
	p.cmd.Dir = "/"
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Env = os.Environ()
	if os.Geteuid() == 0 && a.uid != 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid), Groups: a.groups}
		p.cmd.Env = append(p.cmd.Env, "HOME="+a.home, "USER="+a.name, "LOGNAME="+a.name, "SSH_AUTH_SOCK="+a.agent)
	}
	if err := p.cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	p.close = sync.OnceValue(func() error {
		err := conn.Close()
		unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
		p.cmd.Wait()
		return err
	})
	return p, nil
}

func (p *proxyConn) Close() error { return p.close() }

// Read says what the command said, where it has ended.
func (p *proxyConn) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if err != nil {
		if said := p.tail.String(); said != "" {
			err = fmt.Errorf("%w (ProxyCommand: %s)", err, strings.ReplaceAll(said, "\n", "; "))
		}
	}
	return n, err
}
