package mpichshim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Command is what mpiexec was asked for.
type Command struct {
	// Show, if not empty, is to be printed, and nothing to be run.
	Show string

	Apps  []App
	Hosts []Host // in the order given; none: this machine, or what a resource manager says
	PPN   int    // ranks on each host instead of its slots; 0: not given
	Order Order  // of the hosts

	// SkipLocal takes this machine out of the hosts.
	SkipLocal bool
	// LocalName is this machine's name as other hosts know it; "" to find out.
	LocalName string

	GlobalEnv []string // NAME=VALUE, for all programs
	Inherit   Inherit  // what programs find of mpiexec's environment, if they say nothing themselves

	OutputFrom       int // the one rank whose output is shown; -1: all
	Prefix           Pattern
	Outfile, Errfile Pattern
	PrintExitCodes   bool
	AutoCleanup      bool // a rank that dies ends the job

	Universe  int           // MPI_UNIVERSE_SIZE: a number, or one of the two below
	Timeout   time.Duration // of the whole job; 0: none
	PMIPort   bool          // ranks find PMI by address, not by descriptor
	Propagate bool          // tell ranks the host name that the user gave
	Interface string        // network interface for the ranks' traffic
	GPUs      int           // for each rank; -1: leave them as they are

	Launcher, Manager string // -launcher and -rmk, or their variables; "" to find out
	Binding           string // -bind-to; "" or "none": nowhere
	Mapping           string // -map-by

	Verbose, Profile bool
	NoClone          bool // run ranks on the hosts themselves

	// Singleton, if set, is a process that was started without mpiexec, and has
	// started this one to be its mpiexec.
	Singleton *Singleton

	given []string // the names of the options that were given, as in the table
}

// Universe sizes that are no numbers.
const (
	UniverseInfinite = -2 // not known
	UniverseSystem   = -1 // all slots
)

// App is a program, which ":" parts from others.
type App struct {
	Argv    []string
	Ranks   int      // 0 or less: one for each slot
	Dir     string   // absolute
	Env     []string // NAME=VALUE, for this program
	Inherit Inherit
}

// Host is a host as the user named it.
type Host struct {
	Name    string
	Slots   int
	User    string // whom to log in as; "": what ssh's configuration says
	Binding string // where its ranks are bound to
}

// Order is how hosts are sorted, by their slots.
type Order int

const (
	OrderGiven Order = iota
	OrderAscending
	OrderDescending
)

// Singleton says where a process listens that wants to talk PMI.
type Singleton struct {
	Port, Interface, Key string
	PID                  int
}

// Nodes are the hosts that ranks may run on: hosts named, or those of a resource
// manager, or local, this machine's name. isLocal says whether a name is this
// machine's.
func (c *Command) Nodes(managed []Host, local string, isLocal func(string) bool) ([]Host, error) {
	nodes := slices.Clone(c.Hosts)
	if len(nodes) == 0 {
		nodes = slices.Clone(managed)
	}
	if len(nodes) == 0 {
		nodes = []Host{{Name: local, Slots: 1}}
	}
	if c.SkipLocal {
		nodes = slices.DeleteFunc(nodes, func(h Host) bool { return isLocal(h.Name) })
		if len(nodes) == 0 {
			return nil, errors.New("-skip-launch-node leaves no hosts: name others with -hosts or -f")
		}
	}
	for i := range nodes {
		if c.PPN > 0 {
			nodes[i].Slots = c.PPN
		}
	}
	switch c.Order {
	case OrderAscending:
		slices.SortStableFunc(nodes, func(a, b Host) int { return cmp.Compare(a.Slots, b.Slots) })
	case OrderDescending:
		slices.SortStableFunc(nodes, func(a, b Host) int { return cmp.Compare(b.Slots, a.Slots) })
	}
	return nodes, nil
}

// Ranks gives each program that has no number of ranks one for each slot, and
// returns how many there are together.
func (c *Command) Ranks(nodes []Host) (int, error) {
	slots, np := 0, 0
	for _, n := range nodes {
		slots += n.Slots
	}
	for i := range c.Apps {
		if c.Apps[i].Ranks <= 0 {
			c.Apps[i].Ranks = slots
		}
		if np += c.Apps[i].Ranks; np > MaxRanks {
			return 0, fmt.Errorf("more than %d ranks", MaxRanks)
		}
	}
	return np, nil
}

// MaxRanks is more than anybody starts: what is larger is a mistake.
const MaxRanks = 1 << 20

// Layout says which ranks run on which node: nodes take ranks in turn, each as
// many as it has slots, until there are no more ranks. Nodes that come to none have
// an empty list.
func Layout(nodes []Host, np int) [][]int {
	ranks := make([][]int, len(nodes))
	for rank := 0; rank < np; {
		before := rank
		for i, n := range nodes {
			for range n.Slots {
				if rank < np {
					ranks[i] = append(ranks[i], rank)
					rank++
				}
			}
		}
		if rank == before {
			return ranks // no slots anywhere
		}
	}
	return ranks
}

// UniverseSize is what ranks are told of it, on nodes: negative if it is not known.
func (c *Command) UniverseSize(nodes []Host) int {
	switch c.Universe {
	case UniverseInfinite:
		return -1
	case UniverseSystem:
		slots := 0
		for _, n := range nodes {
			slots += n.Slots
		}
		return slots
	}
	return c.Universe
}
