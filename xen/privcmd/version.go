package privcmd

import "bytes"

// Makes says which kinds of guests a hypervisor makes on this machine.
type Makes struct {
	PV  bool
	HVM bool // and PVH: where the processor has hardware virtualization
}

// Makes says which kinds of guests the hypervisor makes.
func (h *Handle) Makes() Makes { return h.makes }

// makesOf reads what Xen says it makes (XENVER_capabilities): words such as xen-3.0-x86_64 and hvm-3.0-x86_32p.
func makesOf(said []byte) (m Makes) {
	for word := range bytes.FieldsSeq(said) {
		switch kind, _, _ := bytes.Cut(word, []byte("-")); {
		case !bytes.HasSuffix(word, []byte("-x86_64")):
		case string(kind) == "xen":
			m.PV = true
		case string(kind) == "hvm":
			m.HVM = true
		}
	}
	return m
}

// Of the version hypercall, as in Xen's public header version.h.
const (
	versionNumber       = 0
	versionExtra        = 1
	versionCapabilities = 3
)

// versionText is what Xen says of itself in so many bytes.
func (h *Handle) versionText(what uint64, size int) (said []byte, err error) {
	err = h.with(func(b buffer) error {
		if _, err := h.call(opVersion, what, b.at(0)); err != nil {
			return err
		}
		said, _, _ = bytes.Cut(b[:size], []byte{0})
		said = bytes.Clone(said)
		return nil
	})
	return said, err
}
