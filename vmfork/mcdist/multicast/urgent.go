package multicast

import (
	"errors"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// urgentJob is blocks for which somebody waits.
type urgentJob struct {
	src     *source
	runs    []run
	attempt int   // how often they were asked for before
	to      *peer // nil: the group
}

// maxUrgentBlocks is how many blocks are answered together. All symbols of a batch must arrive, and nobody repairs one
// that is urgent: a longer one would be lost too often.
const maxUrgentBlocks = 8

// urgentWorkers answer requests. More than one, because reading a block may wait for a disk.
const urgentWorkers = 3

// answerUrgent answers requests at once: they wait for no queue, and their bytes are only accounted to the rate, so that
// bulk makes room for them afterwards.
func (s *Sender) answerUrgent() {
	buffer := make([]byte, maxBatchBlocks*slice.BlockSize)
	packets := make([]byte, 1<<16)
	for {
		select {
		case <-s.done:
			return
		case job := <-s.urgent:
			for len(job.runs) > 0 {
				var runs []run
				runs, job.runs = cut(job.runs, min(maxUrgentBlocks, s.perBatch()))
				if err := s.sendNow(job, runs, buffer, packets); err != nil {
					s.notSent(job.src, runs)
					s.unreadable(job.src, runs, err)
				}
			}
		}
	}
}

// perBatch is how many blocks a batch may have so that its symbols are not too many.
func (s *Sender) perBatch() int64 {
	const most = maxSymbols * 3 / 4
	return min(maxBatchBlocks, int64(s.room-overhead-dataHeader-maxBatchRuns)*most/slice.BlockSize)
}

// cut takes as many blocks from the front of some runs as fit a batch.
func cut(runs []run, most int64) (front, rest []run) {
	size, end := 0, int64(0)
	for len(runs) > 0 && most > 0 {
		r := runs[0]
		r.n = min(r.n, most)
		size += len(appendRun(nil, end, r))
		if size > maxBatchRuns {
			break
		}
		front, end, most = append(front, r), r.first+r.n, most-r.n
		if r.n < runs[0].n {
			runs = append([]run{{r.first + r.n, runs[0].n - r.n}}, runs[1:]...)
			break
		}
		runs = runs[1:]
	}
	return front, runs
}

// sendNow sends one batch, with parity where packets get lost: more of it each time that it is asked for again.
func (s *Sender) sendNow(job urgentJob, runs []run, buffer, packets []byte) error {
	src := job.src
	p := buffer[:count(runs)*slice.BlockSize]
	if err := src.read(p, runs); err != nil {
		return err
	}
	s.mu.Lock()
	number := src.next
	src.next++
	s.mu.Unlock()
	b := pack(number, flagUrgent, runs, p, s.room-17, 1, true) // an answer to one receiver has the id in each packet
	parity := max(s.pace.parity(b.k), min(job.attempt*(b.k+1)/2, maxSymbols-b.k))
	last, err := s.sendBatch(src, b, b.k+parity, job.to, packets)
	if err != nil {
		return nil // as if it had been lost
	}
	s.tally.parity.Add(uint64(parity))
	s.tally.blocks.Add(uint64(count(runs)))
	if job.to == nil {
		s.mu.Lock()
		src.mark(runs, last+1)
		s.mu.Unlock()
	}
	return nil
}

// sendBatch sends the next n symbols of a batch, and returns the counter of the last. packets is scratch:
// 64 KB, and as much again if what is sent has to be cut.
func (s *Sender) sendBatch(src *source, b *batch, n int, to *peer, packets []byte) (last uint64, err error) {
	size, at := b.packetSize(), src.group
	out, extra := src.out, 0
	if to != nil {
		s.mu.Lock()
		at = to.address
		s.mu.Unlock()
		out, extra = to.out, len(src.id)+1
		size += extra
	}
	// What is cut needs as much again, and a little more.
	train := max(1, min(1<<16/(size+b.pieces*pieceHeader), maxSegments/b.pieces))
	for n > 0 {
		k := min(n, train)
		stamp := microseconds(time.Now())
		for i := range k {
			p := packets[i*size : (i+1)*size-tagSize : (i+1)*size]
			if to != nil {
				// The symbol's message follows the one that says for whom it is.
				p[headerSize] = byte(messageData)
				copy(p[headerSize+1:], src.id[:])
				b.put(p[extra:], b.advance(), stamp)
			} else {
				b.put(p, b.advance(), stamp)
			}
			_, last = out.seal(p)
		}
		sealed, sealedSize := packets[:k*size], size
		if b.pieces > 1 {
			sealed, sealedSize = cutPackets(packets[1<<16:], sealed, size, b.pieces)
		}
		bytes := len(sealed)
		s.tally.packetsSent.Add(uint64(k * b.pieces))
		if to == nil {
			src.bytes.Add(uint64(bytes))
			s.tally.multicastSent.Add(uint64(bytes))
		} else {
			s.tally.unicastSent.Add(uint64(bytes))
		}
		s.pace.spend(k*b.pieces, bytes)
		if err := s.socket.send(sealed, sealedSize, at); err != nil {
			return last, err
		}
		n -= k
	}
	return last, nil
}

// unreadable tells all members that a source does not give what it should: they get the reason by unicast.
func (s *Sender) unreadable(src *source, runs []run, err error) {
	if errors.Is(err, ErrWithdrawn) {
		return // they have been told
	}
	s.mu.Lock()
	var members []*peer
	for _, m := range src.members {
		members = append(members, m.peer)
	}
	s.mu.Unlock()
	for _, m := range members {
		s.refuse(m, src.id, ErrUnreadable)
	}
}
