package qemu

import (
	"slices"
	"testing"
)

// Processors are the same if they can do the same, whichever of them was asked.
func TestIdentify(t *testing.T) {
	all := []cpuidEntry{
		{Function: 0, EAX: 0x10, EBX: 0x68747541, ECX: 0x444d4163, EDX: 0x69746e65},
		{Function: 1, EAX: 0x00a20f12, EBX: 0x01100800, ECX: 0x7ed8320b, EDX: 0x178bfbff},
		{Function: 7, EBX: 0x219c97a9, ECX: 0x0040069c},
		{Function: 0xb, EDX: 3},
		{Function: 0xd, EAX: 0x207, EBX: 0x988, ECX: 0x988},
	}
	word := identify(all)
	for name, c := range map[string]struct {
		change func(e []cpuidEntry)
		same   bool
	}{
		"nothing":                  {func([]cpuidEntry) {}, true},
		"its number":               {func(e []cpuidEntry) { e[1].EBX = 0x03100800; e[3].EDX = 7 }, true},
		"its stepping":             {func(e []cpuidEntry) { e[1].EAX++ }, true},
		"registers in use":         {func(e []cpuidEntry) { e[4].EBX = 0x240 }, true},
		"its model":                {func(e []cpuidEntry) { e[1].EAX += 0x10 }, false},
		"an instruction":           {func(e []cpuidEntry) { e[2].EBX &^= 1 << 5 }, false},
		"registers that are saved": {func(e []cpuidEntry) { e[4].EAX |= 0xe0 }, false},
	} {
		other := slices.Clone(all)
		c.change(other)
		if got := identify(other); (got == word) != c.same {
			t.Errorf("with another %s it is %s, and %s before", name, got, word)
		}
	}
}

// Asked again, KVM says the same: checkpoints are kept by it.
func TestSupportedCPUID(t *testing.T) {
	first, err := supportedCPUID()
	if err != nil {
		t.Skipf("KVM cannot be asked here: %v", err)
	}
	for range 20 {
		again, err := supportedCPUID()
		if err != nil || identify(again) != identify(first) {
			t.Fatalf("%s, and then %s (%v)", identify(first), identify(again), err)
		}
	}
	t.Logf("%s of %d entries", identify(first), len(first))
}
