package qmp

import (
	"bufio"
	"fmt"
	"net"
	"testing"
	"time"
)

// What is watched is heard every time, however fast events follow one another.
func TestWatch(t *testing.T) {
	c := pair(t, func(in *bufio.Scanner, out net.Conn) {
		in.Scan()
		for range 3 {
			fmt.Fprintln(out, `{"event": "STOP", "timestamp": {}}`)
			fmt.Fprintln(out, `{"event": "RESUME", "timestamp": {}}`)
		}
		fmt.Fprintln(out, `{"return": {}}`)
		in.Scan()
	})
	heard := make(chan struct{}, 10)
	c.Watch("STOP", func() { heard <- struct{}{} })
	if err := c.Do(t.Context(), "cont", nil, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		select {
		case <-heard:
		case <-time.After(10 * time.Second):
			t.Fatalf("of 3 events %d were heard", i)
		}
	}
}
