package multicast

import (
	"sync/atomic"
	"time"
)

// Counters say what a Sender or a Receiver has done since it was made. Bytes are UDP payload.
type Counters struct {
	PacketsSent, PacketsReceived  uint64
	MulticastSent, MulticastTaken uint64 // bytes
	UnicastSent, UnicastTaken     uint64 // bytes
	Urgent                        uint64 // blocks brought for somebody who waits
	Blocks                        uint64 // sent, or arrived; one sent again counts again
	Pushed                        uint64 // of them, blocks that nobody had asked for
	Requests                      uint64 // blocks asked for
	Lockstep                      uint64 // of them, those that were on their way already
	Parity                        uint64 // parity packets sent, or used
	Repairs                       uint64 // packets sent again or as fresh parity because somebody lacked them
	Dropped                       uint64 // packets that are not ours or do not open
	Replayed                      uint64 // packets that had come before
	Moved                         uint64 // hosts taken out of a group
	Rate                          int64  // of sending, bytes/s
	RoundTrip                     time.Duration
}

// tally is Counters while they are counted.
type tally struct {
	packetsSent, packetsReceived, multicastSent, multicastTaken, unicastSent, unicastTaken atomic.Uint64
	urgent, blocks, pushed, requests, lockstep, parity, repairs, dropped, replayed, moved  atomic.Uint64
}

func (t *tally) counters() Counters {
	return Counters{
		PacketsSent: t.packetsSent.Load(), PacketsReceived: t.packetsReceived.Load(),
		MulticastSent: t.multicastSent.Load(), MulticastTaken: t.multicastTaken.Load(),
		UnicastSent: t.unicastSent.Load(), UnicastTaken: t.unicastTaken.Load(),
		Urgent: t.urgent.Load(), Blocks: t.blocks.Load(), Pushed: t.pushed.Load(),
		Requests: t.requests.Load(), Lockstep: t.lockstep.Load(), Parity: t.parity.Load(), Repairs: t.repairs.Load(),
		Dropped: t.dropped.Load(), Replayed: t.replayed.Load(), Moved: t.moved.Load(),
	}
}

// refused counts a packet that was not taken.
func (t *tally) refused(err error) {
	if err == errReplayed {
		t.replayed.Add(1)
		return
	}
	t.dropped.Add(1)
}
