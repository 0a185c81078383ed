package memtap

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

func TestRecorder(t *testing.T) {
	r := newRecorder(100*page + 1)
	for _, b := range []int64{7, 3, 4, 3, 100, 50} {
		r.read(b*page, page)
	}
	r.read(49*page+5, 2*page)
	if got, want := r.trace(), (Trace{{7, 1}, {3, 2}, {100, 1}, {50, 1}, {49, 1}, {51, 1}}); !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
	next, rest := r.push(Run{47, 10}, 8)
	if next != (Run{47, 2}) || rest != (Run{49, 8}) {
		t.Errorf("push %v, then %v", next, rest)
	}
	if next, rest = r.push(rest, 3); next != (Run{52, 3}) || rest != (Run{55, 2}) {
		t.Errorf("push %v, then %v", next, rest)
	}
	if next, rest = r.push(Run{3, 2}, 3); next.Count != 0 || rest.Count != 0 {
		t.Errorf("push %v, then %v of what was read", next, rest)
	}
	r.read(0, 100*page)
	if got, want := r.trace()[:4], (Trace{{47, 2}, {52, 3}, {7, 1}, {3, 2}}); !slices.Equal(got, want) {
		t.Errorf("pushed and read %v, want %v", got, want)
	}
	if n := r.trace().Blocks(); n != 101 {
		t.Errorf("%d blocks of 101", n)
	}
}

// TestTraceKeepsItsBound through generations, and what was read last is in it.
func TestTraceKeepsItsBound(t *testing.T) {
	const blocks = 4 * maxTrace
	var inherited Trace
	for generation := range int64(8) {
		r := newRecorder(blocks * page)
		for _, run := range inherited {
			for run.Count > 0 {
				_, run = r.push(run, maxStore)
			}
		}
		first := generation * 3000 % (blocks - 2*maxOwn)
		for b := range int64(2 * maxOwn) {
			r.read((first+b)*page, page)
		}
		inherited = r.trace()
		if n := inherited.Blocks(); n > maxTrace || generation > 1 && n < maxTrace {
			t.Errorf("generation %d has a trace of %d blocks", generation, n)
		}
		last := inherited[len(inherited)-1]
		if end := int64(last.First + last.Count); end <= first || end > first+2*maxOwn {
			t.Errorf("generation %d has a trace that ends with %v", generation, last)
		}
		if err := inherited.check(); err != nil {
			t.Error(err)
		}
	}
}

func TestTraceRoundTrip(t *testing.T) {
	long := make(Trace, maxTrace)
	for i := range long {
		long[i] = Run{uint32(2 * i), 1}
	}
	for _, trace := range []Trace{{}, {{0, 1}}, {{9, 3}, {0, 2}, {1<<32 - 2, 1}}, long} {
		data, err := trace.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(data)) > MaxTraceBytes {
			t.Errorf("%d bytes are more than %d", len(data), MaxTraceBytes)
		}
		var back Trace
		if err := back.UnmarshalBinary(data); err != nil || !slices.Equal(back, trace) {
			t.Errorf("%d runs became %d, %v", len(trace), len(back), err)
		}
		for i := range min(len(data), 64) {
			damaged := slices.Clone(data)
			damaged[i] ^= 1
			if err := back.UnmarshalBinary(damaged); !errors.Is(err, ErrTrace) {
				t.Errorf("with byte %d damaged: %v", i, err)
			}
			if err := back.UnmarshalBinary(data[:len(data)-1-i]); !errors.Is(err, ErrTrace) {
				t.Errorf("with %d bytes cut off: %v", i+1, err)
			}
		}
		if !slices.Equal(back, trace) {
			t.Error("what cannot be decoded changed a trace")
		}
	}
	for _, bad := range []Trace{{{0, 0}}, {{1<<32 - 1, 1}}, {{0, maxTrace}, {maxTrace, 1}}, append(long, Run{1, 1})} {
		if _, err := bad.MarshalBinary(); err == nil {
			t.Errorf("encoded %d runs of %d blocks", len(bad), bad.Blocks())
		}
	}
}

func FuzzTrace(f *testing.F) {
	for _, trace := range []Trace{{}, {{0, 1}}, {{9, 3}, {0, 2}}} {
		data, err := trace.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)-1])
	}
	f.Add([]byte(traceMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		var trace Trace
		if err := trace.UnmarshalBinary(data); err != nil {
			if !errors.Is(err, ErrTrace) || trace != nil {
				t.Errorf("%v, and %v", err, trace)
			}
			return
		}
		back, err := trace.MarshalBinary()
		if err != nil || string(back) != string(data) {
			t.Errorf("%x became %x, %v", data, back, err)
		}
	})
}

// TestTraceOfAFile: what its readers had to ask for, in order, as far as the kernel's window goes.
func TestTraceOfAFile(t *testing.T) {
	tap := mounted(t, Options{Window: page})
	path, _ := memory(t, tap, "memory", strings.Repeat("a0", 32))
	guest := opened(t, path)
	for _, b := range []int{9, 2, 40, 2, 3} {
		guest.do("get %d", b*page)
	}
	opened(t, path).do("get %d", 9*page)
	if got, want := tap.Trace("memory"), (Trace{{9, 1}, {2, 1}, {40, 1}, {3, 1}}); !slices.Equal(got, want) {
		t.Errorf("trace %v, want %v", got, want)
	}
	disked, _ := disk(t, tap, "disk", sealed(t, slice.Disk, t.TempDir()+"/root", "ab"))
	opened(t, disked).want("a 1", "read 0 1")
	if got := fmt.Sprint(tap.Trace("disk"), tap.Trace("nothing")); got != "[] []" {
		t.Errorf("traces of a disk and of nothing: %s", got)
	}
}
