// Package allocator decides how many clones a machine can carry.
//
// Memory is a hard limit, accounted before anything starts: a job's clones may
// all dirty all of their RAM, so all of it is reserved. Cores are soft: more
// virtual CPUs than cores run, only slower.
//
// A reservation is a file with a lock, in a folder that the machine's jobs
// share. The lock goes with the process that holds it, so a reservation whose
// job was killed counts for nothing and is removed by the next job that looks.
package allocator

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Overhead is what a clone's hypervisor takes besides the clone's RAM, in
// bytes: QEMU 7.2 without a guest has some 30 MB of its own.
const Overhead = 40 << 20

// Local allocates on this machine.
type Local struct {
	Dir string // where the jobs of this machine keep their reservations
}

// Demand is what a job asks for.
type Demand struct {
	Clones int   // n
	VCPUs  int   // of each clone
	Memory int64 // of each clone, bytes
	Strict bool  // cores are a hard limit too
}

// Grant is what it gets: m ≤ n clones, and the numbers behind that.
type Grant struct {
	Clones int
	Cores  int   // of this machine
	Free   int64 // bytes that could be given to clones
	Each   int64 // bytes that a clone takes, overhead included

	file *os.File
}

// reservation is the content of a reservation's file.
type reservation struct {
	PID    int   `json:"pid"`
	Memory int64 `json:"memory"`
}

// Reserve grants as many clones as fit and reserves their memory until
// [Grant.Release] or the end of the process.
func (l Local) Reserve(job string, d Demand) (*Grant, error) {
	if d.Clones < 1 || d.VCPUs < 1 || d.Memory <= 0 {
		return nil, fmt.Errorf("reserve memory: %d clones of %d virtual CPUs and %d bytes is not a demand", d.Clones, d.VCPUs, d.Memory)
	}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("reserve memory: %w", err)
	}
	// One at a time looks and reserves.
	all, err := lock(l.Dir, os.O_RDONLY, unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("reserve memory: %w", err)
	}
	defer all.Close()
	available, err := available()
	if err != nil {
		return nil, fmt.Errorf("reserve memory: %w", err)
	}
	reserved, err := l.reserved()
	if err != nil {
		return nil, fmt.Errorf("reserve memory: %w", err)
	}
	g := &Grant{Cores: runtime.NumCPU(), Free: max(0, available-reserved), Each: d.Memory + Overhead}
	g.Clones = int(min(int64(d.Clones), g.Free/g.Each))
	if d.Strict {
		g.Clones = min(g.Clones, g.Cores/d.VCPUs)
	}
	if g.Clones == 0 {
		return g, nil
	}
	f, err := lock(filepath.Join(l.Dir, job+".job"), os.O_RDWR|os.O_CREATE, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return nil, fmt.Errorf("reserve memory: %w", err)
	}
	if err := json.NewEncoder(f).Encode(reservation{os.Getpid(), int64(g.Clones) * g.Each}); err != nil {
		f.Close()
		return nil, fmt.Errorf("reserve memory: %w", err)
	}
	g.file = f
	return g, nil
}

// Release gives the memory back. It may be called more than once.
func (g *Grant) Release() {
	if g.file != nil {
		os.Remove(g.file.Name())
		g.file.Close()
		g.file = nil
	}
}

// reserved adds up what living jobs have reserved, and removes what dead ones
// left.
func (l Local) reserved() (int64, error) {
	files, err := filepath.Glob(filepath.Join(l.Dir, "*.job"))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, path := range files {
		f, err := lock(path, os.O_RDONLY, unix.LOCK_SH|unix.LOCK_NB)
		if err == nil { // nobody holds it
			os.Remove(path)
			f.Close()
			continue
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		var r reservation
		if err := json.Unmarshal(data, &r); err != nil {
			return 0, fmt.Errorf("read %s: %w", path, err)
		}
		sum += r.Memory
	}
	return sum, nil
}

// Clean removes what dead jobs left and says how many that were.
func (l Local) Clean() (int, error) {
	files, err := filepath.Glob(filepath.Join(l.Dir, "*.job"))
	if err != nil {
		return 0, err
	}
	if len(files) == 0 {
		return 0, nil
	}
	if _, err := l.reserved(); err != nil {
		return 0, err
	}
	left, err := filepath.Glob(filepath.Join(l.Dir, "*.job"))
	return len(files) - len(left), err
}

func lock(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// available is the kernel's estimate of what can be used without swapping.
func available() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return parseAvailable(f)
}

func parseAvailable(r io.Reader) (int64, error) {
	in := bufio.NewScanner(r)
	for in.Scan() {
		if rest, ok := strings.CutPrefix(in.Text(), "MemAvailable:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil || kb < 0 || kb > 1<<50 {
				return 0, fmt.Errorf("read /proc/meminfo: %q is not a size", rest)
			}
			return kb << 10, nil
		}
	}
	return 0, errors.New("read /proc/meminfo: it has no MemAvailable")
}
