package multicast

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// FuzzMessage gives arbitrary messages, as a host of the job could seal them, to a sender and to a receiver that are at
// work. Neither may fail, and what is accepted is inside the image.
func FuzzMessage(f *testing.F) {
	id := randomID(1)
	m := newImage(1, 64<<12)
	b := pack(3, 0, []run{{2, 4}}, m.data[2<<12:6<<12], 1472, 1, true)
	packet := make([]byte, b.packetSize())
	b.put(packet, 1, 7)
	data := packet[headerSize : len(packet)-tagSize]
	f.Add(data)
	f.Add(append(append([]byte{byte(messageData)}, id[:]...), data...))
	f.Add(appendBeacon(nil, beacon{7, flagIdle, 1}))
	f.Add(appendWelcome(nil, id, welcome{1 << 20, 0, 3}))
	f.Add(appendStamped(nil, messagePong, id, 3))
	f.Add(appendStamped(nil, messageJoin, id, 3))
	f.Add(appendRefuse(nil, id, ErrSlow))
	f.Add(append([]byte{byte(messageLeave)}, id[:]...))
	f.Add(appendWant(nil, id, want{true, 0, 9, encodeRuns([]run{{3, 4}, {1, 1}})}))
	f.Add(appendWant(nil, id, want{false, 1, 9, encodeRuns([]run{{0, 64}})}))
	f.Add(appendReport(nil, id, &report{flagPong, 1, 2, 3, 4, 5, 6, []nak{{3, 2}, {4, 255}}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1400 {
			return
		}
		inBubble(t, func(t *testing.T) {
			c := newCluster(t, 1, 1, nil, nil)
			defer c.close()
			if err := c.sender.Serve(id, m); err != nil {
				t.Fatal(err)
			}
			sink := newSink(m.Size())
			r := c.receivers[0]
			fetch, err := r.Open(inTime(t, time.Second), c.sender.Origin(), id, m.Size(), sink)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			message := func() []byte { return append(make([]byte, headerSize, headerSize+len(p)+tagSize), p...) }

			// To the sender, from a receiver.
			q, _ := fetch.origin.out.seal(message())
			r.socket.send(q, len(q), c.sender.Origin().Address)
			// To the receiver, from the sender, alone and in the group.
			c.sender.mu.Lock()
			src := c.sender.sources[id]
			var member *peer
			for _, k := range src.members {
				member = k.peer
			}
			c.sender.mu.Unlock()
			q, _ = member.out.seal(message())
			c.sender.socket.send(q, len(q), r.socket.address())
			q, _ = src.out.seal(message())
			c.sender.socket.send(q, len(q), src.group)
			time.Sleep(300 * time.Millisecond)
			sink.mu.Lock()
			defer sink.mu.Unlock()
			for b := range sink.times {
				if b < 0 || b >= 64 {
					t.Errorf("block %d arrived of an image of 64", b)
				}
			}
		})
	})
}

// FuzzPacket gives arbitrary packets to both sides: none of them opens.
func FuzzPacket(f *testing.F) {
	keys := newKeyring(testKey)
	s := newSealer(request, end{1, session{1}}, func(c suite) []byte { return keys.pairKey(c, request, end{}, end{}) })
	p, _ := s.seal(append(make([]byte, headerSize, 64), "message"...))
	f.Add(p)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0x12}, 60))
	f.Fuzz(func(t *testing.T, p []byte) {
		inBubble(t, func(t *testing.T) {
			c := newCluster(t, 1, 1, nil, nil)
			defer c.close()
			for _, from := range []netip.AddrPort{{}, c.sender.Origin().Address} {
				c.sender.take(slices.Clone(p), from, time.Now())
				c.receivers[0].take(slices.Clone(p), from, time.Now())
			}
			if n := c.sender.Counters().Dropped + c.receivers[0].Counters().Dropped; n != 4 {
				t.Errorf("%d of 4 packets were dropped", n)
			}
		})
	})
}

// FuzzRuns parses runs and writes them again.
func FuzzRuns(f *testing.F) {
	f.Add(encodeRuns([]run{{3, 4}, {1, 1}, {1 << 30, 7}}))
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, p []byte) {
		const blocks, most = 1 << 31, 1000
		runs, err := parseRuns(p, blocks, most)
		if err != nil {
			return
		}
		if count(runs) > most {
			t.Errorf("%d blocks", count(runs))
		}
		for _, r := range runs {
			if r.n <= 0 || r.first < 0 || r.first+r.n > blocks {
				t.Errorf("run %v is not inside the image", r)
			}
		}
		again, err := parseRuns(encodeRuns(runs), blocks, most)
		if err != nil || !slices.Equal(again, runs) {
			t.Errorf("%v is written as %v (%v)", runs, again, err)
		}
	})
}
