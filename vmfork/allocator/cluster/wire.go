package cluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// purpose names the service's links, so that no other daemon's come together
// with them.
const purpose = "mpirun-sf-cluster"

// The streams of a link, both opened by the caller.
const (
	kindControl = 1
	kindStdio   = 2
)

// maxLine bounds a message, in bytes.
const maxLine = 64 << 10

// request is the caller's first message on the control stream.
type request struct {
	Args []string `json:"args"`
}

// order is each that follows.
type order struct {
	Close bool `json:"close"` // end the daemon: its input ends, and it is killed later
}

// event is a message of the service's on the control stream. The first has
// Started or Refused.
type event struct {
	Started int    `json:"started,omitempty"` // its process id
	Refused string `json:"refused,omitempty"`
	Stderr  string `json:"stderr,omitempty"` // a line
	Ended   *ended `json:"ended,omitempty"`  // the last
}

// ended says how the daemon did.
type ended struct {
	Status int    `json:"status"`
	Signal string `json:"signal,omitempty"` // as "KILL"
	Lost   string `json:"lost,omitempty"`   // why it is not known
}

func send(w io.Writer, m any) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(text) >= maxLine {
		return fmt.Errorf("a message of %d bytes is too long", len(text))
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// lines reads messages.
type lines struct{ in *bufio.Reader }

func newLines(r io.Reader) lines { return lines{bufio.NewReaderSize(r, maxLine)} }

func (l lines) receive(m any) error {
	text, err := l.in.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			err = fmt.Errorf("a message is longer than %d bytes", maxLine)
		}
		return err
	}
	if err := json.Unmarshal(text, m); err != nil {
		return fmt.Errorf("understand a message: %w", err)
	}
	return nil
}
