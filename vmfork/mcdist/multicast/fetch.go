package multicast

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// Fetch is an id that is open at a receiver.
type Fetch struct {
	receiver *Receiver
	origin   *origin
	id       ID
	accept   func(w welcome) (Sink, error)
	socket   socket
	open     *opener // used by the goroutine that receives the group, alone
	joiner   joiner  // likewise
	begun    time.Time
	all      sync.WaitGroup
	done     chan struct{}
	welcome  chan struct{} // closed when the origin has answered
	kick     chan struct{} // holds a token when a report is due

	mu      sync.Mutex
	err     error
	sink    Sink // nil until the welcome
	blocks  int64
	have    blockSet
	arrived int                  // blocks that were not here before
	wanted  map[int64]int        // by how many prefetches a block is waited for
	coming  map[uint32]*assembly // batches of which something has come
	moved   chan struct{}        // closed when there is something new to look at; nil if nobody waits
	idle    int                  // how often the origin has said that nothing is left to be sent
	behind  uint32               // batches below this were sent whole
	joined  time.Time            // when it was last joined again because it was quiet
	heard   time.Time            // when the group was last heard; zero if never
	active  time.Time            // when data last came
	report  report
	delay   delay
}

// join asks for membership until the origin has answered.
func (f *Fetch) join(ctx context.Context) error {
	began := time.Now()
	for attempt := 0; ; attempt++ {
		f.receiver.send(f.origin, func(p []byte) []byte {
			return appendStamped(p, messageJoin, f.id, microseconds(time.Now()))
		})
		f.mu.Lock()
		welcomed, moved := f.sink != nil, f.watch()
		f.mu.Unlock()
		if welcomed {
			return nil
		}
		retry := time.NewTimer(joinAgain(attempt))
		select {
		case <-moved:
		case <-retry.C:
		case <-f.done:
			retry.Stop()
			return f.Err()
		case <-ctx.Done():
			retry.Stop()
			return fmt.Errorf("wait for the origin's welcome: %w", ctx.Err())
		}
		retry.Stop()
		f.mu.Lock()
		welcomed = f.sink != nil
		f.mu.Unlock()
		if welcomed {
			return nil
		}
		if time.Since(began) > joinPatience {
			return ErrSilent
		}
	}
}

// joinAgain is how long to wait for the answer to the nth join, n from 0.
func joinAgain(n int) time.Duration { return min(joinEvery, 4*time.Millisecond<<min(n, 10)) }

// listen makes sure that the group is heard: each join makes the origin send something to it. To be told of a new member
// takes the switch some time: Linux waits for two or three ticks of its clock until it says that it has joined. Whoever
// waits for blocks in the meantime gets them by unicast.
func (f *Fetch) listen() {
	for attempt := 0; ; attempt++ {
		retry := time.NewTimer(joinAgain(attempt))
		f.mu.Lock()
		heard, moved := !f.heard.IsZero(), f.watch()
		f.mu.Unlock()
		if heard {
			retry.Stop()
			return
		}
		select {
		case <-moved:
			retry.Stop()
			continue
		case <-f.done:
			retry.Stop()
			return
		case <-retry.C:
		}
		if time.Since(f.begun) > joinPatience {
			f.origin.mu.Lock()
			f.origin.deaf = time.Now().Add(deafFor)
			f.origin.mu.Unlock()
			f.end(ErrDeaf)
			return
		}
		f.receiver.send(f.origin, func(p []byte) []byte {
			return appendStamped(p, messageJoin, f.id, microseconds(time.Now()))
		})
	}
}

// watch returns a channel that is closed when something has changed. The fetch's lock is held.
func (f *Fetch) watch() <-chan struct{} {
	if f.moved == nil {
		f.moved = make(chan struct{})
	}
	return f.moved
}

// changed wakes those who watch. The fetch's lock is held.
func (f *Fetch) changed() {
	if f.moved != nil {
		close(f.moved)
		f.moved = nil
	}
}

// Bring asks for n blocks from first on because a virtual CPU waits for them, and returns when they have been given to
// the sink. The origin answers before anything else that it has to do.
func (f *Fetch) Bring(ctx context.Context, first, n int64) error {
	if first < 0 || n < 0 || n > maxWant || first > f.blocks-n {
		return fmt.Errorf("bring %d blocks from %d: not inside the image of %d", n, first, f.blocks)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	began := time.Now()
	for attempt := 0; ; {
		f.mu.Lock()
		missing := f.have.missing(first, n)
		arriving := attempt == 0 && f.arriving(missing)
		deaf, seen := f.heard.IsZero(), f.report.seen
		moved := f.watch()
		f.mu.Unlock()
		if len(missing) == 0 {
			if attempt == 1 {
				f.origin.waited(time.Since(began))
			}
			return nil
		}
		select {
		case <-timer.C:
			if err := f.checkSilence(began); err != nil {
				f.end(err)
				return fmt.Errorf("bring %d blocks from %d: %w", n, first, err)
			}
			if arriving && time.Since(began) < minPatience/2 {
				// Somebody else's answer, or bulk, has them: a request would only be ignored.
				timer.Reset(minPatience / 2)
				continue
			}
			if deaf {
				f.want(missing, true, attempt+1, seen) // is answered by unicast
			} else {
				f.want(missing, true, attempt, seen)
			}
			timer.Reset(f.origin.patience(attempt))
			attempt++
		case <-moved:
		case <-f.done:
			return fmt.Errorf("bring %d blocks from %d: %w", n, first, f.Err())
		case <-ctx.Done():
			return fmt.Errorf("bring %d blocks from %d: wait for the origin: %w", n, first, ctx.Err())
		}
	}
}

// arriving reports whether all of some blocks are in batches of which something has just come. The lock is held.
func (f *Fetch) arriving(runs []run) bool {
	for _, r := range runs {
		for b := r.first; b < r.first+r.n; b++ {
			if !f.covered(b) {
				return false
			}
		}
	}
	return len(runs) > 0
}

// covered reports whether a block is in a batch of which something has come. The lock is held.
func (f *Fetch) covered(block int64) bool {
	for _, a := range f.coming {
		for _, r := range a.runs {
			if block >= r.first && block < r.first+r.n {
				return true
			}
		}
	}
	return false
}

func (o *origin) patience(attempt int) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.trip.patience(attempt)
}

