package launch

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// Connect begins a session with every clone of a ticket, mounts the shared
// folders there, in order, and puts programs in their places. Which ranks run where follows from the ticket.
func Connect(ctx context.Context, attach func(member int) *agent.Session, t ticket.Ticket, np int, mounts []share.Mounting, programs ...agent.Place) ([]Place, error) {
	places, ranks := make([]Place, len(t.Clones)), t.Ranks(np)
	group, ctx := errgroup.WithContext(ctx)
	for i, c := range t.Clones {
		group.Go(func() error {
			s := attach(c.Member)
			for _, m := range mounts {
				if err := s.Mount(ctx, m); err != nil {
					return fmt.Errorf("%s: %w", c.Name, err)
				}
			}
			for _, p := range programs {
				if err := s.Place(ctx, p); err != nil {
					return fmt.Errorf("%s: %w", c.Name, err)
				}
			}
			places[i] = Place{Name: c.Name, IP: c.IP.String(), Session: s, Ranks: ranks[i]}
			return nil
		})
	}
	return places, group.Wait()
}
