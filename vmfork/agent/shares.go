package agent

import (
	"context"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
)

// shares are the folders that this VM has mounted. The connections behind them
// are the parent's after a fork; a clone needs its own.
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

// again connects them in a clone, before a process runs: those that survive go
// on, and the others are mounted anew.
func (s *mountings) again() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// First those that survive: others may be mounted inside them.
	for _, m := range s.list {
		if m.Survives {
			if err := reconnectShare(m); err != nil {
				return err
			}
		}
	}
	for _, m := range slices.Backward(s.list) {
		if !m.Survives {
			if err := share.Unmount(m.Target); err != nil {
				return err
			}
		}
	}
	for _, m := range s.list {
		if !m.Survives {
			if err := mountShare(m); err != nil {
				return err
			}
		}
	}
	return nil
}

func reconnectShare(m share.Mounting) error {
	ctx, cancel := context.WithTimeout(context.Background(), mountLimit)
	defer cancel()
	return share.Reconnect(ctx, m.Target)
}

func mountShare(m share.Mounting) error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), mountLimit)
	defer cancel()
	return share.Mount(ctx, m)
}
