package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestFreezer runs as the agent does: outside of the group, at the root of what
// it sees of the control groups, with nothing mounted there yet.
func TestFreezer(t *testing.T) {
	if !inOwnGroup(t) {
		return
	}
	if err := unix.Mount("none", cgroupRoot, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	f, err := newFreezer()
	if err != nil {
		t.Fatal(err)
	}
	if g, err := newFreezer(); err != nil {
		t.Errorf("where all is mounted already: %v", err)
	} else {
		g.close()
	}
	for _, other := range []string{"/other", "/sf/below"} {
		if err := os.Mkdir(cgroupRoot+other, 0o755); !errors.Is(err, syscall.EAGAIN) {
			t.Errorf("the group %s, where nothing is frozen, was made: %v", other, err)
		}
	}
	t.Run("nobody", func(t *testing.T) {
		for range 3 {
			if err := f.freeze(soon(t)); err != nil {
				t.Fatal(err)
			}
			if err := f.thaw(); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("all kinds", func(t *testing.T) { freezeAllKinds(t, f) })
	t.Run("start waits for the thaw", func(t *testing.T) { startWhileFrozen(t, f) })
	t.Run("freeze waits for a start", func(t *testing.T) { freezeWhileStarting(t, f) })
	t.Run("who cannot be frozen", func(t *testing.T) { freezeStuck(t, f) })
}

// freezeAllKinds freezes processes that compute, sleep, have stopped, and wait
// for a child.
func freezeAllKinds(t *testing.T, f *freezer) {
	dir := t.TempDir()
	counter := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"a", "b", "c"} {
		startIn(t, f, "while :; do i=$((i+1)); echo $i >"+counter(name)+"; done")
	}
	startIn(t, f, "sleep 60 & wait")
	startIn(t, f, "kill -STOP $$")
	startIn(t, f, "exec python3 -c 'import os, time\nif os.fork(): os.wait()\ntime.sleep(60)'")
	read := func(name string) string {
		b, _ := os.ReadFile(counter(name))
		return string(b)
	}
	var took []time.Duration
	for round := range 10 {
		before := read("a") + read("c")
		for end := time.Now().Add(10 * time.Second); read("a")+read("c") == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("round %d: nothing was counted for 10 s after a thaw", round)
			}
		}
		begin := time.Now()
		if err := f.freeze(soon(t)); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
		before = read("a") + read("b") + read("c")
		time.Sleep(20 * time.Millisecond)
		if after := read("a") + read("b") + read("c"); after != before {
			t.Errorf("round %d: frozen processes counted from %q to %q", round, before, after)
		}
		if err := f.thaw(); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(took)
	t.Logf("a freeze took %v (median), %v at most", took[len(took)/2], took[len(took)-1])
}

func startWhileFrozen(t *testing.T, f *freezer) {
	mark := filepath.Join(t.TempDir(), "mark")
	if err := f.freeze(soon(t)); err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	go func() { startIn(t, f, "echo ran >"+mark+"; sleep 60"); close(started) }()
	select {
	case <-started:
		t.Error("a process was started in a frozen group")
	case <-time.After(50 * time.Millisecond):
	}
	if err := f.thaw(); err != nil {
		t.Fatal(err)
	}
	<-started
	await(t, "the process's mark", func() bool { _, err := os.Stat(mark); return err == nil })
}

func freezeWhileStarting(t *testing.T, f *freezer) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	go f.start(&syscall.SysProcAttr{}, func() error { close(begun); <-goOn; return nil })
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := f.freeze(ctx); err == nil || !strings.Contains(err.Error(), "being started") {
		t.Errorf("a freeze beside a start that takes long ended with: %v", err)
	}
	close(goOn)
	// The freeze that was given up holds nobody back.
	if err := f.freeze(soon(t)); err != nil {
		t.Fatal(err)
	}
	if err := f.thaw(); err != nil {
		t.Fatal(err)
	}
}

// never is a file of which one read may begin, and is not answered before over
// is closed.
type never struct {
	fs.Inode
	begun, over chan struct{}
}

func (*never) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (n *never) Read(context.Context, fs.FileHandle, []byte, int64) (fuse.ReadResult, syscall.Errno) {
	close(n.begun)
	<-n.over
	return nil, syscall.EIO
}

var (
	_ = (fs.NodeOpener)((*never)(nil))
	_ = (fs.NodeReader)((*never)(nil))
)

// A process that waits for a server as 9P's client does, which no signal but
// KILL ends, is named, and the others run again.
func freezeStuck(t *testing.T, f *freezer) {
	at := t.TempDir()
	// It starts before there is a connection to the server, for it would inherit
	// that, and nothing would end a read of one's own.
	stuck := startIn(t, f, "until [ -e "+at+"/never ]; do sleep 0.01; done; exec head -c 1 "+at+"/never")
	mark := filepath.Join(t.TempDir(), "mark")
	startIn(t, f, "while :; do date +%N >"+mark+"; done")
	root, file := &fs.Inode{}, &never{begun: make(chan struct{}), over: make(chan struct{})}
	server, err := fs.Mount(at, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("never", root.NewPersistentInode(ctx, file, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
	})
	if err != nil {
		t.Fatalf("a file system of the test's own, which needs /dev/fuse: %v", err)
	}
	t.Cleanup(func() { close(file.over); server.Unmount() })
	select {
	case <-file.begun:
	case <-soon(t).Done():
		t.Fatal("waited 20 s for a read")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = f.freeze(ctx)
	if want := fmt.Sprintf("pid %d (head, state D", stuck); err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "pid ") != 1 {
		t.Errorf("the error is %v, and should name %q alone", err, want)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is no deadline's: %v", err)
	}
	before, _ := os.ReadFile(mark)
	await(t, "the others to run again", func() bool { now, _ := os.ReadFile(mark); return string(now) != string(before) })
}

func TestFreezerErrors(t *testing.T) {
	if _, err := newFreezerAt("/no/such/folder"); err == nil || !strings.Contains(err.Error(), "/no/such/folder") {
		t.Errorf("without a place for the groups: %v", err)
	}
	if _, err := newFreezerAt("/proc/self/status"); err == nil || !strings.Contains(err.Error(), "mount cgroup2 at /proc/self/status") {
		t.Errorf("over a file: %v", err)
	}
}

// startIn starts a shell in the group; it dies with the test.
func startIn(t *testing.T, f *freezer, script string) (pid int) {
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := f.start(cmd.SysProcAttr, cmd.Start); err != nil {
		t.Errorf("start %q: %v", script, err)
		return 0
	}
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() })
	return cmd.Process.Pid
}

