// Package replay refuses packets that were received before. Each sender numbers its packets; a Window remembers which
// of the last Size numbers came, and takes whatever is older for a replay. Packets may be reordered by less than that.
//
// A Window is asked only about numbers of packets whose seal was good. Otherwise anybody could move it on.
package replay

// Size is how far behind the highest number a packet may come, in packets.
const Size = 64 * (words - 1)

// words are kept as a ring. One more than Size needs, so that a word can be cleared whole when the window enters it.
const words = 64

// A Window is ready to use when zero. It has no lock.
type Window struct {
	next uint64 // one above the highest number accepted
	bits [words]uint64
}

// Accept reports whether a packet of this number has not come before, and remembers that it has.
func (w *Window) Accept(number uint64) bool {
	if number == ^uint64(0) {
		return false // there is no number above it, and nobody sends so many
	}
	word := number / 64
	if number >= w.next {
		for last := w.last(); last < word; last++ {
			if word-last > words {
				last = word - words
			}
			w.bits[(last+1)%words] = 0
		}
		w.next = number + 1
	} else if w.next-number > Size {
		return false
	}
	bit := uint64(1) << (number % 64)
	if w.bits[word%words]&bit != 0 {
		return false
	}
	w.bits[word%words] |= bit
	return true
}

// Next returns one above the highest number accepted.
func (w *Window) Next() uint64 { return w.next }

// last is the word that the highest number is in.
func (w *Window) last() uint64 {
	if w.next == 0 {
		return 0
	}
	return (w.next - 1) / 64
}
