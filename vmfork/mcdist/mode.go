package mcdist

import "fmt"

// Mode is how blocks are distributed to many hosts.
type Mode int

// The modes.
const (
	// Auto is multicast if the hosts hear it, otherwise a tree where there are many hosts, and unicast for few.
	Auto Mode = iota
	Multicast
	Unicast
	Tree
)

var modes = [...]string{"auto", "multicast", "unicast", "tree"}

func (m Mode) String() string {
	if m < 0 || int(m) >= len(modes) {
		return fmt.Sprintf("mode %d", int(m))
	}
	return modes[m]
}

// MarshalText writes the mode's name.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the mode's name.
func (m *Mode) UnmarshalText(text []byte) error {
	for i, name := range modes {
		if string(text) == name {
			*m = Mode(i)
			return nil
		}
	}
	return fmt.Errorf("%q is no way to distribute: take auto, multicast, unicast or tree", text)
}
