package agent

import (
	"sync"

	"golang.org/x/sys/unix"
)

// reaper waits for every child, the agent's own and the orphans that init
// inherits. Nobody else may wait.
type reaper struct {
	wake chan struct{} // there may be a child again

	mu       sync.Mutex // guards all below
	waiting  map[int]chan<- unix.WaitStatus
	starting int                     // calls of start under way
	early    map[int]unix.WaitStatus // ended meanwhile: orphans, and what is being started
}

func newReaper() *reaper {
	r := &reaper{
		wake:    make(chan struct{}, 1),
		waiting: map[int]chan<- unix.WaitStatus{}, early: map[int]unix.WaitStatus{},
	}
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
			r.ended(pid, ws)
		}
	}
}

func (r *reaper) ended(pid int, ws unix.WaitStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ch := r.waiting[pid]; ch != nil {
		ch <- ws
		delete(r.waiting, pid)
	} else if r.starting > 0 {
		r.early[pid] = ws
	}
}

// start calls begin, which starts a process and returns its pid, and returns
// where its end will be told. No lock is held meanwhile: a program may lie in a
// folder of the host's that is slow.
func (r *reaper) start(begin func() (int, error)) (<-chan unix.WaitStatus, error) {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	pid, err := begin()
	ch := make(chan unix.WaitStatus, 1)
	r.mu.Lock()
	if ws, ok := r.early[pid]; ok && err == nil {
		ch <- ws
	} else if err == nil {
		r.waiting[pid] = ch
	}
	// What others are starting may be among the early ones.
	if r.starting--; r.starting == 0 {
		clear(r.early)
	}
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return ch, nil
}
