package pmix

import (
	"fmt"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// Wildcard as a rank means every rank of a namespace.
const Wildcard = -1

// MaxNamespace is the longest name of a namespace, in bytes: PMIx's own limit.
const MaxNamespace = 255

// MaxSize is the largest job, in ranks.
const MaxSize = 1 << 20

// Proc names a process, as PMIx does.
type Proc struct {
	Namespace string
	Rank      int // or Wildcard
}

// Place is a clone of a job: its host name, and its ranks.
type Place struct {
	Name  string
	Ranks []int
}

// App is a program of a job. Ranks are numbered through, in the order of the programs.
type App struct {
	Program string
	Dir     string
	Ranks   int
}

// Job describes a namespace.
type Job struct {
	Namespace string
	Places    []Place // each with at least one rank
	Apps      []App
	Universe  int  // MPI_UNIVERSE_SIZE, at least 1
	Parent    Proc // of a job that was spawned: who did
}

// size is the number of ranks.
func (j Job) size() int {
	n := 0
	for _, p := range j.Places {
		n += len(p.Ranks)
	}
	return n
}

// Validate says what is wrong with j, if anything is.
func (j Job) Validate() error {
	if j.Namespace == "" || len(j.Namespace) > MaxNamespace || !hearsay.IsToken(j.Namespace) {
		return fmt.Errorf("namespace %q: must be 1 to %d printable characters without spaces", hearsay.Clip(j.Namespace), MaxNamespace)
	}
	size, inApps := j.size(), 0
	if size < 1 || size > MaxSize {
		return fmt.Errorf("namespace %s of %d ranks: must be 1 to %d", j.Namespace, size, MaxSize)
	}
	seen := make([]bool, size)
	for _, p := range j.Places {
		// libpmix makes a pattern of the names.
		if p.Name == "" || !hearsay.IsToken(p.Name) || strings.ContainsAny(p.Name, ",;[]:") {
			return fmt.Errorf("namespace %s: %q is no host name", j.Namespace, hearsay.Clip(p.Name))
		}
		if len(p.Ranks) == 0 {
			return fmt.Errorf("namespace %s: %s has no ranks", j.Namespace, p.Name)
		}
		for _, r := range p.Ranks {
			if r < 0 || r >= size || seen[r] {
				return fmt.Errorf("namespace %s: rank %d of %d on %s is twice or too much", j.Namespace, r, size, p.Name)
			}
			seen[r] = true
		}
	}
	for _, a := range j.Apps {
		if a.Ranks < 1 {
			return fmt.Errorf("namespace %s: no ranks of %s", j.Namespace, a.Program)
		}
		inApps += a.Ranks
	}
	if inApps != size {
		return fmt.Errorf("namespace %s: %d ranks of programs, and places for %d", j.Namespace, inApps, size)
	}
	return nil
}

// foreign is the place in the frame of a job that has no rank on the node that it is sent to.
const foreign = -1

// frame describes the job to the node that is its place at.
func (j Job) frame(at int) []byte {
	e := newFrame(kindJob).string(j.Namespace).number(uint32(int32(at))).number(uint32(max(1, j.Universe)))
	e.proc(j.Parent).number(uint32(len(j.Places)))
	for _, p := range j.Places {
		e.string(p.Name).number(uint32(len(p.Ranks)))
		for _, r := range p.Ranks {
			e.number(uint32(r))
		}
	}
	e.number(uint32(len(j.Apps)))
	for _, a := range j.Apps {
		e.string(a.Program).string(a.Dir).number(uint32(a.Ranks))
	}
	return e.frame()
}
