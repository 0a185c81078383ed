// Package ticket is what an allocator grants and a fork consumes: the clones
// that may be made, with their ids, addresses and places (paper table I).
//
// A ticket for n clones may describe m ≤ n of them. What is in it is public to
// the job; it holds no secret.
package ticket

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// Clone is one clone that a ticket allows.
type Clone struct {
	ID     int        `json:"id"`     // 1…m; the parent is 0
	Member int        `json:"member"` // its number on the private network, unique among the job's machines
	Name   string     `json:"name"`   // its host name
	IP     netip.Addr `json:"ip"`     // on the private network
	VCPUs  int        `json:"vcpus"`  // and so its slots for ranks
	Host   string     `json:"host"`   // the physical host that carries it
}

// Ticket allows a fork into m clones.
type Ticket struct {
	ID     string  `json:"id"`
	Asked  int     `json:"asked"`  // n
	Clones []Clone `json:"clones"` // m of them, ordered by IP
}

// New is a ticket for n asked clones: one for each of members, ascending, which
// has as many virtual CPUs as vcpus says, and is on the host that hosts says.
// Names and addresses follow from the plan and the members' numbers.
func New(id string, plan network.Plan, n int, members, vcpus []int, hosts []string) Ticket {
	t := Ticket{ID: id, Asked: n}
	for i, member := range members {
		t.Clones = append(t.Clones, Clone{
			ID: i + 1, Member: member, Name: plan.Name(member), IP: plan.IP(member), VCPUs: vcpus[i], Host: hosts[i],
		})
	}
	return t
}

// Members are the clones' numbers on the private network, in the order of
// their addresses.
func (t Ticket) Members() []int {
	var members []int
	for _, c := range t.Clones {
		members = append(members, c.Member)
	}
	return members
}

// Slots is how many ranks the clones have vCPUs for.
func (t Ticket) Slots() int {
	n := 0
	for _, c := range t.Clones {
		n += c.VCPUs
	}
	return n
}

// Ranks derives who runs which ranks from the ticket alone: clones are ordered
// by IP, and each owns as many consecutive ranks as it has slots. More ranks
// than slots are spread as evenly, still in consecutive blocks. The result has
// one entry for each clone of [Ticket.Clones]; a clone may get none.
func (t Ticket) Ranks(np int) [][]int {
	ranks := make([][]int, len(t.Clones))
	slots := t.Slots()
	if slots == 0 {
		return ranks
	}
	rounds := max(1, (np+slots-1)/slots)
	// With more ranks than slots every clone takes its slots' share of np.
	next, before := 0, 0
	for i, c := range t.Clones {
		end := min(np, next+c.VCPUs)
		if rounds > 1 {
			before += c.VCPUs
			end = before * np / slots
		}
		for ; next < end; next++ {
			ranks[i] = append(ranks[i], next)
		}
	}
	return ranks
}

// Parse reads a ticket from JSON and checks it.
func Parse(data []byte) (Ticket, error) {
	var t Ticket
	if err := json.Unmarshal(data, &t); err != nil {
		return t, fmt.Errorf("read ticket: %w", err)
	}
	return t, t.Check()
}

// Check says what is wrong with a ticket, if anything.
func (t Ticket) Check() error {
	if t.ID == "" {
		return errors.New("read ticket: it has no id")
	}
	if len(t.Clones) > t.Asked {
		return fmt.Errorf("read ticket: it has %d clones for %d that were asked for", len(t.Clones), t.Asked)
	}
	seen := map[int]bool{}
	for _, c := range t.Clones {
		switch {
		case c.ID < 1 || c.ID > network.MaxID:
			return fmt.Errorf("read ticket: clone id %d is not in 1…%d", c.ID, network.MaxID)
		case seen[c.ID]:
			return fmt.Errorf("read ticket: clone %d is in it twice", c.ID)
		case !c.IP.IsValid():
			return fmt.Errorf("read ticket: clone %d has no address", c.ID)
		case c.VCPUs < 1:
			return fmt.Errorf("read ticket: clone %d has %d virtual CPUs", c.ID, c.VCPUs)
		}
		seen[c.ID] = true
	}
	if !slices.IsSortedFunc(t.Clones, func(a, b Clone) int { return cmp.Or(a.IP.Compare(b.IP)) }) {
		return errors.New("read ticket: its clones are not ordered by address")
	}
	return nil
}
