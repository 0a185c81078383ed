package mpichshim

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Binding says which processors each rank of a host runs on.
type Binding struct {
	Unit   string  // "hwthread" or "core": each rank gets Each of them, in turn; "" with Lists
	Each   int     //
	Lists  [][]int // processors by rank, in turn
	Ignore bool    // it is known to Hydra, and not done here
}

// coarse are the things that Hydra can bind to and that are many cores here.
var coarse = regexp.MustCompile(`^(machine|numa|socket|l[1-5][diu]?cache|pci|gpu|ib|en|eth|hfi)(:.+|\d*)?$`)

// maxProcessors bounds a list of processors.
const maxProcessors = 1 << 16

// ParseBinding reads what -bind-to or a machinefile's binding= says. Nil is no binding.
func ParseBinding(s string) (*Binding, error) {
	unit, count, counted := strings.Cut(s, ":")
	switch {
	case s == "" || s == "none":
		return nil, nil
	case s == "rr":
		return &Binding{Unit: "hwthread", Each: 1}, nil
	case unit == "user" && counted:
		b := &Binding{}
		for _, one := range strings.Split(count, ",") {
			var list []int
			for _, number := range strings.Split(one, "+") {
				n, err := strconv.Atoi(number)
				if err != nil || n < -1 || n >= maxProcessors {
					return nil, fmt.Errorf("%q: %q is not a processor's number", s, number)
				}
				if n >= 0 { // -1 is any
					list = append(list, n)
				}
			}
			b.Lists = append(b.Lists, list)
		}
		return b, nil
	case unit == "core" || unit == "hwthread":
		each := 1
		if counted {
			n, err := strconv.Atoi(count)
			if err != nil || n < 1 || n >= maxProcessors {
				return nil, fmt.Errorf("%q: %q is not a number of them", s, count)
			}
			each = n
		}
		return &Binding{Unit: unit, Each: each}, nil
	case coarse.MatchString(s):
		return &Binding{Ignore: true}, nil
	}
	return nil, fmt.Errorf("%q is nothing to bind to: there are none, rr, user:0+2,1, core and hwthread", s)
}

// Of is the binding of the ranks of a host. Nil is none.
func (c *Command) Of(h Host) (*Binding, error) {
	s := c.Binding
	if h.Binding != "" {
		s = h.Binding
		if s[0] >= '0' && s[0] <= '9' {
			s = "user:" + s // as it is written in a machinefile
		}
	}
	b, err := ParseBinding(s)
	if err != nil {
		return nil, fmt.Errorf("bind ranks on %s: %w", h.Name, err)
	}
	if b != nil && b.Ignore {
		return nil, nil
	}
	return b, nil
}
