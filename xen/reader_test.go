package xen

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The process that reads a memory file gives what it has, in order, and says what is wrong with it.
func TestReader(t *testing.T) {
	v := &vm{d: &Driver{}}
	v.cfg.MemoryPath = filepath.Join(t.TempDir(), "memory")
	if _, err := os.Stat(self); err != nil {
		t.Skip(err)
	}
	content := make([]byte, 3*writeSize)
	for i := range content {
		content[i] = byte(i / pageSize)
	}
	if err := os.WriteFile(v.cfg.MemoryPath, content, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := v.startReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, pageSize)
	for _, at := range []int64{0, 5 * pageSize, 2 * writeSize, 3*writeSize - pageSize} {
		if n, err := r.ReadAt(b, at); n != len(b) || err != nil || !bytes.Equal(b, content[at:][:pageSize]) {
			t.Errorf("at %d: %d bytes (%v)", at, n, err)
		}
	}
	if _, err := r.ReadAt(b, 0); err == nil {
		t.Error("it went back")
	}
	if n, err := r.ReadAt(b, 3*writeSize); n != 0 || err == nil {
		t.Errorf("behind the end are %d bytes", n)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for range 2 { // closed in the middle; and without a file
		if r, err = v.startReader(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := r.ReadAt(b, 0)
		if closed := r.Close(); closed != nil {
			t.Error(closed)
		}
		if v.cfg.MemoryPath == "/nowhere" {
			if err == nil || !strings.Contains(err.Error(), "/nowhere: no such file or directory") {
				t.Errorf("without a file: %v", err)
			}
		} else if err != nil {
			t.Error(err)
		}
		v.cfg.MemoryPath = "/nowhere"
	}
}
