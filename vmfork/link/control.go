package link

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"
)

// The control stream is the first that the dialler opens. Over it both send messages of one size:
//
//	what  1 byte
//	token 16 bytes  ask: a number that the answer repeats, 8 bytes, and zeros;
//	                tell: that number, and the time by the peer's clock, in nanoseconds since 1970
//	                call, cannot: of the call
//	kind  1 byte    call: of the connection that is wanted
const (
	controlAsk    = 1
	controlTell   = 2
	controlCall   = 3 // by the listener: open a connection to me
	controlCannot = 4 // the dialler's answer where it could not
	controlBye    = 5 // Close was called; nothing follows
)

// maxCallBacks bounds the connections that a peer has us open at a time.
const maxCallBacks = 64

// startControl opens or takes the control stream.
func (l *Link) startControl() (err error) {
	if l.dialler != nil {
		l.control, err = l.mux.OpenStream()
	} else {
		l.control, err = l.mux.AcceptStream()
	}
	if err != nil {
		return err
	}
	close(l.ready)
	go l.ask()
	go l.listen()
	return nil
}

func (l *Link) send(what byte, t token, kind byte) error {
	select {
	case <-l.ready:
	case <-l.done:
		return l.err
	}
	if err := l.write(what, t, kind); err != nil {
		return l.reason(err)
	}
	return nil
}

func (l *Link) write(what byte, t token, kind byte) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	_, err := l.control.Write(append(append([]byte{what}, t[:]...), kind))
	return err
}

// ask asks the peer a few times in each silence, so that something comes.
func (l *Link) ask() {
	tick := time.NewTicker(l.silence / 10)
	defer tick.Stop()
	for {
		// One at a time: behind a bulk, more would only wait there together.
		if number, ok := l.clock.ask(time.Now()); ok {
			var t token
			binary.BigEndian.PutUint64(t[:], number)
			if l.send(controlAsk, t, 0) != nil {
				return
			}
		}
		select {
		case <-l.done:
			return
		case <-tick.C:
		}
	}
}

// listen reads the control stream to its end. It waits for nothing that waits for the link's end, which waits for it.
func (l *Link) listen() {
	defer close(l.heardAll)
	calls := make(chan struct{}, maxCallBacks)
	var m [18]byte
	for {
		if _, err := io.ReadFull(l.control, m[:]); err != nil {
			if !l.mux.IsClosed() {
				l.finish(explain(err, l.host, l.silence))
			}
			return
		}
		t, kind := token(m[1:17]), m[17]
		switch what := m[0]; {
		case what == controlAsk:
			binary.BigEndian.PutUint64(t[8:], uint64(time.Now().UnixNano()))
			l.write(controlTell, t, 0) // if it fails there may still be something to read
		case what == controlTell:
			l.clock.told(binary.BigEndian.Uint64(t[:]), time.Now(), time.Unix(0, int64(binary.BigEndian.Uint64(t[8:]))))
		case what == controlCall && l.dialler != nil && kind != 0:
			select {
			case calls <- struct{}{}:
				go func() {
					l.callBack(t, kind)
					<-calls
				}()
			default:
				l.write(controlCannot, t, 0)
			}
		case what == controlCannot && l.dialler == nil:
			l.answer(t, answer{err: fmt.Errorf("it could not connect to this host: see whether a firewall is between")})
		case what == controlBye:
			l.finish(closedThere(l.host))
			return
		default:
			l.finish(explain(fmt.Errorf("it sent %d, which is no message", what), l.host, l.silence))
			return
		}
	}
}

// clock estimates how far the peer's clock is ahead of ours. The peer read its clock at some time between question and answer;
// the middle is wrong by half the round trip at most, so the fastest of the last few tells most.
type clock struct {
	mu      sync.Mutex
	number  uint64
	asked   time.Time // zero when nothing is asked
	samples []sample  // the last ones, oldest first
}

type sample struct{ ahead, trip time.Duration }

// samples that are kept: long enough that one was undisturbed, and short enough that clocks do not drift apart.
const maxSamples = 16

func (c *clock) ask(now time.Time) (number uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.asked.IsZero() {
		return 0, false
	}
	c.number++
	c.asked = now
	return c.number, true
}

func (c *clock) told(number uint64, now, theirs time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number != c.number || c.asked.IsZero() {
		return // no answer to what we asked
	}
	trip := now.Sub(c.asked)
	c.samples = append(c.samples, sample{theirs.Sub(c.asked.Add(trip / 2)), trip})
	c.asked = time.Time{}
	if len(c.samples) > maxSamples {
		c.samples = c.samples[1:]
	}
}

func (c *clock) best() (s sample, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, one := range c.samples {
		if i == 0 || one.trip < s.trip {
			s = one
		}
	}
	return s, len(c.samples) > 0
}

// Clock says how far the peer's clock is ahead of this host's, and the round trip in which that was learned: the error is half of
// it at most. It is not ok before the first answer, a round trip after the link was made.
func (l *Link) Clock() (ahead, trip time.Duration, ok bool) {
	s, ok := l.clock.best()
	return s.ahead, s.trip, ok
}
