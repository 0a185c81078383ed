package pmi

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// Limits of one spawn.
const (
	maxSpawnBytes = 192 << 10 // bytes of the request
	maxSpawnApps  = 1024      // programs
	maxSpawnCodes = 16 << 10  // ranks whose error codes differ from success; a frame has to hold them
)

// SpawnApp is one program that MPI_Comm_spawn or MPI_Comm_spawn_multiple starts.
type SpawnApp struct {
	Argv  []string // the program, as the rank named it, and its arguments
	Ranks int      // how many to start: maxprocs
	Info  []Pair   // the MPI_Info: path, wdir, host, hosts, soft, and whatever else the rank has set
	Env   []string // what the new ranks must find in their environment; PMI has no such thing, PMIx does
}

// Get returns the value of an info key, and whether it is set.
func (a SpawnApp) Get(key string) (string, bool) {
	for _, p := range a.Info {
		if p.Key == key {
			return p.Value, true
		}
	}
	return "", false
}

// Hosts lists the names that the info keys host and hosts give, in order.
func (a SpawnApp) Hosts() []string {
	var hosts []string
	for _, key := range []string{"host", "hosts"} {
		value, _ := a.Get(key)
		for name := range strings.SplitSeq(value, ",") {
			if name = strings.TrimSpace(name); name != "" {
				hosts = append(hosts, name)
			}
		}
	}
	return hosts
}

// Fit says how many ranks to start where there is room for so many: all, or the largest number that the info key soft
// allows. soft is a list of numbers and of ranges first:last and first:last:stride (MPI 4.0, section 11.8.4).
func (a SpawnApp) Fit(room int) (int, error) {
	if room >= a.Ranks {
		return a.Ranks, nil
	}
	soft, given := a.Get("soft")
	if !given {
		return 0, fmt.Errorf("%d ranks to start and room for %d", a.Ranks, max(0, room))
	}
	best := -1
	for entry := range strings.SplitSeq(soft, ",") {
		n, err := largest(strings.TrimSpace(entry), room)
		if err != nil {
			return 0, fmt.Errorf("info key soft %q: %w", hearsay.Clip(soft), err)
		}
		best = max(best, n)
	}
	if best < 0 {
		return 0, fmt.Errorf("%d ranks to start, room for %d, and soft %q allows no fewer", a.Ranks, max(0, room), hearsay.Clip(soft))
	}
	return best, nil
}

// largest is the largest number of an entry of soft that is not above limit, or -1.
func largest(entry string, limit int) (int, error) {
	parts := strings.Split(entry, ":")
	if len(parts) > 3 {
		return 0, errors.New("not first:last:stride")
	}
	numbers := []int{0, 0, 1}
	for i, p := range parts {
		n, err := strconv.ParseInt(p, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%q is not a number", hearsay.Clip(p))
		}
		numbers[i] = int(n)
	}
	first, last, stride := numbers[0], numbers[1], numbers[2]
	if len(parts) == 1 {
		last = first
	}
	switch {
	case stride == 0:
		return 0, errors.New("a stride of 0")
	case stride < 0: // the same numbers from the other end
		first, last, stride = first-(first-last)/-stride*-stride, first, -stride
	}
	last = min(last, limit)
	if last < first {
		return -1, nil
	}
	return max(-1, last-(last-first)%stride), nil
}

// SpawnRequest is a rank's wish for a new group. The rank waits for Answer, and everything else goes on.
type SpawnRequest struct {
	Rank   int        // who asks, in the group of the server that reports it
	Apps   []SpawnApp // at least one
	Preput []Pair     // what the new group's KVS begins with

	spawner string
	once    sync.Once
	answer  func(kvsName string, errcodes []int, err error)
}

// NewSpawnRequest makes the wish of a rank that did not reach this process through a Server. answer is called once, by Answer.
func NewSpawnRequest(rank int, apps []SpawnApp, answer func(kvsName string, errcodes []int, err error)) (*SpawnRequest, error) {
	if err := checkSpawn(apps, nil); err != nil {
		return nil, err
	}
	return &SpawnRequest{Rank: rank, Apps: apps, answer: answer}, nil
}

// Ranks is how many ranks are to be started.
func (r *SpawnRequest) Ranks() int {
	n := 0
	for _, a := range r.Apps {
		n += a.Ranks
	}
	return n
}

// Group makes the group of the new ranks, which numbers them through the programs. ranks says how many of each program are
// started (see SpawnApp.Fit); nil is as many as were asked for. The caller adds UniverseSize and Mapping, makes a Server
// with the same Names as the spawner's, and serves it before it answers. kvsName must be new in the job.
func (r *SpawnRequest) Group(kvsName string, ranks []int) Group {
	g := Group{KVSName: kvsName, Preput: r.Preput, Spawner: r.spawner}
	for i, a := range r.Apps {
		n := a.Ranks
		if ranks != nil {
			n = ranks[i]
		}
		g.Apps = append(g.Apps, n)
		g.Size += n
	}
	return g
}

// Answer lets the rank go on; the first call counts. Without err the group kvsName has been started: its programs run, or
// at least nothing is known that keeps them from it. errcodes has a code for each rank that was asked for, in order: 0, or
// an MPI error code for one that could not be started (42 is MPICH's MPI_ERR_SPAWN); nil is all 0. With err nothing was
// started, and MPI_Comm_spawn fails in the rank.
func (r *SpawnRequest) Answer(kvsName string, errcodes []int, err error) {
	r.once.Do(func() {
		switch {
		case err != nil:
		case !isKVSName(kvsName):
			err = fmt.Errorf("the spawned group's KVS name is %q", hearsay.Clip(kvsName))
		case len(errcodes) != 0 && len(errcodes) != r.Ranks():
			err = fmt.Errorf("%d error codes for %d ranks", len(errcodes), r.Ranks())
		}
		r.answer(kvsName, errcodes, err)
	})
}

// checkSpawn checks what a rank wants to be started.
func checkSpawn(apps []SpawnApp, preput []Pair) error {
	if len(apps) == 0 || len(apps) > maxSpawnApps {
		return fmt.Errorf("spawn of %d programs: must be 1 to %d", len(apps), maxSpawnApps)
	}
	ranks := 0
	for i, a := range apps {
		if len(a.Argv) == 0 || a.Argv[0] == "" {
			return fmt.Errorf("spawn without a name for program %d", i)
		}
		if a.Ranks < 0 || a.Ranks > MaxSize {
			return fmt.Errorf("spawn of %d ranks of program %d", a.Ranks, i)
		}
		for _, arg := range a.Argv {
			if strings.IndexByte(arg, 0) >= 0 {
				return fmt.Errorf("spawn with a zero byte in an argument of program %d", i)
			}
		}
		ranks += a.Ranks
	}
	if ranks < 1 || ranks > MaxSize {
		return fmt.Errorf("spawn of %d ranks: must be 1 to %d", ranks, MaxSize)
	}
	return checkPreput(preput)
}
