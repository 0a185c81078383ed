package memtap

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

func TestUnmountWhileBusy(t *testing.T) {
	tap := mounted(t, Options{})
	path, _ := memory(t, tap, "memory", strings.Repeat("a", 256))
	c := opened(t, path)
	c.want("a", "get 0")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := tap.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tap.Unmount(ctx); err != nil {
		t.Errorf("again: %v", err)
	}
	if table, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(table, []byte(tap.Dir())) {
		t.Error("still mounted")
	}
	c.want("fault", "get %d", 200*page)
}

// TestUnmountWithACopyElsewhere: a mount namespace that was made in the meantime keeps a mount alive.
func TestUnmountWithACopyElsewhere(t *testing.T) {
	tap := mounted(t, Options{})
	path, _ := memory(t, tap, "memory", "ab")
	elsewhere := exec.Command("unshare", "--mount", "sh", "-c", "echo; exec cat")
	in, err := elsewhere.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := elsewhere.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Start(); err != nil {
		t.Fatalf("this test needs unshare and root: %v", err)
	}
	defer elsewhere.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c := opened(t, path)
	c.want("a", "get 0")
	c.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := tap.Unmount(ctx); err != nil {
		t.Error(err)
	}
}

func TestUnmountedByAnotherHand(t *testing.T) {
	tap := mounted(t, Options{})
	run(t, "umount", tap.Dir())
	select {
	case <-tap.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the server did not notice")
	}
	if err := tap.Unmount(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestDeadMemtapIsAFaultAndNoHang kills the server under a mapping.
func TestDeadMemtapIsAFaultAndNoHang(t *testing.T) {
	if err := Probe(); err != nil {
		t.Fatalf("this test mounts FUSE: %v", err)
	}
	dir := t.TempDir()
	sealed(t, slice.Memory, filepath.Join(dir, "ram"), strings.Repeat("a", 256))
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	server := startChild(t)
	server.want("ok", "serve %s", dir)
	defer unix.Unmount(mnt, unix.MNT_DETACH)
	c := opened(t, filepath.Join(mnt, "memory"))
	c.want("a", "get 0")
	server.stop()
	c.want("fault", "get %d", 200*page)
}
