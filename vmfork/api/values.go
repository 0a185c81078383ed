package api

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// What the calls' replies hold: each has a function that builds it and one
// that reads it.

// TicketReply answers request-ticket and ticket.
func TicketReply(t ticket.Ticket) Reply {
	r := OK("ticket", t.ID, "asked", strconv.Itoa(t.Asked), "granted", strconv.Itoa(len(t.Clones)))
	for _, c := range t.Clones {
		r.tuple("clone", strconv.Itoa(c.ID), c.Name, c.IP.String(), strconv.Itoa(c.VCPUs), c.Host)
	}
	return r
}

// Ticket reads the reply to request-ticket and ticket. The clones' member
// numbers are not in it.
func (r Reply) Ticket() (ticket.Ticket, error) {
	t, err := r.ticket()
	if err != nil {
		return ticket.Ticket{}, fmt.Errorf("read the reply: %w", err)
	}
	return t, nil
}

func (r Reply) ticket() (t ticket.Ticket, err error) {
	granted := 0
	if t.ID, err = r.name("ticket"); err == nil {
		t.Asked, err = r.number("asked")
	}
	if err == nil {
		granted, err = r.number("granted")
	}
	if err != nil {
		return t, err
	}
	for _, value := range r.Args.All("clone") {
		part, err := split(value, 5)
		if err != nil {
			return t, fmt.Errorf("clone: %w", err)
		}
		id, okID := parseInt(part[0])
		vcpus, okVCPUs := parseInt(part[3])
		ip, err := netip.ParseAddr(part[2])
		if !okID || !okVCPUs || err != nil {
			return t, fmt.Errorf("clone %s is not ID:NAME:IP:VCPUS:HOST", short(value))
		}
		t.Clones = append(t.Clones, ticket.Clone{ID: id, Name: part[1], IP: ip, VCPUs: vcpus, Host: part[4]})
	}
	if len(t.Clones) != granted {
		return t, fmt.Errorf("%d clones are granted and %d described", granted, len(t.Clones))
	}
	return t, t.Check()
}

// An Identity is who a machine is, among the machines of its job.
type Identity struct {
	ID     int        // 1…m in a clone, 0 in a machine that no fork made
	Ticket string     // that made the clone; "" with id 0
	Member int        // of the private network; 0 is the first machine
	Name   string     // host name
	IP     netip.Addr // on the private network
	VCPUs  int
	Host   string // the physical host that carries it
}

// Reply answers whoami.
func (i Identity) Reply() Reply {
	r := OK("id", strconv.Itoa(i.ID), "member", strconv.Itoa(i.Member), "name", i.Name, "ip", i.IP.String(),
		"vcpus", strconv.Itoa(i.VCPUs), "host", i.Host)
	if i.Ticket != "" {
		r.Args = append(r.Args, Arg{Key: "ticket", Value: i.Ticket})
	}
	return r
}

// Identity reads the reply to whoami.
func (r Reply) Identity() (Identity, error) {
	var i Identity
	var errs [5]error
	i.ID, errs[0] = r.number("id")
	i.Member, errs[1] = r.number("member")
	i.Name, errs[2] = r.name("name")
	i.VCPUs, errs[3] = r.number("vcpus")
	ip, _ := r.Args.Get("ip")
	i.IP, errs[4] = netip.ParseAddr(ip)
	i.Host, _ = r.Args.Get("host")
	i.Ticket, _ = r.Args.Get("ticket")
	if err := errors.Join(errs[:]...); err != nil {
		return Identity{}, fmt.Errorf("read the reply: %w", err)
	}
	return i, nil
}

// A Machine is one line of list.
type Machine struct {
	Name   string
	Member int // of the private network
	IP     netip.Addr
	Parent int    // the member whose fork made it, -1 if none did
	Ticket string // that made it, "" if none did
	ID     int    // in that ticket, 0 if none
}

// ListReply answers list.
func ListReply(machines []Machine) Reply {
	var r Reply
	for _, m := range machines {
		parent := ""
		if m.Parent >= 0 {
			parent = strconv.Itoa(m.Parent)
		}
		r.tuple("vm", m.Name, strconv.Itoa(m.Member), m.IP.String(), parent, m.Ticket, strconv.Itoa(m.ID))
	}
	return r
}

