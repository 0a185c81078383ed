package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"
)

func builtAgent(content []byte) fstest.MapFS { return fstest.MapFS{ranksBuilt: {Data: content}} }

// The agent is written once, and again when it is not what was written.
func TestAgentIsKeptInTheCache(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "bin")
	content := bytes.Repeat([]byte("agent"), 100)
	open := func() (path string, info os.FileInfo) {
		t.Helper()
		f, err := openProgram(builtAgent(content), folder)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if info, err = f.Stat(); err != nil {
			t.Fatal(err)
		}
		return f.Name(), info
	}
	path, first := open()
	if _, again := open(); !os.SameFile(first, again) {
		t.Error("it was written twice")
	}
	spoil := map[string]func() error{
		"others may write it": func() error { return os.Chmod(path, 0o777) },
		"it does not run":     func() error { return os.Chmod(path, 0o644) },
		"it is cut off":       func() error { return os.Truncate(path, 7) },
		"it is a link": func() error {
			os.Remove(path)
			return os.Symlink("/bin/true", path)
		},
	}
	if os.Geteuid() == 0 {
		spoil["it is another's"] = func() error { return os.Chown(path, 65534, 65534) }
	}
	for why, change := range spoil {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if f, err := openOwn(path, int64(len(content))); err == nil {
			f.Close()
			t.Errorf("%s, and it is taken", why)
		}
		open() // another is written
	}
	if left, _ := filepath.Glob(filepath.Join(folder, "*", ".new.*")); len(left) > 0 {
		t.Errorf("left there: %v", left)
	}
}

func TestAgentsOfOldVersionsGo(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "bin")
	var last string
	for i := range keptPrograms + 2 {
		f, err := openProgram(builtAgent(fmt.Appendf(nil, "version %d", i)), folder)
		if err != nil {
			t.Fatal(err)
		}
		last = f.Name()
		f.Close()
		time.Sleep(20 * time.Millisecond) // so that there is an order
	}
	kept, err := filepath.Glob(filepath.Join(folder, "*", "mpirun-sf"))
	if err != nil || len(kept) != keptPrograms {
		t.Errorf("kept %v, %v", kept, err)
	}
	if _, err := os.Stat(last); err != nil {
		t.Error(err)
	}
}

// Without make build, or without a cache, this program is the agent.
func TestAgentWithoutACache(t *testing.T) {
	if _, err := openProgram(fstest.MapFS{}, t.TempDir()); err == nil {
		t.Error("an agent that was not built is found")
	}
	t.Setenv("XDG_CACHE_HOME", "/proc/nonexistent")
	f, err := ranksProgram()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if self, err := os.Executable(); err != nil || f.Name() != self {
		t.Errorf("%s, and this is %s: %v", f.Name(), self, err)
	}
}
