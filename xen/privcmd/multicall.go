package privcmd

import "golang.org/x/sys/unix"

// entry writes the i-th call of a multicall, struct multicall_entry, at the buffer's beginning.
func (b buffer) entry(i int, op uint64, args ...uint64) {
	e := b[i*callSize:][:callSize]
	le.PutUint64(e, op)
	for j, a := range args {
		le.PutUint64(e[16+8*j:], a)
	}
}

// result is what became of the i-th call.
func (b buffer) result(i int) error {
	if r := int64(le.Uint64(b[i*callSize+8:])); r < 0 {
		return unix.Errno(-r)
	}
	return nil
}

// multicall makes the first n calls of a buffer at once: to get into the hypervisor costs more than most calls.
func (h *Handle) multicall(b buffer, n int) error {
	_, err := h.call(opMulticall, b.at(0), uint64(n))
	return err
}
