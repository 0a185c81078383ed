package agent

import (
	"context"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
)

// shares are the folders that this VM has mounted, so that a clone of it can
// mount them again: the connections behind them do not survive a fork.
var shares mountings

type mountings struct {
	mu   sync.Mutex
	list []share.Mounting // in the order in which they were mounted
}

// mountLimit is how long the host may take to answer a clone's mount.
const mountLimit = 30 * time.Second

func (s *mountings) mount(m share.Mounting) error {
	if err := mountShare(m); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, m)
	return nil
}

// again mounts them anew in a clone.
func (s *mountings) again() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range slices.Backward(s.list) {
		if err := share.Unmount(m.Target); err != nil {
			return err
		}
	}
	for _, m := range s.list {
		if err := mountShare(m); err != nil {
			return err
		}
	}
	return nil
}

func mountShare(m share.Mounting) error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), mountLimit)
	defer cancel()
	return share.Mount(ctx, m)
}
