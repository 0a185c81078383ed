package sfld

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

func TestTraceIsKeptOnce(t *testing.T) {
	dir := t.TempDir()
	path, tmp := filepath.Join(dir, traceFile), filepath.Join(dir, "tmp")
	if got := loadTrace(path); got != nil {
		t.Errorf("loaded %v from nothing", got)
	}
	first := memtap.Trace{{First: 7, Count: 2}, {First: 1, Count: 1}}
	for _, trace := range []memtap.Trace{first, {{First: 9, Count: 9}}} {
		if err := saveTrace(path, tmp, trace); err != nil {
			t.Fatal(err)
		}
		if got := loadTrace(path); !slices.Equal(got, first) {
			t.Errorf("loaded %v, want %v", got, first)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("its file is %v, %v", st, err)
	}
	if _, err := os.Lstat(tmp); err == nil {
		t.Error("a temporary file is left")
	}
	if err := saveTrace(filepath.Join(dir, "gone", traceFile), tmp, first); err == nil {
		t.Error("saved in a folder that there is not")
	}
	if _, err := os.Lstat(tmp); err == nil {
		t.Error("a temporary file is left after an error")
	}
}

func TestDamagedTraceIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, traceFile)
	trace := memtap.Trace{{First: 7, Count: 2}}
	whole, err := trace.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, damaged := range [][]byte{{}, whole[:9], append(slices.Clone(whole), 0), make([]byte, memtap.MaxTraceBytes+100)} {
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := loadTrace(path); got != nil {
			t.Errorf("loaded %v from %d damaged bytes", got, len(damaged))
		}
		if err := saveTrace(path, filepath.Join(dir, "tmp"), trace); err != nil {
			t.Fatal(err)
		}
		if got := loadTrace(path); !slices.Equal(got, trace) {
			t.Errorf("loaded %v, want %v", got, trace)
		}
	}
}

// TestWorkingSet: what was read of a VM's memory is in the page cache of what
// it goes on over after a fork, as it is by then.
func TestWorkingSet(t *testing.T) {
	e, _ := testEngine(t)
	e.booted.folder = t.TempDir()
	read := func(g *generation) string {
		t.Helper()
		out, err := exec.CommandContext(soon(t), "head", "-c", "8192", g.path).Output() // not by this process, which serves it
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if got := read(e.booted); got != strings.Repeat("x", slice.BlockSize)+strings.Repeat("\x00", slice.BlockSize) {
		t.Errorf("the booted guest's memory begins with %.20q", got)
	}
	startVM(t, e)
	for range 2 {
		fromHost(t, e, "ok checkpoint=", "checkpoint-parent")
		e.mu.Lock()
		g := e.machines[0].base
		e.mu.Unlock()
		for end := time.Now().Add(20 * time.Second); e.tap.Counters(g.name).BytesPushed < 2*slice.BlockSize; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("pushed %d bytes", e.tap.Counters(g.name).BytesPushed)
			}
		}
		got := read(g)
		if want := strings.Repeat("x", slice.BlockSize); got[:slice.BlockSize] != want || !strings.Contains(got[slice.BlockSize:], "parent parent") {
			t.Errorf("the memory after a fork begins with %.20q, and then %.20q", got, got[slice.BlockSize:])
		}
		if n := e.tap.Counters(g.name); n.Reads != 0 {
			t.Errorf("it was read %d times", n.Reads)
		}
	}
	path := filepath.Join(e.booted.folder, traceFile)
	for end := time.Now().Add(20 * time.Second); loadTrace(path) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no trace is kept")
		}
	}
	if got, want := loadTrace(path), e.tap.Trace(e.booted.name); !slices.Equal(got, want) || got[0].First != 0 {
		t.Errorf("the trace %v is kept, want %v", got, want)
	}
}
