package sfld

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// TestWorkingSet: what was read of a VM's memory is in the page cache of what
// it goes on over after a fork, as it is by then.
func TestWorkingSet(t *testing.T) {
	e, d := testEngine(t)
	read := func(g *generation) string {
		t.Helper()
		path := filepath.Join(filepath.Dir(d.disk(t, "parent")), g.name)
		out, err := exec.CommandContext(soon(t), "head", "-c", "8192", path).Output() // not by this process, which serves it
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	startVM(t, e)
	if got := read(e.booted); got != strings.Repeat("x", slice.BlockSize)+strings.Repeat("\x00", slice.BlockSize) {
		t.Errorf("the booted guest's memory begins with %.20q", got)
	}
	memory := func() (pushed, reads int64) {
		n, err := e.local.Counters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n.Memory.BytesPushed, n.Memory.Reads
	}
	for range 2 {
		before, _ := memory()
		fromHost(t, e, "ok checkpoint=", "checkpoint-parent")
		e.mu.Lock()
		g := e.machines[0].base
		e.mu.Unlock()
		end := time.Now().Add(20 * time.Second)
		for pushed := before; pushed < before+2*slice.BlockSize; pushed, _ = memory() {
			if time.Now().After(end) {
				t.Fatalf("pushed %d bytes", pushed-before)
			}
			time.Sleep(time.Millisecond)
		}
		_, reads := memory()
		got := read(g)
		if want := strings.Repeat("x", slice.BlockSize); got[:slice.BlockSize] != want || !strings.Contains(got[slice.BlockSize:], "parent parent") {
			t.Errorf("the memory after a fork begins with %.20q, and then %.20q", got, got[slice.BlockSize:])
		}
		if _, now := memory(); now != reads {
			t.Errorf("it was read %d times", now-reads)
		}
	}
}
