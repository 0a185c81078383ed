package multicast

import (
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// wakeBulk lets bulk look for work.
func (s *Sender) wakeBulk() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// bulk sends, at the rate that flow control allows, what nobody waits for with a virtual CPU: repairs first, then what
// was asked for ahead, then what is pushed. Sources take turns by batches.
func (s *Sender) bulk() {
	buffer := make([]byte, maxBatchBlocks*slice.BlockSize)
	packets := make([]byte, 2<<16)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var compress compressor
	for {
		select {
		case <-s.done:
			return
		default:
		}
		wait := s.pace.wait(time.Now())
		if wait == 0 {
			var job bulkJob
			if job, wait = s.nextJob(time.Now()); job.src != nil {
				s.work(job, buffer, packets, &compress)
				continue
			}
			s.pace.rest(time.Now())
			select {
			case <-s.wake:
				continue
			default:
			}
		}
		timer.Reset(wait)
		if s.pace.owes() {
			// There is work, and the rate does not allow for it yet: nobody has to wake us.
			select {
			case <-timer.C:
			case <-s.done:
			}
			continue
		}
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.done:
		}
	}
}

// bulkJob is what bulk does next.
type bulkJob struct {
	src   *source
	batch *batch // send n symbols of it
	n     int
	runs  []run // or make a batch of these
	flags byte
	idle  bool // or tell the group that there is nothing more
}

// train is how many packets are sent at once: what the rate allows for in half a millisecond. Fewer cost more processor
// time each. More would come in bursts that a switch cannot take, or that the kernel cuts up to delay them: then they cost
// as much as if they had been sent one by one.
func (s *Sender) train(size int) int {
	return max(1, min(maxSegments, max(4*s.room, int(s.pace.rate()/2000))/size)) // a long one is more than four
}

// idleAfter says when beacons follow the last packet: by then everybody should have asked for what was lost.
var idleAfter = []time.Duration{0, 10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond}

// nextJob looks for work. If there is none, it returns how long there will be none.
func (s *Sender) nextJob(now time.Time) (job bulkJob, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait = time.Second
	for i, src := range s.order {
		job, later := s.jobOf(src, now)
		if job.src == nil {
			wait = min(wait, later)
			continue
		}
		if src.current == nil || src.left <= job.n {
			// Its turn ends with a batch.
			s.order = append(append(s.order[:i], s.order[i+1:]...), src)
		}
		return job, 0
	}
	return bulkJob{}, max(wait, time.Millisecond/2)
}

// jobOf looks for work for one source. The sender's lock is held.
func (s *Sender) jobOf(src *source, now time.Time) (job bulkJob, wait time.Duration) {
	wait = time.Second
	if !src.hold.IsZero() {
		if wait = src.hold.Sub(now); wait > 0 {
			return job, wait
		}
		src.hold, src.expects = time.Time{}, nil
	}
	if b := src.current; b != nil {
		src.idle = 0
		return bulkJob{src: src, batch: b, n: min(src.left, s.train(b.packetSize()))}, 0
	}
	if len(src.repairs) > 0 {
		if wait = src.due.Sub(now); wait <= 0 {
			src.idle = 0
			b := src.repairs[0]
			src.repairs = src.repairs[1:]
			n := b.short
			b.short = 0
			s.tally.repairs.Add(uint64(n))
			return bulkJob{src: src, batch: b, n: n + s.pace.margin(n)}, 0
		}
	}
	if runs := src.queue.take(s.perBatch()); len(runs) > 0 {
		src.mark(runs, inFlight) // whoever wants them now need not be queued again
		return bulkJob{src: src, runs: runs}, 0
	}
	if runs := src.pushed.take(s.perBatch()); len(runs) > 0 {
		src.mark(runs, inFlight)
		return bulkJob{src: src, runs: runs, flags: flagPushed}, 0
	}
	if s.config.Push && len(src.members) > 0 {
		// Singles: as many as surely fit.
		list := src.push.take(pushAtOnce, src.blocks, func(b int64) bool { return src.sent.get(b) == 0 && src.present(b) })
		if len(list) > 0 {
			var runs []run
			for _, b := range list {
				runs = extend(runs, b)
			}
			src.mark(runs, inFlight)
			return bulkJob{src: src, runs: runs, flags: flagPushed}, 0
		}
		if len(src.push.counters) > 0 {
			wait = 0 // it has only passed over many
		}
	}
	if src.idle < len(idleAfter) && src.next > 0 && len(src.members) > 0 {
		if src.idle == 0 {
			src.beacon = now
		}
		if now.Before(src.beacon) {
			return job, min(wait, src.beacon.Sub(now))
		}
		if src.idle++; src.idle < len(idleAfter) {
			src.beacon = now.Add(idleAfter[src.idle])
		}
		return bulkJob{src: src, idle: true}, 0
	}
	return job, wait
}

