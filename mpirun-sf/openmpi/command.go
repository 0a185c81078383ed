package openmpi

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// commandLine is what a launcher has a remote shell agent run: words, of which
// some hold shell text, and values of parameters are in double quotes. The agent
// joins them with spaces, for a shell.
type commandLine []string

// maxCommand bounds a command line, in bytes.
const maxCommand = 1 << 20

// text is the line for a shell.
func (c commandLine) text() string { return strings.TrimSpace(strings.Join(c, " ")) }

// find is where the value of a parameter is, -1 for nowhere.
func (c commandLine) find(name string) int {
	for i := 1; i+1 < len(c); i++ {
		if c[i] == name && isOption(c[i-1]) {
			return i + 1
		}
	}
	return -1
}

// without takes a parameter away.
func (c commandLine) without(name string) commandLine {
	if i := c.find(name); i >= 0 {
		return slices.Delete(slices.Clone(c), i-2, i+1)
	}
	return c
}

// gives tells whether a parameter whose name ends so is given.
func (c commandLine) gives(suffix string) bool {
	for i := 1; i+1 < len(c); i++ {
		if strings.HasSuffix(c[i], suffix) && isOption(c[i-1]) {
			return true
		}
	}
	return false
}

func isOption(word string) bool {
	return slices.Contains([]string{"mca", "prtemca", "pmixmca", "gmca", "omca"}, strings.TrimLeft(word, "-")) && strings.HasPrefix(word, "-")
}

// set gives a parameter another value. One that is there twice would have both
// values for its own.
func (c commandLine) set(option, name, value string) commandLine {
	quoted := `"` + value + `"`
	if i := c.find(name); i >= 0 {
		c = slices.Clone(c)
		c[i] = quoted
		return c
	}
	end := len(c)
	if end > 0 && c[end-1] == ")" {
		end-- // for sh and ksh the line is a subshell that reads .profile first
	}
	return slices.Insert(slices.Clone(c), end, option, name, quoted)
}

// daemonOf says whose daemon a command line starts, and where its launcher is.
func daemonOf(c commandLine) (d dialect, u uri, err error) {
	for _, known := range dialects {
		if i := c.find(known.uri); i >= 0 {
			u, err = parseURI(strings.Trim(c[i], `"'`))
			return known.dialect, u, err
		}
	}
	return d, u, errors.New("the command line starts none of Open MPI's daemons: it does not say where its launcher is")
}

// uri is where a launcher listens: NAME;tcp://ADDRESS[,ADDRESS]...:PORT[:BITS[,BITS]...].
type uri struct {
	name      string // of the process, with the job's number
	addresses []netip.Addr
	port      uint16
	masks     bool // BITS are there
}

// parseURI reads the first way of TCP over IPv4 of a URI.
func parseURI(s string) (u uri, err error) {
	fail := func(why string) (uri, error) {
		return uri{}, fmt.Errorf("read where Open MPI's launcher is: %s in %.200q", why, s)
	}
	name, ways, ok := strings.Cut(s, ";")
	if !ok || name == "" || strings.ContainsAny(name, "\"'$`\\ \t\n&|<>()") {
		return fail("there is no name")
	}
	u.name = name
	for way := range strings.SplitSeq(ways, ";") {
		rest, ok := strings.CutPrefix(way, "tcp://")
		if !ok {
			continue
		}
		list, port, ok := strings.Cut(rest, ":")
		if !ok {
			return fail("there is no port")
		}
		if port, _, u.masks = strings.Cut(port, ":"); port == "" {
			return fail("there is no port")
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return fail("there is no port")
		}
		u.port = uint16(n)
		for address := range strings.SplitSeq(list, ",") {
			a, err := netip.ParseAddr(address)
			if err != nil || !a.Is4() {
				return fail(fmt.Sprintf("%.40q is no IPv4 address", address))
			}
			u.addresses = append(u.addresses, a)
		}
		return u, nil
	}
	return fail("there is no way by TCP and IPv4")
}

// at is the same process's URI at another place, which is in a network.
func (u uri) at(place netip.AddrPort, network netip.Prefix) string {
	s := fmt.Sprintf("%s;tcp://%s:%d", u.name, place.Addr(), place.Port())
	if u.masks {
		s += ":" + strconv.Itoa(network.Bits())
	}
	return s
}
