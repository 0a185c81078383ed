package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// quiet is for how long lines are listened to before a fork.
const quiet = time.Second

// after is for how long they are after its reply.
const after = 200 * time.Millisecond

// lines are those of a ticker in a VM, as they come to the host.
type lines struct {
	mu  sync.Mutex
	at  []time.Time
	err error // why no more come
}

// listen starts a ticker.
func (b *bench) listen(ctx context.Context, v *vm) (*lines, error) {
	p, err := v.run(ctx, b.inGuest, tickerMark)
	if err != nil {
		return nil, fmt.Errorf("start the ticker: %w", err)
	}
	l := &lines{}
	go func() {
		for {
			_, err := p.out.ReadSlice('\n')
			l.mu.Lock()
			l.at, l.err = append(l.at, time.Now()), err
			l.mu.Unlock()
			if err != nil {
				return // the VM has ended
			}
		}
	}()
	return l, nil
}

// gap is the longest time without a line that touches the time between two
// instants.
func (l *lines) gap(from, to time.Time) (longest time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for i := 1; i < len(l.at); i++ {
		if l.at[i].Before(from) || l.at[i-1].After(to) {
			continue
		}
		longest = max(longest, l.at[i].Sub(l.at[i-1]))
		n++
	}
	if l.err != nil || n < 2 {
		return 0, fmt.Errorf("the ticker in the VM came to an end, or is too slow: %d lines in %v (%v)", n, to.Sub(from), l.err)
	}
	return longest, nil
}

// gaps measures the longest time without a line, before a fork of a VM that has
// written much, and around it.
func (b *bench) gaps(ctx context.Context, v *vm, c cell) (before, around time.Duration, err error) {
	l, err := b.listen(ctx, v)
	if err != nil {
		return 0, 0, err
	}
	if err := b.dirty(ctx, v, c.dirty); err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	time.Sleep(quiet)
	end := time.Now()
	f, err := v.fork(ctx)
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(time.Until(f.replied.Add(after)))
	if before, err = l.gap(begin, end); err != nil {
		return 0, 0, err
	}
	around, err = l.gap(f.began, f.replied.Add(after))
	return before, around, err
}