// waited takes the time that an answer needed that was asked for once.
func (o *origin) waited(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.trip.measure(d)
}

// checkSilence says that the origin is silent, or its multicast is not heard any more, when that has been so for long
// while somebody waited.
func (f *Fetch) checkSilence(since time.Time) error {
	now := time.Now()
	f.origin.mu.Lock()
	any := f.origin.heard
	f.origin.mu.Unlock()
	f.mu.Lock()
	group, joined := f.heard, f.joined
	f.mu.Unlock()
	if group.After(any) {
		any = group
	}
	latest := func(a, b time.Time) time.Time {
		if a.After(b) {
			return a
		}
		return b
	}
	switch quiet := now.Sub(latest(group, since)); {
	case now.Sub(latest(any, since)) > silence:
		return ErrSilent
	case quiet > silence:
		return ErrDeaf
	case quiet > rejoinAfter && now.Sub(joined) > rejoinAfter:
		// The group hears a beacon twice a second. If it does not, a switch may have forgotten who listens.
		f.mu.Lock()
		f.joined = now
		f.mu.Unlock()
		if err := f.socket.rejoin(); err != nil {
			return fmt.Errorf("%w: %w", ErrDeaf, err)
		}
	}
	return nil
}

// rejoinAfter is how long a group is quiet until it is joined again.
const rejoinAfter = 1200 * time.Millisecond

// want sends requests for blocks; seen is from when it was found that they are not here.
func (f *Fetch) want(runs []run, urgent bool, attempt int, seen uint64) {
	f.receiver.tally.requests.Add(uint64(count(runs)))
	room := f.receiver.room - overhead - wantHeader - maxRun
	for len(runs) > 0 {
		var p []byte
		var end, n int64
		for len(runs) > 0 && len(p) < room && n < maxWant {
			r := &runs[0]
			k := min(r.n, maxWant-n)
			p = appendRun(p, end, run{r.first, k})
			n, end = n+k, r.first+k
			if r.first, r.n = r.first+k, r.n-k; r.n == 0 {
				runs = runs[1:]
			}
		}
		f.receiver.send(f.origin, func(b []byte) []byte {
			return appendWant(b, f.id, want{urgent, byte(min(attempt, 255)), seen, p})
		})
	}
}

// Has says that blocks came in another way, so that they are not asked for.
func (f *Fetch) Has(first, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for b := max(first, 0); b < min(first+n, f.blocks); b++ {
		if f.have.add(b) {
			f.arrived++
		}
	}
	f.changed()
}

// Done is closed when the fetch has ended, by Close or by itself.
func (f *Fetch) Done() <-chan struct{} { return f.done }

// Err says why the fetch has ended; nil if it has not.
func (f *Fetch) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// end ends the fetch for a reason. The first one counts.
func (f *Fetch) end(reason error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = reason
		close(f.done)
	}
}

// forget lets the id be opened again.
func (f *Fetch) forget() {
	f.origin.mu.Lock()
	defer f.origin.mu.Unlock()
	if f.origin.fetches[f.id] == f {
		delete(f.origin.fetches, f.id)
	}
}

// Close leaves the group. The sink is called no more once it has returned.
func (f *Fetch) Close() {
	f.end(ErrClosed)
	f.receiver.send(f.origin, func(p []byte) []byte {
		return append(append(p, byte(messageLeave)), f.id[:]...)
	})
	f.forget()
	if err := f.socket.close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return // the kernel closes it all the same
	}
	f.all.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.coming {
		if !a.whole {
			a.free()
		}
	}
	f.coming = make(map[uint32]*assembly)
}

// welcomed takes the answer to a join. Another join may have been answered before.
func (f *Fetch) welcomed(w welcome) error {
	f.mu.Lock()
	known := f.sink != nil
	f.mu.Unlock()
	if known {
		return nil
	}
	sink, err := f.accept(w)
	if err != nil {
		f.end(err)
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sink, f.blocks = sink, (w.size+slice.BlockSize-1)/slice.BlockSize
	close(f.welcome)
	f.changed()
	return nil
}
