package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// buildForTest is what this test binary does when it is started as another
// process: obtain the image of a key, with a root that takes a moment or forever.
func buildForTest() {
	var job childJob
	if err := json.Unmarshal([]byte(os.Args[2]), &job); err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	cache := &Cache{Dir: job.Dir}
	m := &Manifest{Key: job.Key, Source: "machine"}
	img, err := cache.obtain(context.Background(), m, job.Kernel, job.Agent, func(s string) { fmt.Println(s) }, func(dst string) error {
		fmt.Println("filling", filepath.Dir(dst))
		time.Sleep(job.Sleep)
		return os.WriteFile(dst, make([]byte, 1<<20), 0o600)
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("got", img.Key, "found", img.Found)
	time.Sleep(job.Hold)
	img.Release()
}

type childJob struct {
	Dir, Key, Agent string
	Kernel          *Kernel
	Sleep, Hold     time.Duration
}

func (j childJob) start(t *testing.T) (*exec.Cmd, *syncBuffer) {
	t.Helper()
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "build-for-test", string(b))
	out := new(syncBuffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, out
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// eventually waits for what another process does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func keyOf(c byte) string { return strings.Repeat(string(c), 64) }

// fill puts an image of that many bytes into the cache.
func fill(t *testing.T, c *Cache, k *Kernel, key string, size int) *Image {
	t.Helper()
	m := &Manifest{Key: key, Source: "machine"}
	img, err := c.obtain(t.Context(), m, k, k.Path, func(string) {}, func(dst string) error {
		return os.WriteFile(dst, bytes.Repeat([]byte{1}, size), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestTwoLaunchersBuildOnce(t *testing.T) {
	k := fakeKernel(t)
	job := childJob{Dir: filepath.Join(t.TempDir(), "cache"), Key: keyOf('a'), Agent: k.Path, Kernel: k, Sleep: 500 * time.Millisecond}
	c1, out1 := job.start(t)
	c2, out2 := job.start(t)
	if err := errors.Join(c1.Wait(), c2.Wait()); err != nil {
		t.Fatalf("%v\n%s%s", err, out1, out2)
	}
	both := out1.String() + out2.String()
	for want, n := range map[string]int{"filling": 1, "found false": 1, "found true": 1, "waiting for another mpirun-sf": 1} {
		if strings.Count(both, want) != n {
			t.Errorf("%q not said %d times:\n%s", want, n, both)
		}
	}
	left, _ := filepath.Glob(filepath.Join(job.Dir, "*", "*"))
	if len(left) != 1 || filepath.Base(left[0]) != job.Key[:keyDigits] {
		t.Errorf("the cache holds %v, want one image", left)
	}
}

func TestKilledBuilderLeavesNothing(t *testing.T) {
	k := fakeKernel(t)
	job := childJob{Dir: filepath.Join(t.TempDir(), "cache"), Key: keyOf('b'), Agent: k.Path, Kernel: k, Sleep: time.Minute}
	cmd, out := job.start(t)
	eventually(t, "the builder is at work", func() bool { return strings.Contains(out.String(), "filling") })
	cache := &Cache{Dir: job.Dir}
	tmp := func() []string { got, _ := filepath.Glob(filepath.Join(job.Dir, "images", "tmp-*")); return got }
	// While it lives, nobody takes its folder away.
	if _, err := cache.List(); err != nil {
		t.Fatal(err)
	}
	if len(tmp()) != 1 {
		t.Fatalf("temporary folders of a living builder: %v", tmp())
	}
	cmd.Process.Signal(unix.SIGKILL)
	cmd.Wait()
	fill(t, cache, k, job.Key, 1<<20).Release()
	if len(tmp()) != 0 {
		t.Errorf("left by the killed builder: %v", tmp())
	}
}

func TestEviction(t *testing.T) {
	k := fakeKernel(t)
	c := &Cache{Dir: filepath.Join(t.TempDir(), "cache"), Limit: 3<<20 + 200<<10}
	names := func() string {
		entries, err := c.List()
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, e := range entries {
			s = append(s, e.Key[:1])
		}
		return strings.Join(s, "")
	}
	age := func(key string, d time.Duration) {
		when := time.Now().Add(-d)
		if err := os.Chtimes(filepath.Join(c.entry(key), manifestName), when, when); err != nil {
			t.Fatal(err)
		}
	}
	a := fill(t, c, k, keyOf('a'), 1<<20)
	fill(t, c, k, keyOf('b'), 1<<20).Release()
	fill(t, c, k, keyOf('c'), 1<<20).Release()
	age(keyOf('a'), 3*time.Hour) // the oldest, but in use
	age(keyOf('b'), 2*time.Hour)
	age(keyOf('c'), time.Hour)
	fill(t, c, k, keyOf('d'), 1<<20).Release()
	if got := names(); got != "dca" {
		t.Errorf("after the limit was passed: %q, want b evicted", got)
	}
	// A checkpoint counts, and goes with its image.
	write(t, filepath.Join(c.entry(keyOf('c')), "checkpoint", "memory"), strings.Repeat("x", 1<<20), 0o600)
	removed, err := c.Trim()
	if err != nil || len(removed) != 1 || removed[0] != keyOf('c')[:keyDigits] {
		t.Errorf("trim removed %v, %v", removed, err)
	}
	if err := c.Remove(keyOf('a')); !errors.Is(err, ErrInUse) {
		t.Errorf("remove an image in use: %v", err)
	}
	a.Release()
	a.Release()
	if err := c.Remove(keyOf('a')[:keyDigits]); err != nil {
		t.Error(err)
	}
	if err := c.Remove(keyOf('a')); !errors.Is(err, ErrNoImage) {
		t.Errorf("remove it again: %v", err)
	}
	if _, err := c.Use(keyOf('a')); !errors.Is(err, ErrNoImage) {
		t.Errorf("use it: %v", err)
	}
	for _, bad := range []string{"", "abc", "../../../etc/passwd", keyOf('a') + "a"} {
		if err := c.Remove(bad); !errors.Is(err, ErrNoImage) {
			t.Errorf("remove %q: %v", bad, err)
		}
	}
	if got := names(); got != "d" {
		t.Errorf("in the end: %q", got)
	}
}

func TestUseBetweenProcesses(t *testing.T) {
	k := fakeKernel(t)
	job := childJob{Dir: filepath.Join(t.TempDir(), "cache"), Key: keyOf('e'), Agent: k.Path, Kernel: k, Hold: time.Minute}
	cmd, out := job.start(t)
	eventually(t, "the other process uses the image", func() bool { return strings.Contains(out.String(), "got") })
	cache := &Cache{Dir: job.Dir}
	list, err := cache.List()
	if err != nil || len(list) != 1 || !list[0].InUse || list[0].Err != nil || list[0].Size < 1<<20 {
		t.Fatalf("list: %+v, %v", list, err)
	}
	if err := cache.Remove(job.Key); !errors.Is(err, ErrInUse) {
		t.Errorf("remove: %v", err)
	}
	cmd.Process.Signal(unix.SIGKILL)
	cmd.Wait()
	if err := cache.Remove(job.Key); err != nil {
		t.Errorf("remove after the user was killed: %v", err)
	}
}

// An entry that is not whole is made again.
func TestBrokenEntryIsReplaced(t *testing.T) {
	k := fakeKernel(t)
	for name, damage := range map[string]func(dir string) error{
		"no manifest":    func(dir string) error { return os.Remove(filepath.Join(dir, manifestName)) },
		"empty manifest": func(dir string) error { return os.Truncate(filepath.Join(dir, manifestName), 0) },
		"short root":     func(dir string) error { return os.Truncate(filepath.Join(dir, rootName), 17) },
		"no kernel":      func(dir string) error { return os.Remove(filepath.Join(dir, kernelName)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := &Cache{Dir: filepath.Join(t.TempDir(), "cache")}
			img := fill(t, c, k, keyOf('a'), 1<<20)
			img.Release()
			if err := damage(img.Dir); err != nil {
				t.Fatal(err)
			}
			if list, err := c.List(); err != nil || len(list) != 1 || list[0].Err == nil {
				t.Errorf("list: %+v, %v", list, err)
			}
			again := fill(t, c, k, keyOf('a'), 1<<20)
			defer again.Release()
			if again.Found {
				t.Error("the broken entry was used")
			}
		})
	}
}

func TestLockOfImage(t *testing.T) {
	k := fakeKernel(t)
	img := fill(t, &Cache{Dir: filepath.Join(t.TempDir(), "cache")}, k, keyOf('a'), 1<<20)
	defer img.Release()
	unlock, err := img.Lock(t.Context(), "checkpoint", time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	if _, err := img.Lock(t.Context(), "checkpoint", 50*time.Millisecond, func() { told++ }); err == nil || told != 1 {
		t.Errorf("second lock: %v, told %d times", err, told)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := img.Lock(ctx, "checkpoint", time.Minute, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock with a context that ends: %v", err)
	}
	unlock()
	unlock, err = img.Lock(t.Context(), "checkpoint", time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// The cache's folders are its user's alone, whatever the umask was.
func TestCacheIsPrivate(t *testing.T) {
	k := fakeKernel(t)
	c := &Cache{Dir: filepath.Join(t.TempDir(), "cache")}
	if err := os.MkdirAll(c.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	img := fill(t, c, k, keyOf('a'), 1<<20)
	defer img.Release()
	for path, want := range map[string]os.FileMode{c.Dir: 0o700, c.images(): 0o700, img.Dir: 0o700, img.Root: 0o600, img.Initramfs: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

func TestUnwritableCache(t *testing.T) {
	c := &Cache{Dir: "/proc/no-such-place/cache"}
	m := &Manifest{Key: keyOf('a'), Source: "machine"}
	_, err := c.obtain(t.Context(), m, fakeKernel(t), "", func(string) {}, nil)
	if err == nil || !strings.Contains(err.Error(), "XDG_CACHE_HOME") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if list, err := c.List(); len(list) != 0 || err != nil {
		t.Errorf("list: %v, %v", list, err)
	}
}

func FuzzParseManifest(f *testing.F) {
	good, err := json.Marshal(&Manifest{Version: manifestVersion, Key: keyOf('a'), Source: "machine", Files: Sizes{1, 2, 3}, Used: 3})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseManifest(good); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add(append(bytes.Clone(good), "{}"...))
	f.Add(bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1))
	f.Add([]byte(`{"version":1,"key":null,"files":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err == nil && (len(m.Key) != 64 || m.Files.Root <= 0 || m.Version != manifestVersion) {
			t.Errorf("accepted %+v", m)
		}
	})
}
