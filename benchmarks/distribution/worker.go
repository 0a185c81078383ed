package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// workerArgument makes this program a host's worker.
const workerArgument = "worker"

// worker is the process that a host has: what a daemon has of links and of mcdist, without machines. The benchmark calls
// it by net/rpc over its standard input and output. It ends with these.
type worker struct {
	dir string     // for what comes from other hosts
	mu  sync.Mutex // guards job
	job *workerJob
}

// workerJob is what a worker has of one job. Each measurement begins another, so that it finds nothing of the one before.
type workerJob struct {
	ctx      context.Context
	end      context.CancelFunc
	id       *link.Identity
	listener *link.Listener
	mesh     *carrier.Mesh
	node     *mcdist.Node
	notices  chan string

	served   []*slice.Slice
	exported []byte // a descriptor
	slices   map[slice.ID]*far
	memory   *slice.Image // of what was imported
	wanted   memtap.Trace // its working set
}

// far is a slice of another host.
type far struct {
	slice *slice.Slice
	fetch *mcdist.Fetch
}

// beWorker is a worker's main function.
func beWorker(dir string) error {
	w := &worker{dir: dir}
	server := rpc.NewServer()
	if err := server.RegisterName("Worker", &calls{w}); err != nil {
		return err
	}
	server.ServeConn(stdio{os.Stdin, os.Stdout})
	w.reset()
	return nil
}

type stdio struct {
	io.ReadCloser
	io.Writer
}

// now is the time in nanoseconds of the one clock that all hosts of this machine have.
func now() (t int64) {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) == nil {
		t = ts.Nano()
	}
	return t
}

// reset ends the job, if there is one.
func (w *worker) reset() {
	w.mu.Lock()
	j := w.job
	w.job = nil
	w.mu.Unlock()
	if j == nil {
		return
	}
	if j.node != nil {
		for _, f := range j.slices {
			f.fetch.Close()
			f.slice.Close()
		}
		j.node.Close()
		j.mesh.Close()
	}
	j.end()
	for _, s := range j.served {
		s.Close()
	}
}

var errNoJob = errors.New("no job has begun")

func (w *worker) current() (*workerJob, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.job == nil || w.job.node == nil {
		return nil, errNoJob
	}
	return w.job, nil
}

// calls are what the benchmark calls.
type calls struct{ w *worker }

// PeerArgs says who a worker is.
type PeerArgs struct {
	Name    string
	Address netip.Addr
}

// Listen ends the job before, if there was one, and opens a port for the next.
func (c *calls) Listen(args PeerArgs, out *carrier.Peer) error {
	c.w.reset()
	ctx, cancel := context.WithCancel(context.Background())
	j := &workerJob{ctx: ctx, end: cancel, slices: map[slice.ID]*far{}, notices: make(chan string, 100)}
	var err error
	if j.id, err = link.NewIdentity(); err != nil {
		cancel()
		return err
	}
	if j.listener, err = link.Listen(ctx, j.id, netip.AddrPortFrom(args.Address, 0).String()); err != nil {
		cancel()
		return err
	}
	*out = carrier.Peer{Name: args.Name, Address: args.Address, Listen: j.listener.Addr(), Fingerprint: j.id.Fingerprint()}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.job = j
	return nil
}

// BeginArgs says what the job is.
type BeginArgs struct {
	Self  int
	Peers []carrier.Peer
	Key   [32]byte
	Mode  mcdist.Mode
}

