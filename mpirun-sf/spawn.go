package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
)

// slots are the places of a job that are free: virtual CPUs of its clones that
// run no rank.
type slots struct {
	mu   sync.Mutex
	free []*slot
}

// slot is a clone with room.
type slot struct {
	place launch.Place // without ranks
	room  int
}

// keep notes the room that is left in places of so many slots each.
func (s *slots) keep(places []launch.Place, each int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range places {
		if room := each - len(p.Ranks); room > 0 {
			p.Ranks = nil
			s.free = append(s.free, &slot{p, room})
		}
	}
}

// take takes room for up to n ranks, which are numbered from 0. give gives it back.
func (s *slots) take(n int) (places []launch.Place, give func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := map[*slot]int{}
	rank := 0
	for _, f := range s.free {
		p := f.place
		for ; f.room > 0 && rank < n; rank++ {
			p.Ranks = append(p.Ranks, rank)
			f.room--
			taken[f]++
		}
		if len(p.Ranks) > 0 {
			places = append(places, p)
		}
	}
	return places, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for f, n := range taken {
			f.room += n
		}
	}
}

// fit takes room for np ranks: where slots are free, and for those that are left has more make places, with ranks numbered
// from 0, which may be too few. prepare is asked before for each clone that is there already. release gives back what was
// free, and ends what was made.
func (s *slots) fit(np int, prepare func(launch.Place) error, more func(np int) (places []launch.Place, end func(), err error)) (places []launch.Place, release func(), err error) {
	places, give := s.take(np)
	defer func() {
		if err != nil {
			give()
		}
	}()
	have := 0
	for _, p := range places {
		if err := prepare(p); err != nil {
			return nil, nil, err
		}
		have += len(p.Ranks)
	}
	if have == np {
		return places, give, nil
	}
	fresh, end, err := more(np - have)
	if err != nil {
		return nil, nil, err
	}
	for i := range fresh {
		for r := range fresh[i].Ranks {
			fresh[i].Ranks[r] += have
		}
	}
	return append(places, fresh...), func() { give(); end() }, nil
}

// spawn places ranks that others want to have: where slots are free, and else in
// new clones, which are joined when the ranks have ended (an elastic job).
func (j *host) spawn(ctx context.Context, apps []launch.App) (places []launch.Place, release func(), err error) {
	np, programs, err := findSpawned(apps)
	if err != nil {
		return nil, nil, err
	}
	staged, at, err := j.serve(ctx, programs...)
	if err != nil {
		return nil, nil, err
	}
	return j.spare.fit(np, func(p launch.Place) error { return bring(ctx, p, staged, at) },
		func(np int) ([]launch.Place, func(), error) {
			return j.moreClones(ctx, np, append(slices.Clone(j.mounts), staged...), at)
		})
}

// moreClones makes clones for up to np ranks, numbered from 0. kill ends them.
func (j *host) moreClones(ctx context.Context, np int, mounts []share.Mounting, programs []agent.Place) (places []launch.Place, kill func(), err error) {
	kill = func() {}
	granted, err := j.daemon.RequestTicket(ctx, sfld.RequestArgs{Clones: (np + j.ppn - 1) / j.ppn, VCPUs: j.ppn, Memory: j.memory * int64(j.ppn), Strict: j.strict})
	if err != nil {
		return nil, kill, err
	}
	tk := granted.Ticket
	if len(tk.Clones) == 0 {
		return nil, kill, nil
	}
	begin := time.Now()
	kill = func() { j.daemon.Kill(context.WithoutCancel(ctx), tk) }
	if _, err = j.daemon.Clone(ctx, tk, j.startLimit); err == nil {
		limit, cancel := context.WithTimeout(ctx, j.startLimit)
		defer cancel()
		places, err = launch.Connect(limit, j.daemon.Attach, tk, min(np, len(tk.Clones)*j.ppn), mounts, programs...)
	}
	if err != nil {
		kill()
		return nil, func() {}, err
	}
	tui.Detail("%s for spawned ranks ready in %.2f s", plural(len(tk.Clones), "clone"), time.Since(begin).Seconds())
	return places, kill, nil
}

// bring takes programs to a clone that runs already.
func bring(ctx context.Context, p launch.Place, mounts []share.Mounting, programs []agent.Place) error {
	for _, m := range mounts {
		if err := p.Session.Mount(ctx, m); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	for _, at := range programs {
		if err := p.Session.Place(ctx, at); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

// findSpawned finds the programs of ranks to be spawned, and counts the ranks. The
// programs are in the apps afterwards, too.
func findSpawned(apps []launch.App) (np int, programs []string, err error) {
	for i := range apps {
		np += apps[i].Ranks
		if apps[i].Argv[0], err = findSpawnedProgram(apps[i]); err != nil {
			return 0, nil, err
		}
		programs = append(programs, apps[i].Argv[0])
	}
	slices.Sort(programs)
	return np, slices.Compact(programs), nil
}

// findSpawnedProgram finds a program in the folders that are named, and then as the
// user's own.
func findSpawnedProgram(a launch.App) (string, error) {
	for _, dir := range a.Path {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(a.Dir, dir)
		}
		if path := filepath.Join(dir, a.Argv[0]); executable(path) {
			return path, nil
		}
	}
	if path := filepath.Join(a.Dir, a.Argv[0]); !filepath.IsAbs(a.Argv[0]) && executable(path) {
		return path, nil
	}
	return findProgram(a.Argv[0], a.Dir)
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0
}
