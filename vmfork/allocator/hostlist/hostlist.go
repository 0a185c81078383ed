// Package hostlist reads which hosts a user named for a job: a list as on
// MPICH's command line, or a file in MPICH's or Open MPI's format.
//
//	h1,h2:4,root@h3,[2001:db8::1]:2      [Parse]
//
//	# MPICH's machinefile, [Read]
//	h1
//	h2:4  user=root ifhn=h2-ib
//
//	# Open MPI's hostfile, [Read]
//	h1
//	h2 slots=4 max_slots=8
//
// Each line may be of either format. A host that is named several times has the
// sum of its slots, as with both; where it is named without a number, that
// counts as one then. A host that is named once, without a number, takes as
// many ranks as fit.
package hostlist

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// Limits of what is read, beyond what anybody has.
const (
	maxSize  = 4 << 20 // bytes of a file
	maxHosts = 4096
	maxSlots = 65535 // of a host
	maxName  = 255   // bytes of a host's name
)

// Host is a host as a user named it. Of [allocator.Host] it has the name and
// the slots; the name is without brackets if it is an IPv6 address.
type Host struct {
	allocator.Host
	User      string // whom to log in as; empty: what ssh's configuration says
	Interface string // ifhn: the name or address of the interface for the job's traffic; empty: any
	MaxSlots  int    // Open MPI's max_slots, at least Slots; 0: none was given
}

// Parse reads a comma-separated list: host, host:slots, or either after user@.
func Parse(list string) ([]Host, error) {
	var all hosts
	for i, entry := range strings.Split(list, ",") {
		entry = strings.TrimSpace(entry)
		h, err := parseName(entry)
		if entry == "" {
			err = errors.New("a host is missing")
		}
		if err == nil {
			err = all.add(h)
		}
		if err != nil {
			return nil, fmt.Errorf("read list of hosts %q: entry %d: %w", list, i+1, err)
		}
	}
	return all.list, nil
}

// Read reads a file.
func Read(path string) ([]Host, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	defer f.Close()
	return ReadFrom(path, f)
}

