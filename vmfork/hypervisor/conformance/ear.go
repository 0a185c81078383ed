package conformance

import (
	"bufio"
	"fmt"
	"net"
	"testing"
	"time"
)

// count is one line of the guest's.
type count struct {
	who   string
	n     int
	whole bool

	obeyed int // letters
}

// ear hears what a guest counts.
type ear struct{ heard chan count }

func listen(channel net.Conn) *ear {
	e := &ear{make(chan count, 1<<16)}
	go func() {
		defer close(e.heard)
		for lines := bufio.NewScanner(channel); lines.Scan(); {
			var c count
			var state string
			if _, err := fmt.Sscanf(lines.Text(), "%s %d %s %d", &c.who, &c.n, &state, &c.obeyed); err == nil {
				c.whole = state == "whole"
				e.heard <- c
			}
		}
	}()
	return e
}

func (e *ear) next(t *testing.T, wait time.Duration) count {
	t.Helper()
	select {
	case c, ok := <-e.heard:
		if !ok {
			t.Fatal("the guest's channel ended")
		}
		return c
	case <-time.After(wait):
		t.Fatalf("waited %v for the guest to be heard", wait)
	}
	return count{}
}

// obeyed waits until the guest has done what letters said, so many in its life.
func (e *ear) obeyed(t *testing.T, letters int, wait time.Duration) count {
	t.Helper()
	for end := time.Now().Add(wait); ; {
		if c := e.next(t, wait); c.obeyed >= letters {
			return c
		}
		if time.Now().After(end) {
			t.Fatalf("waited %v for the guest to do what it was told", wait)
		}
	}
}

// drain returns the last of what has been heard and not been taken, or else c.
func (e *ear) drain(c count) count {
	for time.Sleep(50 * time.Millisecond); ; {
		select {
		case next, ok := <-e.heard:
			if !ok {
				return c
			}
			c = next
		default:
			return c
		}
	}
}
