package ssh

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Asker asks the user something, and returns the answer without a line end. A
// secret is not to be seen while it is typed. It is called for one question at a
// time.
type Asker func(ctx context.Context, question string, secret bool) (string, error)

// maxAnswer bounds what somebody may type, in bytes.
const maxAnswer = 4 << 10

// Terminal asks at the terminal that the process belongs to, or is nil if there
// is none.
func Terminal() Asker {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	tty.Close()
	return func(ctx context.Context, question string, secret bool) (string, error) {
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return "", err
		}
		defer tty.Close()
		return askAt(ctx, tty, question, secret)
	}
}

func askAt(ctx context.Context, tty *os.File, question string, secret bool) (string, error) {
	// A read of a terminal ends by a deadline only as long as nobody has asked
	// for its Fd.
	defer context.AfterFunc(ctx, func() { tty.SetReadDeadline(time.Unix(1, 0)) })()
	if secret {
		restore, err := hush(tty)
		if err != nil {
			return "", err
		}
		defer func() {
			restore()
			fmt.Fprintln(tty)
		}()
	}
	if _, err := fmt.Fprint(tty, question); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(io.LimitReader(tty, maxAnswer)).ReadString('\n')
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	return strings.TrimRight(answer, "\r\n"), nil
}

// hush has a terminal show nothing of what is typed, until restore.
func hush(tty *os.File) (restore func(), err error) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return nil, err
	}
	var was *unix.Termios
	change := func(fd uintptr) {
		if was, err = unix.IoctlGetTermios(int(fd), unix.TCGETS); err != nil {
			return
		}
		silent := *was
		silent.Lflag = silent.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
		silent.Iflag |= unix.ICRNL
		err = unix.IoctlSetTermios(int(fd), unix.TCSETS, &silent)
	}
	if controlled := raw.Control(change); controlled != nil {
		err = controlled
	}
	if err != nil {
		return nil, fmt.Errorf("have the terminal show nothing: %w", err)
	}
	return func() {
		raw.Control(func(fd uintptr) { unix.IoctlSetTermios(int(fd), unix.TCSETS, was) })
	}, nil
}

// inTurn lets one question be asked at a time; others wait for its answer.
func inTurn(ask Asker) Asker {
	if ask == nil {
		return nil
	}
	var mu sync.Mutex
	return func(ctx context.Context, question string, secret bool) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		return ask(ctx, question, secret)
	}
}
