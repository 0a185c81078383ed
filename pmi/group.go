package pmi

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// The limits announced in answer to get_maxes, in bytes. A rank that oversteps one is at fault and loses its connection.
//
// MPICH's PMI-1 client formats a put into a buffer of 1024 bytes; one that does not fit it sends without its newline, and
// then waits for an answer for ever. MPICH 4.0 keeps its own values short enough for that. MaxValue keeps everybody's: the
// longest possible put, with the longest KVS name and key, still fits. MPICH splits what is longer, for instance the UCX
// address of a machine with many network devices, over several keys.
const (
	// MaxKVSName is the longest Group.KVSName.
	MaxKVSName = 64
	// MaxKey is the longest key: get_maxes' keylen_max.
	MaxKey = 64
	// MaxValue is the longest value: get_maxes' vallen_max.
	MaxValue = clientLine - len("cmd=put kvsname= key= value=\n") - MaxKVSName - MaxKey
	// MaxSize is the largest process group, in ranks.
	MaxSize = 1 << 20

	// clientLine is the longest line, newline included, that MPICH's client can write or read.
	clientLine = 1023
	// announcedKVSName is get_maxes' kvsname_max; older clients take nothing below 256.
	announcedKVSName = 256
	// rankQuota bounds what one rank may hold in the KVS, in bytes as counted by quota. MPICH needs a few KB.
	rankQuota = 256 << 10
)

// Group describes a process group: what every rank of a job is told, wherever it runs. The launcher makes it and sends
// the same one to each clone's agent.
type Group struct {
	Size         int    // ranks in the group, PMI_SIZE
	KVSName      string // name of the group's key-value space, at most MaxKVSName bytes, no spaces
	AppNum       int    // MPI_APPNUM
	UniverseSize int    // MPI_UNIVERSE_SIZE; 0 or less says that it is not known
	Mapping      string // which rank lives on which clone, see Mapping; empty lets MPICH take each rank for a node of its own
}

// Validate says what is wrong with g, if anything is.
func (g Group) Validate() error {
	switch {
	case g.Size < 1 || g.Size > MaxSize:
		return fmt.Errorf("process group of %d ranks: must be 1 to %d", g.Size, MaxSize)
	case g.KVSName == "" || len(g.KVSName) > MaxKVSName || !isToken(g.KVSName):
		return fmt.Errorf("KVS name %q: must be 1 to %d printable characters without spaces", clip(g.KVSName), MaxKVSName)
	case len(g.Mapping) > MaxValue:
		return fmt.Errorf("%s of %d bytes: MPICH reads at most %d; give clones equal numbers of ranks, or leave the mapping out",
			mappingKey, len(g.Mapping), MaxValue)
	case g.Mapping != "" && !isToken(g.Mapping):
		return fmt.Errorf("%s %q: must be printable characters without spaces", mappingKey, clip(g.Mapping))
	}
	return nil
}

// mappingKey is the key under which MPICH looks for Group.Mapping.
const mappingKey = "PMI_process_mapping"

// Mapping writes PMI_process_mapping for ranks that are laid out in consecutive blocks: ranksPerNode[i] ranks on clone i.
// Runs of equal clones are one block (first clone, clones, ranks on each): [2,2,1] is "(vector,(0,2,2),(2,1,1))".
// Clones without ranks are left out, since MPICH numbers nodes by what it finds here.
func Mapping(ranksPerNode []int) string {
	var b strings.Builder
	b.WriteString("(vector")
	first, nodes, each := 0, 0, 0
	flush := func() {
		if nodes > 0 {
			fmt.Fprintf(&b, ",(%d,%d,%d)", first, nodes, each)
		}
		first += nodes
		nodes = 0
	}
	for _, n := range ranksPerNode {
		if n <= 0 {
			continue
		}
		if n != each {
			flush()
			each = n
		}
		nodes++
	}
	flush()
	b.WriteString(")")
	return b.String()
}

// Environ is what a rank must find in its environment to talk to ServeRank: it is rank `rank` of `size`, the localID-th
// (from 0) of localSize on its clone, and descriptor fd is the other end of the connection given to ServeRank.
// MPIR_CVAR_CH3_INTERFACE_HOSTNAME, which names the clone's address for MPICH's ch3 builds, is the caller's to add.
func Environ(rank, size, localID, localSize, fd int) []string {
	return []string{
		fmt.Sprintf("PMI_FD=%d", fd),
		fmt.Sprintf("PMI_RANK=%d", rank),
		fmt.Sprintf("PMI_SIZE=%d", size),
		fmt.Sprintf("MPI_LOCALRANKID=%d", localID),
		fmt.Sprintf("MPI_LOCALNRANKS=%d", localSize),
	}
}

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

// formatRanks writes ranks for a person: "0-3,6".
func formatRanks(ranks []int) string {
	var b strings.Builder
	for i := 0; i < len(ranks); {
		last := i
		for last+1 < len(ranks) && ranks[last+1] == ranks[last]+1 {
			last++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, ranks[i])
		if last > i {
			fmt.Fprintf(&b, "-%d", ranks[last])
		}
		i = last + 1
	}
	return b.String()
}

// isToken reports whether s can stand as a value inside a PMI line: printable ASCII without spaces.
func isToken(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// printable makes a guest's text safe for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// clip shortens s for an error message: what a rank sends must not fill a log.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