// await waits for what takes no time on a machine that works.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

const ownGroupMark = "MPIRUN_SF_TEST_OWN_GROUP"

// inOwnGroup runs this test once more, in a process with namespaces of its own
// and in a control group that it sees as the root. It is true in there.
func inOwnGroup(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownGroupMark) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Fatal("only root may mount control groups: this test needs root")
	}
	// The thread, which alone sees the mount, ends with the test.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Fatalf("make a mount namespace: %v", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount control groups of version 2, which this test needs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	own := filepath.Join(root, fmt.Sprintf("mpirun-sf-test-%d", os.Getpid()))
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeGroup(t, own) })
	dir, err := os.Open(own)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), ownGroupMark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP,
		UseCgroupFD:  true, CgroupFD: int(dir.Fd()),
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in a control group of its own: %v\n%s", err, out)
	} else {
		t.Logf("in a control group of its own:\n%s", out)
	}
	return false
}

// removeGroup kills what lives in a group, and removes it and those below.
func removeGroup(t *testing.T, dir string) {
	os.WriteFile(dir+"/cgroup.freeze", []byte("0"), 0)
	os.WriteFile(dir+"/cgroup.kill", []byte("1"), 0)
	await(t, "the end of a test's processes", func() bool {
		var below []string
		filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				below = append(below, path)
			}
			return nil
		})
		for _, d := range slices.Backward(below) {
			unix.Rmdir(d)
		}
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
}
