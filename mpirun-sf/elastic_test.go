package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// grants is a fork API that grants at most so many clones, and makes none.
type grants struct {
	launch.API
	most   int
	create error

	mu     sync.Mutex // guards all below
	issued int
	killed []string
	held   sync.WaitGroup
}

func (g *grants) RequestTicket(_ context.Context, clones, vcpus int) (ticket.Ticket, error) {
	if g.most == 0 {
		return ticket.Ticket{}, fmt.Errorf("request a ticket: %w", vmfork.ErrResources)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.issued++
	t := ticket.Ticket{ID: fmt.Sprintf("t%d", g.issued)}
	for i := range min(clones, g.most) {
		t.Clones = append(t.Clones, ticket.Clone{ID: i + 1, VCPUs: vcpus})
	}
	g.held.Add(1)
	return t, nil
}

func (g *grants) HoldTicket(ctx context.Context, _ string) error {
	defer g.held.Done()
	<-ctx.Done()
	return ctx.Err()
}

func (g *grants) HoldCheckpoint(ctx context.Context, _ string) error { return nil }

func (g *grants) Kill(_ context.Context, id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.killed = append(g.killed, id)
	return nil
}

func (g *grants) Checkpoint(context.Context) (string, int, error) { return "c1", 0, nil }
func (g *grants) Discard(context.Context, string) error           { return nil }

func (g *grants) CreateClones(context.Context, string, string) error { return g.create }

func elasticJob(t *testing.T, g *grants) *inside {
	t.Helper()
	j := &inside{job: newJob(options{ppn: 2, startLimit: 5 * time.Second}), api: g}
	j.fork = &launch.Fork{API: g, Self: launch.Self{IP: netip.MustParseAddr("127.0.0.1")}, Limit: 5 * time.Second}
	if err := j.fork.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	return j
}

// A spawn that does not find room says so, and leaves no ticket.
func TestSpawnWithoutRoom(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("no clone has come")
	for name, c := range map[string]struct {
		api   *grants
		np    int
		fewer bool
		says  string // "": as many places as are free, which is one
	}{
		"none":                  {&grants{}, 3, false, "resources"},
		"none, fewer will do":   {&grants{}, 3, true, ""},
		"too few":               {&grants{most: 2}, 9, false, "8 ranks more need 4 clones, and 2 can be made"},
		"they cannot be made":   {&grants{most: 8, create: boom}, 9, false, "no clone has come"},
		"enough slots are free": {&grants{}, 1, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			j := elasticJob(t, c.api)
			j.spare.keep([]launch.Place{{Name: "clone-1", Ranks: []int{0}}}, 2)
			places, release, err := j.spawn(t.Context(), []launch.App{{Argv: []string{self}, Ranks: c.np, Fewer: c.fewer}})
			switch {
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
				t.Errorf("it ended with %v", err)
			case c.says == "" && (err != nil || len(places) != 1 || !slices.Equal(places[0].Ranks, []int{0})):
				t.Errorf("the places are %+v (%v)", places, err)
			}
			if err == nil {
				release()
			}
			if got, _ := j.spare.take(5); len(got) != 1 {
				t.Errorf("free are %+v", got)
			}
			c.api.held.Wait()
			if len(c.api.killed) != c.api.issued {
				t.Errorf("%d tickets were issued and %v killed", c.api.issued, c.api.killed)
			}
		})
	}
}

// The end of a job ends what its spawns have made, and who comes later gets nothing.
func TestSpawnAtTheEnd(t *testing.T) {
	api := &grants{most: 8}
	j := elasticJob(t, api)
	for range 3 {
		if _, err := j.request(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.end(t.Context()); err != nil {
		t.Fatal(err)
	}
	api.held.Wait()
	if len(api.killed) != 3 {
		t.Errorf("killed were %v", api.killed)
	}
	if _, _, err := j.spawn(t.Context(), []launch.App{{Argv: []string{"/bin/true"}, Ranks: 1}}); err == nil || !strings.Contains(err.Error(), "at its end") {
		t.Errorf("a spawn at the job's end: %v", err)
	}
	if err := j.close(); err != nil {
		t.Error(err)
	}
}
