package pmi

import (
	"errors"
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// The limits announced in answer to get_maxes, in bytes. A rank that oversteps one is at fault and loses its connection.
//
// MPICH's PMI-1 client formats a put into a buffer of 1024 bytes; one that does not fit it sends without its newline, and
// then waits for an answer for ever. MPICH 4.0 keeps its own values short enough for that. MaxValue keeps everybody's: the
// longest possible put, with the longest name and key, still fits. MPICH splits what is longer, for instance the UCX
// address of a machine with many network devices, over several keys.
const (
	// MaxKVSName is the longest Group.KVSName.
	MaxKVSName = 64
	// MaxKey is the longest key: get_maxes' keylen_max.
	MaxKey = 64
	// MaxValue is the longest value: get_maxes' vallen_max.
	MaxValue = clientLine - len("cmd=put kvsname= key= value=\n") - MaxKVSName - maxSpace - MaxKey
	// MaxSize is the largest process group, in ranks.
	MaxSize = 1 << 20

	// maxStored is the longest value that is kept. PMI-2 has no get_maxes: its clients send values of up to this length.
	maxStored = 1024
	// clientLine is the longest line, newline included, that MPICH's client can write or read.
	clientLine = 1023
	// announcedKVSName is get_maxes' kvsname_max; older clients take nothing below 256.
	announcedKVSName = 256
	// rankQuota bounds what one rank may hold in the KVS, in bytes as counted by quota. MPICH needs a few KB.
	rankQuota = 256 << 10
)

// Pair is a key and its value: in the KVS, in the info of a spawn, or in a rank's request.
type Pair struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Group describes a process group: what every rank of it is told, wherever it runs. The launcher makes it and sends the
// same one to each clone's agent. The ranks that MPI_Comm_spawn starts are a group of their own: SpawnRequest.Group.
type Group struct {
	Size         int    // ranks in the group, PMI_SIZE
	KVSName      string // name of the group and of its key-value space, at most MaxKVSName bytes, no spaces; unique in the job
	Apps         []int  // ranks of each program, in the order of ranks: MPI_APPNUM; none is one program
	UniverseSize int    // MPI_UNIVERSE_SIZE; 0 or less says that it is not known
	Mapping      string // which rank lives on which clone, as PMI_process_mapping says it; empty lets MPICH take each rank for a node of its own
	Preput       []Pair // what is in the KVS from the start
	Spawner      string // KVSName of the group that spawned this one; empty for a group that the user started
}

// Validate says what is wrong with g, if anything is.
func (g Group) Validate() error {
	switch {
	case g.Size < 1 || g.Size > MaxSize:
		return fmt.Errorf("process group of %d ranks: must be 1 to %d", g.Size, MaxSize)
	case !isKVSName(g.KVSName):
		return fmt.Errorf("KVS name %q: must be 1 to %d printable characters without spaces", hearsay.Clip(g.KVSName), MaxKVSName)
	case g.Spawner != "" && !isKVSName(g.Spawner):
		return fmt.Errorf("KVS name %q of the spawner: must be at most %d printable characters without spaces", hearsay.Clip(g.Spawner), MaxKVSName)
	case len(g.Mapping) > MaxValue:
		return fmt.Errorf("%s of %d bytes: MPICH reads at most %d; give clones equal numbers of ranks, or leave the mapping out",
			mappingKey, len(g.Mapping), MaxValue)
	case g.Mapping != "" && !hearsay.IsToken(g.Mapping):
		return fmt.Errorf("%s %q: must be printable characters without spaces", mappingKey, hearsay.Clip(g.Mapping))
	}
	ranks := 0
	for i, n := range g.Apps {
		if n < 0 || n > g.Size {
			return fmt.Errorf("program %d has %d ranks in a group of %d", i, n, g.Size)
		}
		ranks += n
	}
	if len(g.Apps) > 0 && ranks != g.Size {
		return fmt.Errorf("the programs have %d ranks together in a group of %d", ranks, g.Size)
	}
	return checkPreput(g.Preput)
}

func isKVSName(s string) bool { return s != "" && len(s) <= MaxKVSName && hearsay.IsToken(s) }

// appNum is the number of the program that a rank runs.
func (g Group) appNum(rank int) int {
	for i, n := range g.Apps {
		if rank -= n; rank < 0 {
			return i
		}
	}
	return 0
}

// initial is what the group's KVS begins with.
func (g Group) initial() []Pair {
	if g.Mapping == "" {
		return g.Preput
	}
	return append([]Pair{{mappingKey, g.Mapping}}, g.Preput...)
}

// mappingKey is the key under which MPICH looks for Group.Mapping: blocks of (first node, nodes, ranks on each), such as
// "(vector,(0,2,2),(2,1,1))" for five ranks on three clones.
const mappingKey = "PMI_process_mapping"

// State is how far a rank has come in PMI's life cycle.
type State uint8

const (
	// NotStarted: the rank has not sent init. A program without MPI ends in this state, rightly.
	NotStarted State = iota
	// Initialized: the rank has sent init and not yet finalize. One that ends in this state has failed, whatever its exit
	// status, and its peers may be waiting for it.
	Initialized
	// Finalized: the rank has sent finalize.
	Finalized
)

func (s State) String() string {
	switch s {
	case NotStarted:
		return "not started"
	case Initialized:
		return "initialized"
	case Finalized:
		return "finalized"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// ErrNotFinalized is ServeRank's error for a rank whose connection closed between init and finalize.
var ErrNotFinalized = errors.New("closed its PMI connection between init and finalize")

// checkRanks checks a list of ranks that one clone serves.
func checkRanks(ranks []int, size int) error {
	if len(ranks) == 0 {
		return errors.New("no ranks to serve")
	}
	seen := make(map[int]bool, len(ranks))
	for _, r := range ranks {
		if r < 0 || r >= size {
			return fmt.Errorf("rank %d in a group of %d", r, size)
		}
		if seen[r] {
			return fmt.Errorf("rank %d twice on one clone", r)
		}
		seen[r] = true
	}
	return nil
}
