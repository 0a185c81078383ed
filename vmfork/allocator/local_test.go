package allocator

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

func reserve(t *testing.T, l Local, job string, d Demand) *Grant {
	t.Helper()
	g, err := l.Reserve(job, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Release)
	return g
}

// files are the reservations in the folder, by name.
func files(t *testing.T, l Local) []string {
	t.Helper()
	paths, err := l.files()
	if err != nil {
		t.Fatal(err)
	}
	for i := range paths {
		paths[i] = filepath.Base(paths[i])
	}
	return paths
}

// share is a part of the memory that is free now, for one clone.
func share(t *testing.T, parts int64) int64 {
	t.Helper()
	free, err := Available()
	if err != nil {
		t.Fatal(err)
	}
	return free/parts - Overhead
}

func TestMemoryIsAHardLimit(t *testing.T) {
	l := Local{Dir: t.TempDir()}
	d := Demand{Clones: 100, VCPUs: 1, Memory: share(t, 4) + share(t, 40)}
	g := reserve(t, l, "a", d)
	if g.Clones < 2 || g.Clones > 3 {
		t.Fatalf("%d clones of %d MB fit into %d MB", g.Clones, d.Memory>>20, g.Free>>20)
	}
	// What one job reserved, another does not get.
	h := reserve(t, l, "b", d)
	if h.Clones >= g.Clones {
		t.Errorf("the second job got %d clones, the first %d", h.Clones, g.Clones)
	}
	g.Release()
	h.Release()
	g.Release()
	if left := files(t, l); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCoresAreSoftUnlessStrict(t *testing.T) {
	l := Local{Dir: t.TempDir()}
	d := Demand{Clones: 4 * runtime.NumCPU(), VCPUs: 1, Memory: 1 << 20}
	soft := reserve(t, l, "soft", d)
	if soft.Clones != d.Clones || len(soft.VCPUs) != d.Clones {
		t.Fatalf("%+v", soft)
	}
	// Another job's are not counted, the job's own are.
	d.Strict = true
	if g := reserve(t, l, "strict", d); g.Clones != runtime.NumCPU() {
		t.Fatalf("%+v", g)
	}
	if g := reserve(t, l, "strict", d); g.Clones != 0 {
		t.Errorf("a job that has all the cores got %d clones more", g.Clones)
	}
}

func TestHierarchicalGrants(t *testing.T) {
	l := Local{Dir: t.TempDir()}
	d := Demand{Clones: 5, Hierarchical: true, MaxVCPUs: 4, Memory: 1 << 20}
	g := reserve(t, l, "job", d)
	if want := []int{3, 2}; g.Clones != 2 || !slices.Equal(g.VCPUs, want) {
		t.Errorf("5 processors: %d clones of %v, want %v", g.Clones, g.VCPUs, want)
	}
	before := reserve(t, l, "job", Demand{Clones: 1, VCPUs: 1, Memory: 1 << 20}).Free
	g.Release()
	after := reserve(t, l, "job", Demand{Clones: 1, VCPUs: 1, Memory: 1 << 20}).Free
	// Two clones' memory, but one clone was reserved in between; and the machine's others go on.
	if freed := after - before - g.Each; freed > 1<<30 || freed < -1<<30 {
		t.Errorf("released two clones of %d bytes, and %d came free", g.Each, after-before)
	}
	d.Strict, d.Clones = true, 1000
	if g := reserve(t, l, "strict", d); sum(g.VCPUs) != runtime.NumCPU() {
		t.Errorf("%d virtual CPUs on %d cores", sum(g.VCPUs), runtime.NumCPU())
	}
}

func sum(all []int) (sum int) {
	for _, n := range all {
		sum += n
	}
	return sum
}

// A job has a ticket, and another, and gives them back in another order.
func TestJobReservesManyTimes(t *testing.T) {
	l := Local{Dir: t.TempDir()}
	d := Demand{Clones: 1, VCPUs: 1, Memory: share(t, 6)}
	var grants []*Grant
	for {
		g := reserve(t, l, "job", d)
		if g.Clones == 0 {
			break
		}
		grants = append(grants, g)
	}
	if len(grants) < 4 || len(grants) > 7 {
		t.Fatalf("%d clones of a sixth of what is free were granted one by one", len(grants))
	}
	if got := files(t, l); len(got) != len(grants) || got[0] != "job.1.job" {
		t.Errorf("files %v", got)
	}
	for _, g := range grants[1:3] {
		g.Release()
	}
	d.Clones = 4
	if g := reserve(t, l, "job", d); g.Clones < 1 || g.Clones > 3 {
		t.Errorf("after two releases, %d clones were granted", g.Clones)
	}
	if got := files(t, l); len(got) != len(grants)-1 {
		t.Errorf("files %v", got)
	}
}

func TestDeadJobsReserveNothing(t *testing.T) {
	l := Local{Dir: t.TempDir()}
	if n, err := (Local{Dir: filepath.Join(l.Dir, "none")}).Clean(); err != nil || n != 0 {
		t.Errorf("clean a folder that is not there: %d, %v", n, err)
	}
	leave := func(names ...string) {
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(l.Dir, name), []byte(`{"pid":1,"memory":1000000000000000}`), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	leave("dead.job", "job.1.job", "job.2.job")
	g := reserve(t, l, "job", Demand{Clones: 1, VCPUs: 1, Memory: 1 << 20})
	if g.Clones != 1 {
		t.Fatalf("%+v", g)
	}
	if got := files(t, l); !slices.Equal(got, []string{"job.1.job"}) {
		t.Errorf("files %v", got)
	}
	leave("dead.job", "dead.7.job")
	if n, err := l.Clean(); err != nil || n != 2 {
		t.Errorf("cleaned %d, %v; want 2", n, err)
	}
	if got := files(t, l); !slices.Equal(got, []string{"job.1.job"}) {
		t.Errorf("after Clean: files %v", got)
	}
}

func TestUnreadableReservationIsNamed(t *testing.T) {
	l := Local{Dir: t.TempDir()}
	path := filepath.Join(l.Dir, "other.1.job")
	if err := os.WriteFile(path, []byte("no JSON"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := lock(path, os.O_RDWR, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := l.Reserve("job", Demand{Clones: 1, VCPUs: 1, Memory: 1}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}

func TestReserveFromManyGoroutines(t *testing.T) {
	l := Local{Dir: t.TempDir()}
	d := Demand{Clones: 1, VCPUs: 1, Memory: share(t, 10)}
	var mu sync.Mutex
	var most, held int
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 10 {
				g, err := l.Reserve(fmt.Sprintf("job-%d", i%2), d)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				held += g.Clones
				most = max(most, held)
				mu.Unlock()
				runtime.Gosched()
				mu.Lock()
				held -= g.Clones
				mu.Unlock()
				var twice sync.WaitGroup
				twice.Go(g.Release)
				twice.Go(g.Release)
				twice.Wait()
			}
		})
	}
	all.Wait()
	if most < 1 || most > 11 {
		t.Errorf("%d clones of a tenth of what is free were held at once", most)
	}
	if left := files(t, l); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func FuzzParseReservation(f *testing.F) {
	f.Add([]byte(`{"job":"a","pid":1,"memory":1073741824,"vcpus":4}`))
	f.Add([]byte(`{"pid":1,"memory":-1}`))
	f.Add([]byte(`{"memory":9223372036854775807}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseReservation(text)
		if err == nil && (r.Memory < 0 || r.Memory > maxMemory || r.VCPUs < 0) {
			t.Fatalf("%q gave %+v", text, r)
		}
	})
}

// Where a machine's kernel does not know what there is, somebody else says it.
func TestMachine(t *testing.T) {
	kind := hypervisor.Kind{Room: func() (int, int64, error) { return 3, 10 << 30, nil }}
	l := Local{Dir: t.TempDir(), Machine: MachineOf(kind)}
	g, err := l.Reserve("job", Demand{Clones: 100, Memory: 1<<30 - Overhead, VCPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Release()
	if g.Clones != 10 || g.Cores != 3 {
		t.Errorf("10 GB and 3 processors are room for %d clones of 1 GB, with %d cores", g.Clones, g.Cores)
	}
	if room, err := l.Room(); err != nil || room != (Room{CPUs: 3}) {
		t.Errorf("when they are reserved there is %+v (%v)", room, err)
	}
	kind.Room = func() (int, int64, error) { return 0, 0, io.ErrUnexpectedEOF }
	if _, err := (Local{Dir: t.TempDir(), Machine: MachineOf(kind)}).Room(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("what cannot be said: %v", err)
	}
	if MachineOf(hypervisor.Kind{}) != nil {
		t.Error("guests that have theirs of this kernel")
	}
}
