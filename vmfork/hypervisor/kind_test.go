package hypervisor

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// register replaces the kinds for a test.
func register(t *testing.T, all ...Kind) {
	t.Helper()
	before := kinds
	kinds = nil
	t.Cleanup(func() { kinds = before })
	for _, k := range all {
		Register(k)
	}
}

func TestChoose(t *testing.T) {
	here := false
	plain := Kind{Name: "plain", Accelerators: []string{"fast", "slow"}}
	special := Kind{Name: "special", Here: func() bool { return here }}
	for _, order := range [][]Kind{{plain, special}, {special, plain}} {
		register(t, order...)
		for _, c := range []struct {
			name, want string
			here       bool
		}{
			{"", "plain", false}, {Auto, "plain", false}, {"plain", "plain", false}, {"special", "special", false},
			{"", "special", true}, {Auto, "special", true}, {"plain", "plain", true}, {"special", "special", true},
		} {
			here = c.here
			k, err := Choose(c.name)
			if err != nil || k.Name != c.want {
				t.Errorf("Choose(%q) with %v: %q, %v; want %q", c.name, c.here, k.Name, err, c.want)
			}
		}
		if _, err := Choose("other"); err == nil || !strings.Contains(err.Error(), "plain or special or auto") {
			t.Errorf("Choose of one that there is not: %v", err)
		}
	}
	register(t, special)
	here = false
	if _, err := Choose(""); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Choose where there is none: %v", err)
	}
}

func TestCheckAccelerator(t *testing.T) {
	plain, none := Kind{Name: "plain", Accelerators: []string{"fast", "slow"}}, Kind{Name: "none"}
	for _, accel := range []string{"", "fast", "slow"} {
		if err := plain.CheckAccelerator(accel); err != nil {
			t.Error(err)
		}
	}
	if err := plain.CheckAccelerator("x"); err == nil || !strings.Contains(err.Error(), "fast or slow") {
		t.Errorf("an accelerator that there is not: %v", err)
	}
	if err := none.CheckAccelerator("fast"); err == nil {
		t.Error("an accelerator was taken where there is none")
	}
}

func TestSweep(t *testing.T) {
	var swept []string
	failed := errors.New("no")
	kind := func(name string, here func() bool, err error) Kind {
		return Kind{Name: name, Here: here, Sweep: func(context.Context) error { swept = append(swept, name); return err }}
	}
	register(t, Kind{Name: "nothing to do"}, kind("a", nil, failed), kind("b", func() bool { return false }, nil), kind("c", func() bool { return true }, nil))
	if err := Sweep(t.Context()); !errors.Is(err, failed) || strings.Join(swept, " ") != "a c" {
		t.Errorf("swept %v, %v", swept, err)
	}
}
