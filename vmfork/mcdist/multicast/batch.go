package multicast

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// contents are buffers for what one batch holds: blocks, or symbols, which may be padded by less than one symbol each.
var contents = sync.Pool{New: func() any { return new([maxBatchBlocks*slice.BlockSize + 1<<16]byte) }}

type contentBuffer = *[maxBatchBlocks*slice.BlockSize + 1<<16]byte

// batch is some blocks on their way out: cut into k symbols of one size, with as much parity as is needed.
type batch struct {
	number  uint32
	flags   byte
	runs    []byte // encoded
	k       int
	size    int // of a symbol, bytes
	pieces  int // into which each packet is cut
	length  int // of the content, bytes
	content []byte
	next    int // index of the next symbol to be sent; from k on it is parity

	repaired uint64 // counter of the last packet sent for it: a NAK that has not seen it is out of date
	short    int    // symbols that the worst receiver lacks
}

// pack makes a batch of blocks, which lie in p one after another, for packets that are cut into at most that many pieces.
func pack(number uint32, flags byte, runs []run, p []byte, room, pieces int, compress bool) *batch {
	b := &batch{number: number, flags: flags, runs: encodeRuns(runs), pieces: pieces}
	if pieces > 1 {
		room = pieces * (room - pieceHeader)
	}
	room -= overhead + dataHeader + len(b.runs)
	content := p
	if compress {
		buffer := contents.Get().(contentBuffer)
		defer contents.Put(buffer)
		// s2 gives up early on what does not compress. A gain of less than an eighth is not worth the receivers' time.
		if small := s2.Encode(buffer[:], p); len(small) < len(p)-len(p)/8 {
			content = small
			b.flags |= flagCompressed
		}
	}
	b.length = len(content)
	b.k = (b.length + room - 1) / room
	b.size = (b.length + b.k - 1) / b.k // the symbols are equally long, rather than all but the last
	if rest := b.packetSize() % pieces; rest > 0 {
		b.size += pieces - rest // and so are the pieces
	}
	b.k = (b.length + b.size - 1) / b.size
	b.content = make([]byte, b.k*b.size)
	copy(b.content, content)
	return b
}

func encodeRuns(runs []run) (p []byte) {
	var end int64
	for _, r := range runs {
		p = appendRun(p, end, r)
		end = r.first + r.n
	}
	return p
}

// packetSize is the size of each packet of the batch before it is cut, bytes.
func (b *batch) packetSize() int { return overhead + dataHeader + len(b.runs) + b.size }

// put makes the message for one symbol at p[headerSize:] of a packet; p is as long as the packet will be.
func (b *batch) put(p []byte, index int, stamp uint32) {
	d := data{batch: b.number, k: b.k, index: index, flags: b.flags, length: b.length, stamp: stamp, runs: b.runs}
	if index < b.k {
		d.symbol = b.content[index*b.size : (index+1)*b.size]
		appendData(p[:headerSize], &d)
		return
	}
	head := appendData(p[:headerSize], &d)
	makeParity(p[len(head):len(head)+b.size], b.content, index)
}

// advance returns the index of the next symbol to send. When there is no fresh parity left, it begins again.
func (b *batch) advance() (index int) {
	index = b.next
	if b.next++; b.next == maxSymbols {
		b.next = 0
	}
	return index
}

// assembly is a batch that arrives.
type assembly struct {
	number  uint32
	k       int
	size    int
	length  int
	flags   byte
	runs    []run
	buffer  contentBuffer
	content []byte // k symbols; those that had come
	present [maxSymbols]bool
	symbols int // that have come, without parity
	rows    []int
	parity  [][]byte

	whole bool  // it is being given to the sink: nobody else may touch it
	last  int64 // when the last of it came, ns since the fetch began
	asked int64 // when it was last said to be short; 0 if never
}

var errMismatch = errors.New("symbol belongs to another batch")

// assemble begins a batch with what any of its packets says.
func assemble(d *data, blocks int64) (*assembly, error) {
	runs, err := parseRuns(d.runs, blocks, maxBatchBlocks)
	if err != nil {
		return nil, err
	}
	if d.flags&flagCompressed == 0 && int64(d.length) != count(runs)*slice.BlockSize {
		return nil, errMalformed
	}
	a := &assembly{number: d.batch, k: d.k, size: len(d.symbol), length: d.length, flags: d.flags, runs: runs}
	if a.k*a.size > len(a.buffer) {
		return nil, errMalformed
	}
	a.buffer = contents.Get().(contentBuffer)
	a.content = a.buffer[:a.k*a.size]
	return a, nil
}

// free gives the buffer back.
func (a *assembly) free() {
	if a.buffer != nil {
		contents.Put(a.buffer)
		a.buffer, a.content = nil, nil
	}
}

// add takes a symbol and reports whether the batch is complete now.
func (a *assembly) add(d *data) (complete bool, err error) {
	if d.k != a.k || len(d.symbol) != a.size || d.length != a.length {
		return false, errMismatch
	}
	if a.present[d.index] {
		return false, nil
	}
	a.present[d.index] = true
	if d.index < a.k {
		copy(a.content[d.index*a.size:], d.symbol)
		a.symbols++
	} else {
		a.rows = append(a.rows, d.index)
		a.parity = append(a.parity, append([]byte(nil), d.symbol...))
	}
	return a.short() == 0, nil
}

// short is how many symbols are still lacking.
func (a *assembly) short() int { return max(0, a.k-a.symbols-len(a.rows)) }

// unpack returns the blocks of a complete batch, one after another. They lie in dst or in the assembly's buffer.
func (a *assembly) unpack(dst []byte) ([]byte, error) {
	if missing := a.k - a.symbols; missing > 0 {
		lacking := make([]int, 0, missing)
		for i := range a.k {
			if !a.present[i] {
				lacking = append(lacking, i)
			}
		}
		solve(a.content, a.size, lacking, a.parity[:missing], a.rows[:missing])
	}
	want := int(count(a.runs)) * slice.BlockSize
	content := a.content[:a.length]
	if a.flags&flagCompressed == 0 {
		return content, nil
	}
	if n, err := s2.DecodedLen(content); err != nil || n != want {
		return nil, fmt.Errorf("batch of %d bytes: %w", want, errMalformed)
	}
	p, err := s2.Decode(dst[:want], content)
	if err != nil {
		return nil, fmt.Errorf("decompress batch: %w", err)
	}
	return p, nil
}
