package multicast

import "slices"

// Where nothing is lost, packets are longer than the network carries, and are cut into pieces: header and tag of each then
// take a percent of the link instead of four. A piece that is lost costs the whole packet, so packets are short again as
// soon as anybody loses something (pace.clean).
//
// A piece begins with pieceMark, the lowest byte of the packet's counter, the piece's index, and how many there are. None
// of that is authenticated: what is forged becomes a packet that does not open, as if a piece had been lost.
const (
	pieceMark   = 2 << 4 // no packet begins with it, for it would be of another version
	pieceHeader = 4
)

// cutPackets cuts packets that lie one after another, each of size bytes, into that many pieces each, all of one size. They
// are written to dst.
func cutPackets(dst, packets []byte, size, pieces int) (cut []byte, pieceSize int) {
	cut, pieceSize = dst[:0], size/pieces
	for p := range slices.Chunk(packets, size) {
		i := 0
		for piece := range slices.Chunk(p, pieceSize) {
			cut = append(append(cut, pieceMark, p[headerSize-1], byte(i), byte(pieces)), piece...)
			i++
		}
	}
	return cut, pieceSize + pieceHeader
}

// joiner puts a packet together from its pieces. They come in order, or one is taken to be lost. It has no lock.
type joiner struct {
	packet []byte
	number byte
	next   int // index of the piece that continues it; 0 if none does
}

// join takes a piece, and returns the packet if it was the last one, and how many there were. The packet is valid until
// the next piece comes.
func (j *joiner) join(p []byte) (packet []byte, pieces int) {
	if len(p) <= pieceHeader {
		return nil, 0
	}
	number, index, pieces := p[1], int(p[2]), int(p[3])
	if index == 0 {
		j.packet, j.number, j.next = j.packet[:0], number, 0
	}
	if index != j.next || number != j.number || index >= pieces || len(j.packet)+len(p) > maxRoom {
		j.next = 0
		return nil, 0
	}
	j.packet = append(j.packet, p[pieceHeader:]...)
	if j.next++; j.next < pieces {
		return nil, 0
	}
	j.next = 0
	return j.packet, pieces
}
