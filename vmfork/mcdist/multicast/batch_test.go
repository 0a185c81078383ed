package multicast

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// TestAnySymbolsWillDo puts batches together from k symbols chosen at random, parity or not.
func TestAnySymbolsWillDo(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	m := newImage(3, 4<<20)
	for round := range 200 {
		var runs []run
		for range 1 + r.IntN(4) {
			runs = append(runs, run{r.Int64N(1000), 1 + r.Int64N(8)})
		}
		p := make([]byte, count(runs)*slice.BlockSize)
		rest := p
		for _, x := range runs {
			m.ReadBlocks(rest[:x.n*slice.BlockSize], x.first)
			rest = rest[x.n*slice.BlockSize:]
		}
		pieces := 1 + r.IntN(6)
		b := pack(uint32(round), 0, runs, p, 1472, pieces, r.IntN(2) == 0)
		if b.packetSize()%pieces != 0 || b.packetSize()/pieces > 1472 || b.k > maxSymbols*3/4 {
			t.Fatalf("%d packets of %d bytes", b.k, b.packetSize())
		}
		indices := r.Perm(maxSymbols)
		var a *assembly
		for i, index := range indices {
			packet := make([]byte, b.packetSize())
			b.put(packet, index, 0)
			d, err := parseData(packet[headerSize : len(packet)-tagSize])
			if err != nil {
				t.Fatal(err)
			}
			if a == nil {
				if a, err = assemble(&d, 1024); err != nil {
					t.Fatal(err)
				}
			}
			if a.short() != b.k-i {
				t.Fatalf("%d symbols of %d have come, and it lacks %d", i, b.k, a.short())
			}
			complete, err := a.add(&d)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := a.add(&d); again || err != nil {
				t.Fatalf("the same symbol again: %v, %v", again, err)
			}
			if complete != (i == b.k-1) {
				t.Fatalf("complete with %d symbols of %d: %v", i+1, b.k, complete)
			}
			if complete {
				break
			}
		}
		var buffer contentBuffer = contents.Get().(contentBuffer)
		got, err := a.unpack(buffer[:])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, p) || !slices.Equal(a.runs, runs) {
			t.Fatalf("round %d: what came is not what was sent", round)
		}
		a.free()
		contents.Put(buffer)
	}
}

func TestSymbolOfAnotherBatch(t *testing.T) {
	m := newImage(3, 1<<20)
	p := make([]byte, 8*slice.BlockSize)
	m.ReadBlocks(p, 0)
	b := pack(1, 0, []run{{0, 8}}, p, 1472, 1, false)
	packet := make([]byte, b.packetSize())
	b.put(packet, 0, 0)
	d, err := parseData(packet[headerSize : len(packet)-tagSize])
	if err != nil {
		t.Fatal(err)
	}
	a, err := assemble(&d, 256)
	if err != nil {
		t.Fatal(err)
	}
	defer a.free()
	d.length--
	if _, err := a.add(&d); err == nil {
		t.Error("a symbol of a batch of another length was taken")
	}
	if _, err := assemble(&d, 256); err == nil {
		t.Error("a batch shorter than its blocks was begun")
	}
	d.length++
	if _, err := assemble(&d, 7); err == nil {
		t.Error("a batch of blocks outside of the image was begun")
	}
}

func TestFifo(t *testing.T) {
	var f fifo
	for _, b := range []int64{5, 6, 7, 100, 8, 6, 101} {
		f.add(b)
	}
	f.remove(7)
	f.add(7)
	if f.len() != 6 || !f.has(7) || f.has(9) {
		t.Errorf("%d blocks", f.len())
	}
	if got, want := f.take(4), []run{{5, 3}, {100, 1}}; !slices.Equal(got, want) {
		t.Errorf("took %v instead of %v", got, want)
	}
	if got, want := f.take(10), []run{{8, 1}, {101, 1}}; !slices.Equal(got, want) {
		t.Errorf("took %v instead of %v", got, want)
	}
	if f.take(10) != nil || f.len() != 0 {
		t.Error("something is left")
	}
	// Blocks far apart do not all fit one batch.
	for b := range int64(64) {
		f.add(b * 1e9)
	}
	for n := 0; f.len() > 0; {
		runs := f.take(maxBatchBlocks)
		if n += len(runs); len(encodeRuns(runs)) > maxBatchRuns || len(runs) == 0 {
			t.Fatalf("%d runs take %d bytes", len(runs), len(encodeRuns(runs)))
		}
	}
}

func TestCut(t *testing.T) {
	front, rest := cut([]run{{0, 3}, {10, 10}}, 8)
	if !slices.Equal(front, []run{{0, 3}, {10, 5}}) || !slices.Equal(rest, []run{{15, 5}}) {
		t.Errorf("%v and %v", front, rest)
	}
	var far []run
	for i := range int64(40) {
		far = append(far, run{i * 1e9, 1})
	}
	var all []run
	for len(far) > 0 {
		front, far = cut(far, 32)
		if len(front) == 0 || len(encodeRuns(front)) > maxBatchRuns {
			t.Fatalf("%d runs", len(front))
		}
		all = append(all, front...)
	}
	if len(all) != 40 {
		t.Errorf("%d runs are left of 40", len(all))
	}
}

func TestBlockSet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var s blockSet
	model := map[int64]bool{}
	for range 20000 {
		b := r.Int64N(10000)
		if r.IntN(3) == 0 {
			if s.remove(b) != model[b] {
				t.Fatal("remove")
			}
			delete(model, b)
		} else {
			if s.add(b) == model[b] {
				t.Fatal("add")
			}
			model[b] = true
		}
	}
	if s.n != int64(len(model)) {
		t.Errorf("%d blocks instead of %d", s.n, len(model))
	}
	var want []run
	for b := int64(100); b < 9000; b++ {
		if !model[b] {
			want = extend(want, b)
		}
	}
	if !slices.Equal(s.missing(100, 8900), want) {
		t.Error("missing")
	}
}
