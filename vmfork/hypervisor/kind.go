package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kind is a kind of hypervisor. The package of its driver registers it, and is imported
// by the program for nothing else: who wants machines knows of kinds what is said here.
type Kind struct {
	Name string // as [Driver] says it, and as a user does

	// Here says whether this machine runs on such a hypervisor, which is the one to
	// take then. Without it, the kind is for all machines.
	Here func() bool

	// Check says what this machine lacks, as far as that is cheap to know. release is
	// for people: the one that there is, or what is needed instead.
	Check func(ctx context.Context) (release string, err error)

	// Probe finds out which accelerator to take. reason is nil, or says why not a faster one.
	Probe func(ctx context.Context) (accel string, reason error)

	// Accelerators can be asked for instead. Nothing has to be probed for Anywhere, which
	// works on all machines; it is "" where none is like that.
	Accelerators []string
	Anywhere     string

	// Find makes the driver. One that is an io.Closer is closed when its machines have ended.
	Find func(ctx context.Context, accel string) (Driver, error)

	// Modules of the kernel that guests need, beside those that all have.
	Modules []string

	// Room says what this machine has for guests: processors, and bytes of memory, that of guests of this kind which live counted as
	// free. It is nil where guests have theirs of this machine's kernel.
	Room func() (cpus int, memory int64, err error)

	// Sweep ends what drivers have left whose process was killed; nil where the kernel does.
	Sweep func(ctx context.Context) error
}

// Auto is the name that stands for the kind that is best here. So does none.
const Auto = "auto"

var kinds []Kind

// Register makes a kind known. It is called before main is.
func Register(k Kind) { kinds = append(kinds, k) }

// Names are those of all kinds, sorted.
func Names() (names []string) {
	for _, k := range kinds {
		names = append(names, k.Name)
	}
	slices.Sort(names)
	return names
}

// Choose finds a kind by name.
func Choose(name string) (Kind, error) {
	var always *Kind
	for i, k := range kinds {
		switch {
		case name == k.Name:
			return k, nil
		case k.Here == nil:
			always = &kinds[i]
		case (name == "" || name == Auto) && k.Here():
			return k, nil
		}
	}
	switch {
	case name != "" && name != Auto:
		return Kind{}, fmt.Errorf("%.20q is no hypervisor that machines could be made on: it is %s", name, strings.Join(append(Names(), Auto), " or "))
	case always == nil:
		return Kind{}, Lacksf("this machine runs on none of the hypervisors that could make machines (%s)", strings.Join(Names(), ", "))
	}
	return *always, nil
}

// CheckAccelerator refuses what cannot be asked for; its error completes a line that begins with that. "" is for a probe.
func (k Kind) CheckAccelerator(accel string) error {
	switch {
	case accel == "" || slices.Contains(k.Accelerators, accel):
		return nil
	case len(k.Accelerators) == 0:
		return fmt.Errorf("%s has none to choose from", k.Name)
	}
	return fmt.Errorf("it is %s", strings.Join(k.Accelerators, " or "))
}

// Sweep ends what drivers of all kinds have left here whose process was killed. It is for a
// process that outlives them.
func Sweep(ctx context.Context) error {
	var errs []error
	for _, k := range kinds {
		if k.Sweep != nil && (k.Here == nil || k.Here()) {
			if err := k.Sweep(ctx); err != nil {
				errs = append(errs, fmt.Errorf("end machines that were left behind on %s: %w", k.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}
