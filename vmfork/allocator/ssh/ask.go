package ssh

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// Asker asks the user something, and returns the answer without a line end. A
// secret is not to be seen while it is typed. It is called for one question at a
// time.
type Asker func(ctx context.Context, question string, secret bool) (string, error)

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
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if _, err := fmt.Fprint(tty, question); err != nil {
			return "", err
		}
		if secret {
			answer, err := term.ReadPassword(int(tty.Fd()))
			fmt.Fprintln(tty)
			return string(answer), err
		}
		answer, err := bufio.NewReader(tty).ReadString('\n')
		return strings.TrimRight(answer, "\r\n"), err
	}
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
