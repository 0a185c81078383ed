package agent

import (
	"sync"

	"golang.org/x/sys/unix"
)

// reaper waits for every child, the agent's own and the orphans that init
// inherits. Nobody else may wait.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan unix.WaitStatus
	early   map[int]unix.WaitStatus // ended before anyone asked
	wake    chan struct{}
}

func newReaper() *reaper {
	r := &reaper{waiting: map[int]chan unix.WaitStatus{}, early: map[int]unix.WaitStatus{}, wake: make(chan struct{}, 1)}
	go r.run()
	return r
}

func (r *reaper) run() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil: // no children: wait until there is one
			<-r.wake
		default:
			r.mu.Lock()
			if ch := r.waiting[pid]; ch != nil {
				ch <- ws
				delete(r.waiting, pid)
			} else {
				r.early[pid] = ws
			}
			r.mu.Unlock()
		}
	}
}

// start calls begin, which starts a process and returns its pid, and returns
// where its end will be told.
func (r *reaper) start(begin func() (int, error)) (<-chan unix.WaitStatus, error) {
	pid, err := begin()
	if err != nil {
		return nil, err
	}
	ch := make(chan unix.WaitStatus, 1)
	r.mu.Lock()
	if ws, ok := r.early[pid]; ok {
		ch <- ws
	} else {
		r.waiting[pid] = ch
	}
	clear(r.early) // orphans: nobody will ask for them
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return ch, nil
}
