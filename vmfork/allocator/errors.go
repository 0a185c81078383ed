package allocator

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrLost is wrapped by the error of a process that the connection was lost to.
var ErrLost = errors.New("the connection was lost")

// HostError is an error that one host is the reason of, or that happened there.
// Its text may hold what the host said, so nothing in it moves a terminal.
type HostError struct {
	Host string // its name in the allocation
	Err  error  // does not name the host again
}

func (e *HostError) Error() string { return e.Host + ": " + harmless(e.Err.Error()) }

func (e *HostError) Unwrap() error { return e.Err }

// ExitError says how a process ended that ran to its end.
type ExitError struct {
	Status int    // 0 if a signal ended it
	Signal string // as "KILL", without SIG; empty if it ended with a status
	Stderr string // the last lines of its standard error, as [Tail] kept them
}

func (e *ExitError) Error() string {
	what := fmt.Sprintf("it ended with status %d", e.Status)
	if e.Signal != "" {
		what = "it was ended by signal " + e.Signal
	}
	if e.Stderr == "" {
		return what
	}
	return what + ": " + strings.ReplaceAll(e.Stderr, "\n", "; ")
}

// HostErrors are all that is wrong with the hosts of a job, told at once: who
// has to install something on each of them wants to do it once.
type HostErrors struct {
	Of     int // how many hosts were tried
	Errors []*HostError
}

// CollectErrors makes one error of those of many hosts, or nil if there is
// none: errs[i] is hosts[i]'s, and nil if it can be used.
func CollectErrors(hosts []Host, errs []error) error {
	all := &HostErrors{Of: len(hosts)}
	for i, err := range errs {
		if err == nil {
			continue
		}
		var of *HostError
		if !errors.As(err, &of) || of.Host != hosts[i].Name {
			of = &HostError{Host: hosts[i].Name, Err: err}
		}
		all.Errors = append(all.Errors, of)
	}
	if len(all.Errors) == 0 {
		return nil
	}
	return all
}

// Error has a line for each host, in the order of the hosts, after one that
// says how many they are. What several hosts have in common is told once.
func (e *HostErrors) Error() string {
	if e.Of == 1 && len(e.Errors) == 1 {
		return e.Errors[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d hosts cannot be used:", len(e.Errors), e.Of)
	type group struct {
		first int
		names []string
		text  string
	}
	groups := map[string]*group{}
	for i, one := range e.Errors {
		text := strings.TrimSpace(harmless(one.Err.Error()))
		if groups[text] == nil {
			groups[text] = &group{first: i, text: text}
		}
		groups[text].names = append(groups[text].names, one.Host)
	}
	var sorted []*group
	for _, g := range groups {
		sorted = append(sorted, g)
	}
	slices.SortFunc(sorted, func(a, b *group) int { return cmp.Compare(a.first, b.first) })
	for _, g := range sorted {
		fmt.Fprintf(&b, "\n  %s: %s", strings.Join(g.names, ", "), strings.ReplaceAll(g.text, "\n", "\n    "))
	}
	return b.String()
}

// Unwrap are the hosts' errors, for errors.Is and errors.As.
func (e *HostErrors) Unwrap() []error {
	all := make([]error, len(e.Errors))
	for i, one := range e.Errors {
		all[i] = one
	}
	return all
}
