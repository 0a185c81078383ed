package ssh

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// reason is why something ended: the first that is set.
type reason struct {
	mu  sync.Mutex
	err error
}

func (r *reason) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

func (r *reason) get() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// watchOver asks the far side, every now and then, whether it is there, and
// closes the connection when several questions in turn had no answer. It
// returns when the connection has ended.
func (c *connection) watchOver() {
	ended := c.gone
	go func() {
		defer close(ended)
		err := c.Client.Wait()
		if err == nil || errors.Is(err, io.EOF) {
			err = errors.New("the far side closed it; has sshd been ended, or the host been shut down?")
		}
		c.lost.set(err)
	}()
	if c.s.aliveInterval <= 0 || c.s.aliveCount <= 0 {
		<-ended
		return
	}
	tick := time.NewTicker(c.s.aliveInterval)
	defer tick.Stop()
	answer := make(chan struct{}, 1)
	asked, missed := false, 0
	for {
		select {
		case <-ended:
			return
		case <-answer:
			asked, missed = false, 0
		case <-tick.C:
			if !asked {
				asked = true
				go func() {
					// A refusal is an answer, too.
					if _, _, err := c.SendRequest("keepalive@openssh.com", true, nil); err == nil {
						answer <- struct{}{}
					}
				}()
				continue
			}
			if missed++; missed >= c.s.aliveCount {
				c.lost.set(fmt.Errorf("no answer for %v: is the host down, or the network?", time.Duration(missed)*c.s.aliveInterval))
				c.Client.Close()
				<-ended
				return
			}
		}
	}
}
