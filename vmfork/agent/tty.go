package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// TTY asks for a pseudo-terminal, the process's controlling one. The process
// then has one stream, number 0, for both directions.
type TTY struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
	Term string `json:"term,omitempty"` // its TERM, "" for none
}

// Size is a terminal's.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// openTTY makes a pseudo-terminal that belongs to a user. The master does not
// block a thread.
func openTTY(size Size, uid uint32) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a terminal: /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	if err == nil {
		// The other end without its path, which need not be visible here.
		peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			err = errno
		} else {
			slave = os.NewFile(peer, "terminal")
			err = errors.Join(unix.Fchown(int(peer), int(uid), -1), setSize(master, size))
		}
	}
	if err != nil {
		master.Close()
		if slave != nil {
			slave.Close()
		}
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	return master, slave, nil
}

// onTTY runs f with the descriptor of a terminal that may be closed meanwhile.
func onTTY(master *os.File, f func(fd int) error) error {
	conn, err := master.SyscallConn()
	if err != nil {
		return err
	}
	failed := conn.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(failed, err)
}

// setSize tells who lives at the terminal of its size.
func setSize(master *os.File, size Size) error {
	return onTTY(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

// feedTTY types a stream into a terminal. The stream's end is typed too, for a
// process that reads lines; the terminal stays.
func (e *end) feedTTY(master *os.File) {
	buf := make([]byte, 4096)
	partial := false
	for {
		n, err := e.Read(buf)
		if n > 0 {
			if _, err := master.Write(buf[:n]); err != nil {
				return
			}
			partial = buf[n-1] != '\n' && buf[n-1] != '\r'
		}
		if errors.Is(err, io.EOF) {
			typeEnd(master, partial)
		}
		if err != nil {
			return
		}
	}
}

// typeEnd types the character that ends a terminal's input, if it is in a mode
// that has one. In the middle of a line it ends only that, and the next one the
// input.
func typeEnd(master *os.File, partial bool) {
	var end []byte
	onTTY(master, func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && t.Lflag&unix.ICANON != 0 && t.Cc[unix.VEOF] != 0 {
			end = append(end, t.Cc[unix.VEOF])
		}
		return err
	})
	if partial {
		end = append(end, end...)
	}
	master.Write(end)
}

// withTerm is an environment with another TERM.
func (t TTY) withTerm(env []string) []string {
	if t.Term == "" {
		return env
	}
	return append(env[:len(env):len(env)], "TERM="+t.Term)
}