// Machines reads the reply to list.
func (r Reply) Machines() ([]Machine, error) {
	var machines []Machine
	for _, value := range r.Args.All("vm") {
		part, err := split(value, 6)
		if err != nil {
			return nil, fmt.Errorf("read the reply: vm: %w", err)
		}
		m := Machine{Name: part[0], Parent: -1, Ticket: part[4]}
		var okMember, okID bool
		okParent := part[3] == ""
		m.Member, okMember = parseInt(part[1])
		m.ID, okID = parseInt(part[5])
		if !okParent {
			m.Parent, okParent = parseInt(part[3])
		}
		m.IP, err = netip.ParseAddr(part[2])
		if !okMember || !okID || !okParent || err != nil {
			return nil, fmt.Errorf("read the reply: vm %s is not NAME:MEMBER:IP:PARENT:TICKET:ID", short(value))
		}
		machines = append(machines, m)
	}
	return machines, nil
}

// IDReply answers clone and create-clones: 0 in the parent, and in a clone
// its id.
func IDReply(id int) Reply { return OK("id", strconv.Itoa(id)) }

// ForkReply answers await-fork in a clone.
func ForkReply(id int, ticket string) Reply { return OK("id", strconv.Itoa(id), "ticket", ticket) }

// CheckpointReply answers checkpoint-parent: with id 0 where the checkpoint
// was made, and with a clone's id and ticket in one that was made of it.
func CheckpointReply(checkpoint string, id int, ticket string) Reply {
	r := OK("checkpoint", checkpoint, "id", strconv.Itoa(id))
	if id != 0 {
		r.Args = append(r.Args, Arg{Key: "ticket", Value: ticket})
	}
	return r
}

// ID reads the id of a reply that has one.
func (r Reply) ID() (int, error) {
	id, err := r.number("id")
	if err != nil {
		return 0, fmt.Errorf("read the reply: %w", err)
	}
	return id, nil
}

// Name reads a value that is a name: ticket or checkpoint.
func (r Reply) Name(key string) (string, error) {
	value, err := r.name(key)
	if err != nil {
		return "", fmt.Errorf("read the reply: %w", err)
	}
	return value, nil
}

// JoinReply answers join when every clone has exited: statuses by id.
func JoinReply(statuses map[int]int) Reply {
	var r Reply
	for _, id := range slices.Sorted(maps.Keys(statuses)) {
		r.tuple("status", strconv.Itoa(id), strconv.Itoa(statuses[id]))
	}
	return r
}

// LostReply answers join when some clones ended without exit: their ids, and
// the statuses of those that did exit.
func LostReply(lost []int, statuses map[int]int, format string, args ...any) Reply {
	r := Fail(KindLost, format, args...)
	for _, id := range lost {
		r.Args = append(r.Args, Arg{Key: "clone", Value: strconv.Itoa(id)})
	}
	r.Args = append(r.Args, JoinReply(statuses).Args...)
	return r
}

// Statuses reads the reply to join, also the one of [LostReply].
func (r Reply) Statuses() (map[int]int, error) {
	statuses := map[int]int{}
	for _, value := range r.Args.All("status") {
		part, err := split(value, 2)
		if err != nil {
			return nil, fmt.Errorf("read the reply: status: %w", err)
		}
		id, okID := parseInt(part[0])
		status, ok := parseInt(part[1])
		if _, twice := statuses[id]; !ok || !okID || twice {
			return nil, fmt.Errorf("read the reply: status %s is not ID:STATUS, once for each clone", short(value))
		}
		statuses[id] = status
	}
	return statuses, nil
}

// Lost reads the ids of clones that ended without exit, from an error of
// [KindLost].
func (r Reply) Lost() ([]int, error) {
	var lost []int
	for _, value := range r.Args.All("clone") {
		id, ok := parseInt(value)
		if !ok {
			return nil, fmt.Errorf("read the reply: clone %s is no number", short(value))
		}
		lost = append(lost, id)
	}
	return lost, nil
}

func (r Reply) number(key string) (int, error) {
	value, _ := r.Args.Get(key)
	n, ok := parseInt(value)
	if !ok {
		return 0, fmt.Errorf("%s is %s and no number", key, short(value))
	}
	return n, nil
}

func (r Reply) name(key string) (string, error) {
	value, _ := r.Args.Get(key)
	if !IsName(value) {
		return "", fmt.Errorf("%s is %s and no name", key, short(value))
	}
	return value, nil
}

// tuple adds a value of several parts. One with a ":" in a part could not be
// read, and makes an error of the whole reply.
func (r *Reply) tuple(key string, parts ...string) {
	for _, p := range parts {
		if strings.Contains(p, ":") {
			*r = Fail(KindFailed, "%s has a colon, which no part of %s= can have", short(p), key)
		}
	}
	r.Args = append(r.Args, Arg{Key: key, Value: strings.Join(parts, ":")})
}

func split(tuple string, parts int) ([]string, error) {
	p := strings.Split(tuple, ":")
	if len(p) != parts {
		return nil, fmt.Errorf("%s has %d parts, and should have %d", short(tuple), len(p), parts)
	}
	return p, nil
}
