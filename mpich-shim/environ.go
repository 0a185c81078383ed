package mpichshim

import (
	"slices"
	"strconv"
	"strings"
)

// Inherit is what a program's ranks find of mpiexec's own environment.
type Inherit struct {
	Mode  InheritMode
	Names []string // with InheritList
}

// InheritMode is how that was said.
type InheritMode int

const (
	InheritUnset InheritMode = iota // not said: all
	InheritAll
	InheritNone
	InheritList
)

// loginNames are what a login would set anyway, so no rank is without them.
var loginNames = []string{"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER"}

// Environ is the environment of an app's ranks, own being mpiexec's: what it
// inherits, what -genv and then -env say, and what Hydra always sets. A later one of a
// name replaces an earlier one.
func (c *Command) Environ(a App, own []string) []string {
	inherit := a.Inherit
	if inherit.Mode == InheritUnset {
		inherit = c.Inherit
	}
	var env environ
	for _, e := range own {
		name, _, ok := strings.Cut(e, "=")
		if !ok || isLaunchers(name) {
			continue
		}
		switch inherit.Mode {
		case InheritNone:
			ok = slices.Contains(loginNames, name)
		case InheritList:
			ok = slices.Contains(loginNames, name) || slices.Contains(inherit.Names, name)
		}
		if ok {
			env.set(e)
		}
	}
	for _, e := range slices.Concat(c.GlobalEnv, a.Env) {
		env.set(e)
	}
	env.set("GFORTRAN_UNBUFFERED_PRECONNECTED=y")
	if c.Interface != "" {
		env.set("MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE=" + c.Interface)
	}
	return env.list
}

// isLaunchers is whether a variable belongs to the mpiexec that this one runs under.
func isLaunchers(name string) bool {
	switch name {
	case "PMI_FD", "PMI_RANK", "PMI_SIZE", "PMI_PORT", "PMI_ID", "PMI_SPAWNED",
		"MPI_LOCALRANKID", "MPI_LOCALNRANKS", "HYDI_CONTROL_FD":
		return true
	}
	return false
}

// GPUVariable is CUDA_VISIBLE_DEVICES of the rank that is the local-th on its host,
// "" if nothing is said of GPUs.
func (c *Command) GPUVariable(local int) string {
	switch {
	case c.GPUs < 0:
		return ""
	case c.GPUs == 0:
		return "CUDA_VISIBLE_DEVICES=-1"
	}
	var ids []string
	for k := range c.GPUs {
		ids = append(ids, strconv.Itoa(local*c.GPUs+k))
	}
	return "CUDA_VISIBLE_DEVICES=" + strings.Join(ids, ",")
}

// environ is an environment in the making: each name once.
type environ struct {
	list []string
	at   map[string]int
}

func (e *environ) set(entry string) {
	name, _, _ := strings.Cut(entry, "=")
	if e.at == nil {
		e.at = map[string]int{}
	}
	if i, ok := e.at[name]; ok {
		e.list[i] = entry
		return
	}
	e.at[name] = len(e.list)
	e.list = append(e.list, entry)
}
