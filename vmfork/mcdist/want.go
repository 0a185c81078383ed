package mcdist

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// want is a request for blocks.
type want struct {
	f     *Fetch
	kind  int // urgent or bulk
	host  int
	spans []span
	order *order // bulk: whose it is
	pace  *pace  // bulk: of the host
	share portion
	sent  atomic.Int64 // urgent: when, in nanoseconds of the node's clock; 0 once it has told how long the way is
	cut   atomic.Bool  // it was asked for in part
}

func (w *want) relayed() bool { return w.host != w.f.origin }

func (w *want) request(buf []byte, number uint32) []byte {
	spans := w.f.missing(w.spans)
	if len(spans) > maxSpans {
		spans = spans[:maxSpans]
		w.cut.Store(true)
	}
	if len(spans) == 0 {
		return buf
	}
	start := len(buf)
	var flags uint8
	if w.f.object {
		flags |= flagObject
	}
	if w.relayed() {
		flags |= flagRelay
	}
	buf = appendWant(buf, flags, number, w.f.id, spans)
	if w.pace == nil {
		w.sent.Store(int64(time.Since(w.f.node.begun)))
	} else {
		setShare(buf, start, w.pace.sent(&w.share))
	}
	return buf
}

func (w *want) answer(f *frame, scratch []byte) (last bool, err error) {
	if f.kind != kindBlocks {
		return false, fmt.Errorf("%w: kind %d for an answer with blocks", errFrame, f.kind)
	}
	first, p, err := unpack(f, scratch)
	if err != nil {
		return false, err
	}
	way := ByUnicast
	if w.relayed() {
		way = ByTree
	}
	last = f.flags&flagLast != 0
	if sent := w.sent.Swap(0); sent != 0 {
		w.f.node.pace(w.host).near(time.Since(w.f.node.begun) - time.Duration(sent))
	}
	if w.pace != nil {
		w.pace.came(&w.share, int64(len(p)), int(f.share), last)
	}
	return last, w.f.arrive(p, first, way, w.f.counted(w.kind))
}

// counted is what the blocks of a request are counted as.
func (f *Fetch) counted(kind int) int {
	if f.object {
		return objects
	}
	return kind
}

func (w *want) end(err error) {
	if w.pace != nil {
		w.pace.release(&w.share)
	}
	rest := w.f.missing(w.spans)
	if len(rest) == 0 {
		err = nil
	} else if err == nil && !w.cut.Load() {
		err = errors.New("the answer ended before all blocks had come")
	}
	if w.kind == urgent {
		if err != nil {
			w.f.fail(rest, err)
		} else {
			w.f.ask(rest)
		}
		return
	}
	w.f.settle(w, rest, err)
}

func (w *want) patience() time.Duration {
	if w.relayed() {
		return relayPatience
	}
	return w.f.node.config.Patience
}
