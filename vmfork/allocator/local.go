package allocator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// lockWait is how long Reserve and Clean wait for others that look and reserve,
// which takes each of them milliseconds.
const lockWait = 10 * time.Second

// Local allocates on this machine.
type Local struct {
	Dir string // where the jobs of this machine keep their reservations

	// Machine says what there is for clones, those that live counted as if they did not. Without it, that is what this
	// kernel has, which in a machine beside its clones is its own share.
	Machine func() (Room, error)
}

// reservation is the content of a reservation's file.
type reservation struct {
	Job    string `json:"job"`
	PID    int    `json:"pid"`
	Memory int64  `json:"memory"` // bytes, of all clones
	VCPUs  int    `json:"vcpus"`  // of all clones
}

// Reserve grants as many clones as fit and reserves their memory until
// [Grant.Release] or the end of the process. A job may make many reservations;
// a grant of no clones reserves nothing. The job's name is part of a file's.
func (l Local) Reserve(job string, d Demand) (*Grant, error) {
	g, err := l.reserve(job, d)
	if err != nil {
		return nil, fmt.Errorf("reserve memory: %w", err)
	}
	return g, nil
}

func (l Local) reserve(job string, d Demand) (*Grant, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	if job == "" || job != filepath.Base(job) || strings.HasPrefix(job, ".") {
		return nil, fmt.Errorf("%q cannot be the name of a job", job)
	}
	folder, room, all, err := l.look()
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	cores := room.CPUs
	left := math.MaxInt
	if d.Strict {
		left = cores
	}
	for _, r := range all {
		if d.Strict && r.Job == job {
			left -= r.VCPUs
		}
	}
	g := &Grant{Cores: cores, Free: room.Free, Each: d.Memory + Overhead}
	g.VCPUs = d.divide(g.Free/g.Each, left)
	g.Clones = len(g.VCPUs)
	if g.Clones == 0 {
		return g, nil
	}
	r := reservation{Job: job, PID: os.Getpid(), Memory: int64(g.Clones) * g.Each}
	for _, n := range g.VCPUs {
		r.VCPUs += n
	}
	f, err := l.enter(r)
	if err != nil {
		return nil, err
	}
	g.file.Store(f)
	return g, nil
}

// Room is what this machine has for clones now. Somebody else may take it before
// it is reserved.
func (l Local) Room() (Room, error) {
	folder, room, _, err := l.look()
	if err != nil {
		return Room{}, fmt.Errorf("look for memory: %w", err)
	}
	folder.Close()
	return room, nil
}

// look says what could be given to clones, and which reservations there are. The folder's lock is the caller's
// to close.
func (l Local) look() (folder *os.File, room Room, all []reservation, err error) {
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, room, nil, err
	}
	if folder, err = l.lock(); err != nil {
		return nil, room, nil, err
	}
	machine := l.Machine
	if machine == nil {
		machine = thisKernel
	}
	if room, err = machine(); err == nil {
		all, err = l.living()
	}
	if err != nil {
		folder.Close()
		return nil, Room{}, nil, err
	}
	for _, r := range all {
		room.Free -= r.Memory
	}
	room.Free = max(0, room.Free)
	return folder, room, all, nil
}

// MachineOf is [Local.Machine] for guests of a kind.
func MachineOf(k hypervisor.Kind) func() (Room, error) {
	if k.Room == nil {
		return nil
	}
	return func() (room Room, err error) {
		room.CPUs, room.Free, err = k.Room()
		return room, err
	}
}

// thisKernel says what this machine's kernel has.
func thisKernel() (room Room, err error) {
	room.CPUs = runtime.NumCPU()
	room.Free, err = Available()
	return room, err
}

// enter writes a reservation, under the first serial that is free. The caller
// holds the folder's lock.
func (l Local) enter(r reservation) (*os.File, error) {
	for serial := 1; ; serial++ {
		path := filepath.Join(l.Dir, fmt.Sprintf("%s.%d.job", r.Job, serial))
		f, err := lock(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := json.NewEncoder(f).Encode(r); err != nil {
			os.Remove(path)
			f.Close()
			return nil, err
		}
		return f, nil
	}
}

// living reads the reservations of living processes, and removes what dead ones
// left. The caller holds the folder's lock.
func (l Local) living() ([]reservation, error) {
	paths, err := l.files()
	if err != nil {
		return nil, err
	}
	var all []reservation
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // released just now
		}
		if err != nil {
			return nil, err
		}
		r, err := examine(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		if r != nil {
			all = append(all, *r)
		}
	}
	return all, nil
}

// examine returns nothing where nobody holds the reservation.
func examine(f *os.File) (*reservation, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		if err := os.Remove(f.Name()); !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		return nil, nil // released just now
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("look whether it is locked: %w", err)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	return parseReservation(text)
}

func parseReservation(text []byte) (*reservation, error) {
	var r reservation
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, err
	}
	if r.Memory < 0 || r.Memory > maxMemory || r.VCPUs < 0 || r.VCPUs > math.MaxInt32 {
		return nil, fmt.Errorf("%d bytes and %d virtual CPUs are not a reservation", r.Memory, r.VCPUs)
	}
	return &r, nil
}

// Clean removes what dead jobs left and says how many reservations that were.
func (l Local) Clean() (int, error) {
	n, err := l.clean()
	if err != nil {
		return 0, fmt.Errorf("clean up reservations: %w", err)
	}
	return n, nil
}

func (l Local) clean() (int, error) {
	folder, err := l.lock()
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer folder.Close()
	before, err := l.files()
	if err != nil {
		return 0, err
	}
	all, err := l.living()
	return len(before) - len(all), err
}

func (l Local) files() ([]string, error) {
	entries, err := os.ReadDir(l.Dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), ".job") {
			paths = append(paths, filepath.Join(l.Dir, entry.Name()))
		}
	}
	return paths, nil
}

// lock waits until nobody else looks and reserves.
func (l Local) lock() (*os.File, error) {
	for deadline := time.Now().Add(lockWait); ; time.Sleep(2 * time.Millisecond) {
		f, err := lock(l.Dir, os.O_RDONLY, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("wait %v for others that reserve memory: %w; see who has %s open", lockWait, err, l.Dir)
		}
	}
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