// Begin begins the job, as a daemon does: host 0 has a link to each of the others, and goes last.
func (c *calls) Begin(args BeginArgs, _ *int) error {
	c.w.mu.Lock()
	j := c.w.job
	c.w.mu.Unlock()
	if j == nil {
		return errNoJob
	}
	mesh := carrier.NewMesh(j.ctx, j.id, args.Self, args.Peers)
	for i, p := range args.Peers {
		if i != args.Self {
			j.listener.AllowHost(p.Name, p.Fingerprint)
		}
	}
	node, err := mcdist.New(j.ctx, mcdist.Config{
		Self: args.Self, Hosts: mesh.Hosts(), Dial: mesh.Dial, Key: args.Key, Mode: args.Mode,
		Notice: func(line string) {
			select {
			case j.notices <- line:
			default:
			}
		},
	})
	if err != nil {
		return err
	}
	mesh.Distribute(node)
	c.w.mu.Lock()
	j.mesh, j.node = mesh, node
	c.w.mu.Unlock()
	go func() {
		for {
			l, err := j.listener.AcceptLink()
			if err != nil {
				return
			}
			if host := mesh.Adopt(l); host >= 0 {
				go mesh.Serve(l, host, func(_ byte, conn net.Conn) { conn.Close() })
			} else {
				l.Close()
			}
		}
	}()
	if args.Self != 0 {
		return nil
	}
	for host := range args.Peers[1:] {
		ctx, cancel := context.WithTimeout(j.ctx, limit)
		_, err := mesh.Link(ctx, host+1)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// End ends the job.
func (c *calls) End(int, *int) error {
	c.w.reset()
	return nil
}

// Prepare has the origin find out how to distribute. With wait, it returns what was found.
func (c *calls) Prepare(wait bool, out *string) error {
	j, err := c.w.current()
	if err != nil {
		return err
	}
	j.node.Prepare()
	if wait {
		select {
		case *out = <-j.notices:
		case <-time.After(limit):
			return errors.New("find out how to distribute: nothing was found")
		}
	}
	return nil
}

// Counters are the node's.
func (c *calls) Counters(_ int, out *mcdist.Counters) error {
	j, err := c.w.current()
	if err == nil {
		*out = j.node.Counters()
	}
	return err
}

// CPU is the processor time that this process has had.
func (c *calls) CPU(_ int, out *time.Duration) error {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &u)
	*out = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	return err
}

// SliceArgs names the files of a sealed slice.
type SliceArgs struct{ Data, Map string }

// Serve serves a sealed slice to the other hosts.
func (c *calls) Serve(args SliceArgs, _ *int) error {
	j, err := c.w.current()
	if err != nil {
		return err
	}
	s, err := slice.Open(args.Data, args.Map)
	if err != nil {
		return err
	}
	j.served = append(j.served, s)
	return j.node.Serve(s.ID(), s)
}

// Open opens a sealed slice that the origin serves. Its map is read from the file, as it would be from a descriptor.
func (c *calls) Open(args SliceArgs, out *slice.ID) error {
	j, err := c.w.current()
	if err != nil {
		return err
	}
	s, err := slice.Open(args.Data, args.Map)
	if err != nil {
		return err
	}
	defer s.Close()
	*out = s.ID()
	_, err = c.w.open(j, s.Map())
	return err
}

// open opens a slice of the origin's.
func (w *worker) open(j *workerJob, m slice.Map) (*slice.Slice, error) {
	f := &far{}
	path := filepath.Join(w.dir, rand.Text())
	s, err := slice.Far(path, m, func(ctx context.Context, first, n int64) error { return f.fetch.Bring(ctx, first, n) })
	if err != nil {
		return nil, err
	}
	os.Remove(path)
	if f.fetch, err = j.node.Open(0, m.ID, m.Size, s); err != nil {
		s.Close()
		return nil, err
	}
	s.SetPrefetch(f.fetch.Prefetch)
	f.slice = s
	j.slices[m.ID] = f
	return s, nil
}

// RangeArgs is blocks of a slice that is open.
type RangeArgs struct {
	ID            slice.ID
	First, Blocks int64         // all of a prefetch, of one Bring
	Count, Stride int64         // of Brings: how many, and blocks from one to the next
	Pause         time.Duration // between them
}

func (c *calls) opened(id slice.ID) (*workerJob, *far, error) {
	j, err := c.w.current()
	if err != nil {
		return nil, nil, err
	}
	f := j.slices[id]
	if f == nil {
		return nil, nil, fmt.Errorf("slice %v is not open", id)
	}
	return j, f, nil
}

// Bring brings blocks, a few at a time, and returns how long each time took.
func (c *calls) Bring(args RangeArgs, out *[]time.Duration) error {
	j, f, err := c.opened(args.ID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(j.ctx, limit)
	defer cancel()
	for i := range args.Count {
		begin := time.Now()
		if err := f.fetch.Bring(ctx, args.First+i*args.Stride, args.Blocks); err != nil {
			return err
		}
		*out = append(*out, time.Since(begin))
		time.Sleep(args.Pause)
	}
	return nil
}

// Prefetch brings blocks in bulk, and returns when they were there.
func (c *calls) Prefetch(args RangeArgs, out *int64) error {
	j, f, err := c.opened(args.ID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(j.ctx, limit)
	defer cancel()
	err = f.fetch.Prefetch(ctx, blocks(args.First, args.Blocks))
	*out = now()
	return err
}

// Verify reads what has come again, and fails if it is not what was sent, or not all of it.
func (c *calls) Verify(args RangeArgs, _ *int) error {
	j, f, err := c.opened(args.ID)
	if err != nil {
		return err
	}
	if n := f.slice.Awaited(); n > 0 {
		return fmt.Errorf("%d blocks have not come", n)
	}
	return f.slice.Verify(j.ctx)
}

func blocks(first, n int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for b := first; b < first+n; b++ {
			if !yield(b) {
				return
			}
		}
	}
}

// ForkArgs is a checkpoint's folder, and the root disk below it.
type ForkArgs struct {
	Folder, Root string
	To           []int // hosts
}

// Published says when a descriptor was given away, and what it is called.
type Published struct {
	ID       slice.ID
	At       int64 // ns, when the call began
	Bytes    int   // of the descriptor
	State    int   // of them, device state
	Maps     int   // of them, the slices' maps
	Blocks   int64 // of the working set
	NotZeros int64 // of them, those that have to be brought
}

// Export serves the slices of a checkpoint and publishes its descriptor, as a carrier does.
func (c *calls) Export(args ForkArgs, out *Published) error {
	j, err := c.w.current()
	if err != nil {
		return err
	}
	d, err := descriptor.Load(filepath.Join(args.Folder, "descriptor"))
	if err != nil {
		return err
	}
	var opened []*slice.Slice
	for _, files := range []SliceArgs{
		{filepath.Join(args.Folder, "memory"), filepath.Join(args.Folder, "memory.map")},
		{filepath.Join(args.Folder, "disk"), filepath.Join(args.Folder, "disk.map")},
		{args.Root, filepath.Join(filepath.Dir(args.Root), "root.map")},
	} {
		s, err := slice.Open(files.Data, files.Map)
		if err != nil {
			return err
		}
		opened = append(opened, s)
		j.served = append(j.served, s)
		m := s.Map()
		d.Maps, d.Origins = append(d.Maps, m), append(d.Origins, 0)
		packed, err := m.MarshalBinary()
		if err != nil {
			return err
		}
		out.Maps += len(packed)
	}
	if d.WorkingSet, err = os.ReadFile(filepath.Join(args.Folder, "trace")); err != nil {
		return fmt.Errorf("the working set: %w", err)
	}
	var trace memtap.Trace
	if err := trace.UnmarshalBinary(d.WorkingSet); err != nil {
		return err
	}
	out.Blocks = trace.Blocks()
	for _, run := range trace {
		for b := range blocks(int64(run.First), int64(run.Count)) {
			if opened[0].Present(b) {
				out.NotZeros++
			}
		}
	}
	rand.Read(out.ID[:])
	var buf bytes.Buffer
	out.At = now()
	for _, s := range opened {
		if err := j.node.Serve(s.ID(), s); err != nil {
			return err
		}
	}
	if err := descriptor.Write(&buf, d); err != nil {
		return err
	}
	out.Bytes, out.State, j.exported = buf.Len(), len(d.DeviceState), buf.Bytes()
	return j.node.Publish(out.ID, buf.Bytes(), args.To)
}

// Import gets a descriptor, opens the slices that it names, and returns when it had the descriptor.
func (c *calls) Import(id slice.ID, out *int64) error {
	j, err := c.w.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(j.ctx, limit)
	defer cancel()
	data, err := j.node.Receive(ctx, 0, id)
	if err != nil {
		return err
	}
	*out = now()
	d, err := descriptor.Read(bytes.NewReader(data))
	if err != nil {
		return err
	}
	for i, m := range d.Maps {
		s, err := c.w.open(j, m)
		if err != nil {
			return err
		}
		if i == 0 {
			if j.memory, err = slice.NewImage(s); err != nil {
				return err
			}
		}
	}
	return j.wanted.UnmarshalBinary(d.WorkingSet)
}

// Pieces of a working set, as memtap has them brought: small ones first.
const (
	firstPiece = 64
	lastPiece  = 1024
)

// WorkingSet brings the working set of what was imported, and returns when it was there.
func (c *calls) WorkingSet(_ int, out *int64) error {
	j, err := c.w.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(j.ctx, limit)
	defer cancel()
	next, stop := iter.Pull(func(yield func(int64) bool) {
		for _, run := range j.wanted {
			for b := range blocks(int64(run.First), int64(run.Count)) {
				if !yield(b) {
					return
				}
			}
		}
	})
	defer stop()
	for size, more := firstPiece, true; more; size = min(2*size, lastPiece) {
		_, err := j.memory.Prefetch(ctx, func(yield func(int64) bool) {
			for range size {
				var b int64
				if b, more = next(); !more || !yield(b) {
					return
				}
			}
		})
		if err != nil {
			return err
		}
	}
	*out = now()
	return nil
}

// Again publishes a descriptor's bytes once more, as the next fork of a job would.
func (c *calls) Again(to []int, out *Published) error {
	j, err := c.w.current()
	if err != nil {
		return err
	}
	data := slices.Clone(j.exported)
	rand.Read(out.ID[:])
	out.At = now()
	return j.node.Publish(out.ID, data, to)
}

// Receive gets an object, and returns when it was there.
func (c *calls) Receive(id slice.ID, out *int64) error {
	j, err := c.w.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(j.ctx, limit)
	defer cancel()
	_, err = j.node.Receive(ctx, 0, id)
	*out = now()
	return err
}
