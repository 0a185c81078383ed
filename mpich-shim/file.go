package mpichshim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// maxHosts bounds a list of hosts.
const maxHosts = 1 << 16

// lines are the words of each line that has any, without comments.
func lines(data []byte) (all [][]string) {
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(line); len(words) > 0 {
			all = append(all, words)
		}
	}
	return all
}

// configWords are the words of a file of options. A new line begins a new program,
// as ":" does on a command line. There are no quotes.
func configWords(data []byte) (words []string, err error) {
	for _, line := range lines(data) {
		if n := len(words); n > 0 && words[n-1] != ":" && line[0] != ":" {
			words = append(words, ":")
		}
		if words = append(words, line...); len(words) > maxWords {
			return nil, fmt.Errorf("more than %d words", maxWords)
		}
	}
	return words, nil
}

// hostFile reads a machinefile: host, or host:slots, and then binding= and user=, a
// line each.
func (p *parser) hostFile(name string) error {
	if name == "HYDRA_USE_LOCALHOST" {
		return nil // which are the hosts when none are named
	}
	data, err := p.sys.ReadFile(name)
	if err != nil {
		return fmt.Errorf("read hosts: %w", err)
	}
	if p.c.Hosts, err = machines(data); err != nil {
		return fmt.Errorf("read hosts from %s: %w", name, err)
	}
	return nil
}

// machines reads what is in a machinefile.
func machines(data []byte) (hosts []Host, err error) {
	for _, words := range lines(data) {
		if hosts, err = addHost(hosts, words[0]); err != nil {
			return nil, err
		}
		h := &hosts[len(hosts)-1]
		for _, w := range words[1:] {
			key, value, _ := strings.Cut(w, "=")
			to, ok := map[string]*string{"binding": &h.Binding, "user": &h.User}[key]
			switch {
			case !ok:
				return nil, fmt.Errorf("%q: after a host come binding= and user=", w)
			case value == "":
				return nil, fmt.Errorf("%q has no value", w)
			case *to != "" && *to != value:
				return nil, fmt.Errorf("%s has two of %s=, %s and %s", h.Name, key, *to, value)
			}
			*to = value
		}
	}
	if len(hosts) == 0 {
		return nil, errors.New(`there is none; it has a line for each, as "h1:4"`)
	}
	return hosts, nil
}

// hostList reads hosts of a command line, with commas between.
func hostList(list string) (hosts []Host, err error) {
	for _, one := range strings.Split(list, ",") {
		if one == "" {
			continue
		}
		if hosts, err = addHost(hosts, one); err != nil {
			return nil, err
		}
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("there is no host in %q", list)
	}
	return hosts, nil
}

// addHost adds host:slots. One that is named again right away gets more slots; one
// that is named again later is another node.
func addHost(hosts []Host, s string) ([]Host, error) {
	name, number, given := cutSlots(s)
	if name == "" || strings.HasPrefix(name, "-") || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsGraphic(r) || strings.ContainsRune(" ,/\\'\"", r) }) {
		return nil, fmt.Errorf("%q is not a host: expected host or host:slots", s)
	}
	slots := 1
	if given {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || n > MaxRanks {
			return nil, fmt.Errorf("%q: %q is not a number of slots", s, number)
		}
		slots = n
	}
	if n := len(hosts); n > 0 && hosts[n-1].Name == name {
		hosts[n-1].Slots = min(hosts[n-1].Slots+slots, MaxRanks)
		return hosts, nil
	}
	if len(hosts) == maxHosts {
		return nil, fmt.Errorf("more than %d hosts", maxHosts)
	}
	return append(slices.Clip(hosts), Host{Name: name, Slots: slots}), nil
}

// cutSlots parts a host from its slots. An IPv6 address with slots is in brackets.
func cutSlots(s string) (name, slots string, given bool) {
	if inside, ok := strings.CutPrefix(s, "["); ok {
		name, after, closed := strings.Cut(inside, "]")
		slots, given = strings.CutPrefix(after, ":")
		if !closed || after != "" && !given {
			return "", "", false
		}
		return name, slots, given
	}
	if strings.Count(s, ":") > 1 {
		return s, "", false
	}
	return strings.Cut(s, ":")
}
