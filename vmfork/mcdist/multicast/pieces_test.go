package multicast

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// randomPackets are packets of one size, and the pieces they are cut into.
func randomPackets(t *testing.T, n, size, pieces int) (packets, cut [][]byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(n), uint64(size)))
	all := make([]byte, n*size)
	for i := range all {
		all[i] = byte(r.Uint32())
	}
	for i := range n {
		p := all[i*size : (i+1)*size]
		p[0], p[headerSize-1] = version<<4|byte(toGroup), byte(250+i)
		packets = append(packets, p)
	}
	flat, pieceSize := cutPackets(make([]byte, 0, 1<<16), all, size, pieces)
	if len(flat) != n*pieces*pieceSize || pieceSize > size/pieces+pieceHeader {
		t.Fatalf("%d packets of %d bytes were cut into %d bytes of pieces of %d", n, size, len(flat), pieceSize)
	}
	for ; len(flat) > 0; flat = flat[pieceSize:] {
		cut = append(cut, flat[:pieceSize])
	}
	return packets, cut
}

func TestPieces(t *testing.T) {
	const n, pieces = 8, 6
	packets, cut := randomPackets(t, n, 1400*pieces, pieces)
	one, two := cut[:pieces:pieces], cut[pieces:2*pieces:2*pieces]
	for name, c := range map[string]struct {
		pieces [][]byte
		want   [][]byte
	}{
		"all":                 {cut, packets},
		"one lost":            {append(append([][]byte{}, cut[:2]...), cut[3:]...), packets[1:]},
		"the first lost":      {cut[1:], packets[1:]},
		"the last lost":       {append(append([][]byte{}, cut[:pieces-1]...), cut[pieces:]...), packets[1:]},
		"half of two":         {append(append([][]byte{}, one[:3]...), two[3:]...), nil},
		"out of order":        {[][]byte{one[0], one[2], one[1], one[3], one[4], one[5]}, nil},
		"one doubled":         {append(append([][]byte{one[0], one[1], one[1]}, one[2:]...), two...), packets[1:2]},
		"the beginning again": {append([][]byte{one[0], one[1]}, one...), packets[:1]},
		"nothing in it":       {append([][]byte{{pieceMark}, one[0][:pieceHeader]}, one...), packets[:1]},
	} {
		t.Run(name, func(t *testing.T) {
			var j joiner
			var got [][]byte
			for _, p := range c.pieces {
				packet, count := j.join(p)
				if packet == nil {
					continue
				}
				if count != pieces {
					t.Errorf("a packet of %d pieces instead of %d", count, pieces)
				}
				got = append(got, bytes.Clone(packet))
			}
			if len(got) != len(c.want) {
				t.Fatalf("%d packets came instead of %d", len(got), len(c.want))
			}
			for i := range got {
				if !bytes.Equal(got[i], c.want[i]) {
					t.Errorf("packet %d is not what was sent", i)
				}
			}
		})
	}
}

// TestLongPackets has a slice come over a network that loses nothing, and over one that does: it comes in long packets in
// the first, and as good as never in the second.
func TestLongPackets(t *testing.T) {
	run := func(loss float64) (long float64) {
		virtual(t, 4, func(_ int, l *wireLink) {
			l.rate, l.queue, l.loss = 25e6, 50*time.Millisecond, loss
		}, nil, func(t *testing.T, c *cluster) {
			var pieces, all int
			c.wire.tap = func(p []byte, from, to netip.AddrPort) {
				if to.Addr().IsMulticast() {
					all++
					if p[0] == pieceMark {
						pieces++
					}
				}
			}
			m, id := newImage(4, 32<<20), randomID(4)
			if err := c.sender.Serve(id, m); err != nil {
				t.Fatal(err)
			}
			c.prefetchAll(id, m, time.Minute)
			c.wire.mu.Lock()
			defer c.wire.mu.Unlock()
			long = float64(pieces) / float64(all)
		})
		return long
	}
	if long := run(0); long < 0.9 {
		t.Errorf("%.2f of all that was sent where nothing is lost were pieces of long packets", long)
	}
	if long := run(0.05); long > 0.1 {
		t.Errorf("%.2f of all that was sent where 5 %% are lost were pieces of long packets", long)
	}
}

func FuzzJoin(f *testing.F) {
	f.Add([]byte{5, pieceMark, 1, 0, 1, 7, 5, pieceMark, 1, 1, 2, 7})
	f.Fuzz(func(t *testing.T, stream []byte) {
		var j joiner
		for len(stream) > 0 {
			n := min(len(stream)-1, int(stream[0])*8)
			packet, pieces := j.join(stream[1 : 1+n])
			if packet != nil && (pieces < 1 || pieces > 255 || len(packet) < pieces || len(packet) > maxRoom) {
				t.Fatalf("%d bytes from %d pieces", len(packet), pieces)
			}
			stream = stream[1+n:]
		}
	})
}