// pushAtOnce is how many blocks are pushed in a batch: their runs have to fit, however far apart they are.
const pushAtOnce = 8

// present reports whether a source has a block, if it can tell.
func (src *source) present(block int64) bool {
	p, ok := src.from.(interface{ Present(block int64) bool })
	return !ok || p.Present(block)
}

// work does a job.
func (s *Sender) work(job bulkJob, buffer, packets []byte, compress *compressor) {
	src := job.src
	switch {
	case job.idle:
		s.sendBeacon(src, flagIdle)
	case job.batch != nil:
		b := job.batch
		last, _ := s.sendBatch(src, b, job.n, nil, packets) // what could not be sent is asked for again
		s.mu.Lock()
		defer s.mu.Unlock()
		b.repaired = last
		if src.current == b {
			src.left -= job.n
			if src.left <= 0 {
				src.current = nil
			}
		}
	default:
		s.begin(job, buffer, compress)
	}
}

// begin makes a batch.
func (s *Sender) begin(job bulkJob, buffer []byte, compress *compressor) {
	src := job.src
	n := count(job.runs)
	p := buffer[:n*slice.BlockSize]
	if err := src.read(p, job.runs); err != nil {
		s.notSent(src, job.runs)
		if job.flags&flagPushed == 0 {
			s.unreadable(src, job.runs, err)
		}
		return
	}
	s.mu.Lock()
	number := src.next
	src.next++
	s.mu.Unlock()
	pieces := 1
	if s.pace.clean(time.Now()) {
		pieces = maxRoom / s.room
	}
	b := pack(number, job.flags, job.runs, p, s.room, pieces, compress.worth())
	compress.learn(b.flags&flagCompressed != 0)
	s.tally.blocks.Add(uint64(n))
	if job.flags&flagPushed != 0 {
		s.tally.pushed.Add(uint64(n))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	parity := s.pace.parity(b.k)
	s.tally.parity.Add(uint64(parity))
	src.current, src.left, src.idle = b, b.k+parity, 0
	// The last of its packets will have about this counter.
	src.mark(job.runs, src.out.counter.Load()+uint64(src.left))
	src.kept = append(src.kept, b)
	src.keptLen += len(b.content)
	for src.keptLen > keepBytes && len(src.kept) > 1 {
		src.keptLen -= len(src.kept[0].content)
		src.kept[0] = nil
		src.kept = src.kept[1:]
	}
}

// mark notes which packet completes blocks. The sender's lock is held.
func (src *source) mark(runs []run, counter uint64) {
	for _, r := range runs {
		src.sent.set(r, counter)
	}
}

// notSent takes back that blocks are on their way.
func (s *Sender) notSent(src *source, runs []run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src.mark(runs, 0)
}

// compressor remembers whether compression has paid lately: to find that out costs the sender as much as sending.
type compressor struct {
	vain, skip int
}

func (c *compressor) worth() bool {
	if c.vain < 4 {
		return true
	}
	if c.skip++; c.skip < 16 {
		return false
	}
	c.skip = 0
	return true
}

func (c *compressor) learn(paid bool) {
	switch {
	case paid:
		c.vain = 0
	case c.skip == 0:
		c.vain++
	}
}