// ReadFrom reads what is in a file of that name.
func ReadFrom(name string, r io.Reader) ([]Host, error) {
	var all hosts
	in := bufio.NewScanner(io.LimitReader(r, maxSize+1))
	in.Buffer(nil, maxSize)
	size := 0
	for number := 1; in.Scan(); number++ {
		if size += len(in.Bytes()) + 1; size > maxSize {
			return nil, fmt.Errorf("read hosts: %s is larger than %d bytes, which is no list of hosts", name, maxSize)
		}
		line, _, _ := strings.Cut(in.Text(), "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		h, err := parseLine(line)
		if err == nil {
			err = all.add(h)
		}
		if err != nil {
			return nil, fmt.Errorf("read hosts: %s:%d: %w", name, number, err)
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("read hosts: %s: %w", name, err)
	}
	if len(all.list) == 0 {
		return nil, fmt.Errorf("read hosts: there is none in %s; it has a line for each, as \"h1:4\" or \"h1 slots=4\"", name)
	}
	return all.list, nil
}

// spacedEqual is an option as Open MPI allows to write it.
var spacedEqual = regexp.MustCompile(`\s*=\s*`)

func parseLine(line string) (Host, error) {
	fields := strings.Fields(spacedEqual.ReplaceAllString(line, "="))
	h, err := parseName(fields[0])
	if err != nil {
		return h, err
	}
	for _, field := range fields[1:] {
		option, value, ok := strings.Cut(field, "=")
		if !ok {
			return h, fmt.Errorf("%q is no option; after a host come user=, ifhn=, slots= or max_slots=", field)
		}
		if err := h.option(option, value); err != nil {
			return h, err
		}
	}
	if h.MaxSlots > 0 && h.MaxSlots < h.Slots {
		return h, fmt.Errorf("max_slots=%d is less than the %d slots of %s", h.MaxSlots, h.Slots, h.Name)
	}
	return h, nil
}

// option sets one option of either format. What pins processes to cores of the
// host, which are not a virtual machine's, is read and has no meaning.
func (h *Host) option(option, value string) (err error) {
	switch strings.ReplaceAll(strings.ToLower(option), "-", "_") {
	case "slots", "slot", "count", "cpus", "cpu":
		if h.Slots != 0 {
			return fmt.Errorf("%s has slots twice: give them as %s:%d or as slots=%d", h.Name, h.Name, h.Slots, h.Slots)
		}
		h.Slots, err = parseSlots(value)
	case "max_slots", "slots_max", "cpus_max", "max_cpus":
		h.MaxSlots, err = parseSlots(value)
	case "user", "username", "user_name":
		if h.User != "" && h.User != value {
			return fmt.Errorf("%s has two users, %s and %s", h.Name, h.User, value)
		}
		h.User, err = parseUser(value)
	case "ifhn":
		if !isHost(value) {
			return fmt.Errorf("ifhn=%s is not the name or address of an interface", value)
		}
		h.Interface = value
	case "binding", "boards", "sockets", "sockets_per_board", "cores", "cores_per_socket":
	default:
		return fmt.Errorf("%s= is not known; after a host come user=, ifhn=, slots= or max_slots= (a port belongs into ~/.ssh/config)", option)
	}
	return err
}

// parseName reads user@host:slots.
func parseName(s string) (h Host, err error) {
	if user, rest, ok := strings.Cut(s, "@"); ok {
		if h.User, err = parseUser(user); err != nil {
			return h, err
		}
		s = rest
	}
	name, slots, given := s, "", false
	if inside, ok := strings.CutPrefix(s, "["); ok {
		var after string
		if name, after, ok = strings.Cut(inside, "]"); !ok {
			return h, fmt.Errorf("%q has no closing bracket; an IPv6 address is written as [2001:db8::1] or [2001:db8::1]:4", s)
		}
		if ip, err := netip.ParseAddr(name); err != nil || ip.Is4() {
			return h, fmt.Errorf("%q is not an IPv6 address, and nothing else goes in brackets (hosts are listed one by one)", name)
		}
		if slots, given = strings.CutPrefix(after, ":"); after != "" && !given {
			return h, fmt.Errorf("%q after an address is not :slots", after)
		}
	} else if ip, err := netip.ParseAddr(s); err == nil && ip.Is6() && !ip.Is4In6() {
		return h, fmt.Errorf("an IPv6 address is written in brackets: [%s]", s)
	} else {
		name, slots, given = strings.Cut(s, ":")
	}
	if !isHost(name) {
		return h, fmt.Errorf("%q is not the name or address of a host; expected host, host:slots or user@host:slots", name)
	}
	h.Name = name
	if given {
		h.Slots, err = parseSlots(slots)
	}
	return h, err
}

func parseSlots(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 1 || n > maxSlots {
		return 0, fmt.Errorf("%q is not a number of slots, from 1 to %d", s, maxSlots)
	}
	return int(n), nil
}

func parseUser(s string) (string, error) {
	for i, r := range s {
		if unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune(`@:/\"'#=,`+"\ufffd", r) || i == 0 && r == '-' {
			return "", fmt.Errorf("%q is not the name of a user", s)
		}
	}
	if s == "" || len(s) > maxName {
		return "", fmt.Errorf("%q is not the name of a user", s)
	}
	return s, nil
}

// isHost keeps out what could be an option or a pattern to whom it is passed on.
func isHost(s string) bool {
	if ip, err := netip.ParseAddr(s); err == nil {
		return ip.Zone() == "" || isHost(ip.Zone())
	}
	if s == "" || len(s) > maxName || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, r := range s {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '.', r == '_':
		default:
			return false
		}
	}
	return true
}

// hosts adds up what is said about each.
type hosts struct {
	list []Host
	by   map[string]int // index, by name in small letters
}

func (a *hosts) add(h Host) error {
	key := strings.ToLower(h.Name)
	i, known := a.by[key]
	if !known {
		if len(a.list) == maxHosts {
			return fmt.Errorf("more than %d hosts", maxHosts)
		}
		if a.by == nil {
			a.by = map[string]int{}
		}
		a.by[key] = len(a.list)
		a.list = append(a.list, h)
		return nil
	}
	had := &a.list[i]
	if h.User != "" && had.User != "" && h.User != had.User {
		return fmt.Errorf("%s is there before with user %s, and now with %s", h.Name, had.User, h.User)
	}
	if h.Interface != "" && had.Interface != "" && h.Interface != had.Interface {
		return fmt.Errorf("%s is there before with ifhn=%s, and now with %s", h.Name, had.Interface, h.Interface)
	}
	if had.User == "" {
		had.User = h.User
	}
	if had.Interface == "" {
		had.Interface = h.Interface
	}
	had.Slots = max(had.Slots, 1) + max(h.Slots, 1)
	if had.Slots > maxSlots {
		return fmt.Errorf("%s has more than %d slots in all", h.Name, maxSlots)
	}
	if had.MaxSlots += h.MaxSlots; had.MaxSlots > 0 {
		had.MaxSlots = max(had.MaxSlots, had.Slots)
	}
	return nil
}
