package carrier

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
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
