package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance/counter"
)

// soon is how long anything but a boot may take on a busy machine, which may be
// emulated in its turn.
const soon = 2 * time.Minute

// Run tests a driver. It needs what the driver needs, and fails without.
func Run(t *testing.T, d hypervisor.Driver, g Guest) {
	// Memory files belong on a tmpfs: elsewhere the kernel writes them out.
	dir, err := os.MkdirTemp("/dev/shm", "conformance-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &suite{d: d, g: g, dir: dir}
	name, version := d.Name(), d.Version()
	if name == "" || version == "" || d.Version() != version {
		t.Errorf("the driver calls itself %q, version %q, and then %q", name, version, d.Version())
	}
	t.Logf("%s, %s", name, version)
	s.describe(t)
	// What a driver keeps for good is there after its first machine.
	s.prepare(t, "first").Kill()
	files, children := openFiles(t), childProcesses(t)
	if !t.Run("boot and suspend", s.bootAndSuspend) {
		return
	}
	t.Run("restore", s.restore)
	t.Run("fork again", s.forkAgain)
	t.Run("bad state", s.badState)
	t.Run("death", s.death)
	t.Run("contexts", s.contexts)
	left := func() string {
		return strings.Join(slices.Concat(minus(openFiles(t), files), minus(childProcesses(t), children)), "\n")
	}
	for end := time.Now().Add(5 * time.Second); left() != "" && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	if l := left(); l != "" {
		t.Errorf("left behind are\n%s", l)
	}
}

type suite struct {
	d   hypervisor.Driver
	g   Guest
	dir string

	state  []byte // of the suspended guest
	memory string // its RAM file
	last   count  // what it said last
}

func (s *suite) describe(t *testing.T) {
	for _, size := range []int64{s.g.Shape.Memory, 8 << 30} {
		var sum, offset uint64
		for _, r := range s.d.Describe(hypervisor.Shape{VCPUs: 1, Memory: size}).MemoryMap {
			if r.Offset != offset {
				t.Errorf("of %d bytes of RAM, a range begins at %d, want %d", size, r.Offset, offset)
			}
			sum, offset = sum+r.Size, offset+r.Size
		}
		if sum != uint64(size) {
			t.Errorf("the memory map of %d bytes has %d", size, sum)
		}
	}
}

// machine is a machine and the host's end of its port.
type machine struct {
	hypervisor.VM
	cfg     hypervisor.Config
	channel net.Conn
}

// config has a port of its own, which ends with the test.
func (s *suite) config(t *testing.T, name, memory string) (hypervisor.Config, net.Conn) {
	t.Helper()
	channel, port, err := hypervisor.NewPort(counter.PortName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { channel.Close(); port.File.Close() })
	return hypervisor.Config{
		Name: name, Dir: s.dir, Shape: s.g.Shape, MemoryPath: memory,
		Ports: []hypervisor.Port{port},
	}, channel
}

// emptyMemory makes a RAM file.
func (s *suite) emptyMemory(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(s.dir, name+".memory")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(s.g.Shape.Memory); err != nil {
		t.Fatal(err)
	}
	return path
}

// copyMemory makes a sparse copy of the guest's RAM file.
func (s *suite) copyMemory(t *testing.T, name string) string {
	t.Helper()
	path := s.emptyMemory(t, name)
	out, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	s.content(t, func(block []byte, at int64) {
		if _, err := out.WriteAt(block, at); err != nil {
			t.Fatal(err)
		}
	})
	return path
}

// content passes on what of the guest's RAM file is not zero, in order. Most is
// holes, which it does not look at: the suite runs where processors are slow.
func (s *suite) content(t *testing.T, pass func(block []byte, at int64)) {
	t.Helper()
	in, err := os.Open(s.memory)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	block, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		at, err = unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		at -= at % int64(len(block))
		n, err := in.ReadAt(block, at)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(block[:n], zeros[:n]) {
			pass(block[:n], at)
		}
		at += int64(n)
	}
}

// prepare prepares a machine over a copy of the guest's RAM, or empty RAM
// before there is any. It ends with the test.
func (s *suite) prepare(t *testing.T, name string) *machine {
	t.Helper()
	memory := ""
	if s.memory == "" {
		memory = s.emptyMemory(t, name)
	} else {
		memory = s.copyMemory(t, name)
	}
	t.Cleanup(func() { os.Remove(memory) })
	cfg, channel := s.config(t, name, memory)
	vm, err := s.d.Prepare(limit(t, soon), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	return &machine{vm, cfg, channel}
}

func (s *suite) bootAndSuspend(t *testing.T) {
	s.memory = s.emptyMemory(t, "parent")
	cfg, channel := s.config(t, "parent", s.memory)
	vm, err := s.d.Boot(limit(t, s.g.BootLimit), cfg, s.g.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	ear := listen(channel)
	s.last = ear.next(t, s.g.BootLimit)
	for range 5 {
		next := ear.next(t, soon)
		if next.who != s.last.who || next.n != s.last.n+1 || !next.whole {
			t.Errorf("after %v the guest said %v", s.last, next)
		}
		s.last = next
	}
	before, err := vm.CPUTime()
	if err != nil || before <= 0 {
		t.Errorf("it has used %v of processor time (%v)", before, err)
	}
	if s.state, err = vm.Suspend(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	if len(s.state) == 0 {
		t.Fatal("the device state is empty")
	}
	t.Logf("device state of %d bytes", len(s.state))
	sum := s.sum(t)
	s.last = ear.drain(s.last) // what it had said before it stopped
	time.Sleep(300 * time.Millisecond)
	if now := ear.drain(s.last); now != s.last {
		t.Errorf("suspended, the guest said %v after %v", now, s.last)
	}
	if s.sum(t) != sum {
		t.Error("the RAM file of a suspended guest changes")
	}
	if vm.Err() != nil {
		t.Errorf("a suspended machine is gone: %v", vm.Err())
	}
	vm.Kill()
	vm.Kill()
	isGone(t, vm)
	if vm.Err() != nil {
		t.Errorf("a killed machine ended with %v", vm.Err())
	}
	if s.sum(t) != sum {
		t.Error("the RAM file changed when its machine was killed")
	}
	if _, err := vm.CPUTime(); err == nil {
		t.Error("a machine that is gone uses processor time")
	}
}

func (s *suite) sum(t *testing.T) [32]byte {
	t.Helper()
	h := sha256.New()
	s.content(t, func(block []byte, at int64) {
		fmt.Fprintln(h, at)
		h.Write(block)
	})
	return [32]byte(h.Sum(nil))
}

func (s *suite) restore(t *testing.T) {
	sum := s.sum(t)
	var vms []*machine
	var ears []*ear
	for i := range 3 {
		vm := s.prepare(t, fmt.Sprintf("clone-%d", i+1))
		vms = append(vms, vm)
		ears = append(ears, listen(vm.channel))
	}
	var wg sync.WaitGroup
	for i, vm := range vms {
		wg.Go(func() {
			begin := time.Now()
			if err := vm.Restore(limit(t, soon), s.state); err != nil {
				t.Errorf("clone %d: %v", i+1, err)
			}
			t.Logf("clone %d restored in %v", i+1, time.Since(begin).Round(time.Millisecond))
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	last := make([]count, len(vms))
	for i := range vms {
		first := ears[i].next(t, soon)
		if first.who != s.last.who || first.n != s.last.n+1 || !first.whole {
			t.Errorf("clone %d began with %v after the guest's %v", i+1, first, s.last)
		}
		last[i] = first
	}
	// One ends; the others go on.
	vms[0].Kill()
	vms[0].Kill()
	isGone(t, vms[0])
	if err := vms[0].Err(); err != nil {
		t.Errorf("a killed clone ended with %v", err)
	}
	for i := 1; i < len(vms); i++ {
		for range 10 {
			next := ears[i].next(t, soon)
			if next.who != last[i].who || next.n != last[i].n+1 || !next.whole {
				t.Errorf("clone %d said %v after %v", i+1, next, last[i])
			}
			last[i] = next
		}
		if err := vms[i].Err(); err != nil {
			t.Errorf("clone %d: %v", i+1, err)
		}
	}
	if s.sum(t) != sum {
		t.Error("clones change the RAM that they were made of")
	}
}

func (s *suite) badState(t *testing.T) {
	noise := bytes.Repeat([]byte("this is no device state\n"), 1000)
	for name, state := range map[string][]byte{
		"nothing": nil,
		"noise":   noise,
		"a half":  s.state[:len(s.state)/2],
		"a start": s.state[:8],
	} {
		t.Run(name, func(t *testing.T) {
			vm := s.prepare(t, "bad")
			err := vm.Restore(limit(t, soon), state)
			if err == nil {
				t.Fatal("it loads")
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("nobody noticed: %v", err)
			}
			Says(t, err, "restore bad", "does not load")
			isGone(t, vm)
			if vm.Err() == nil {
				t.Error("the machine is gone without a reason")
			}
			t.Log(err)
		})
	}
}

// death: however a guest ends, its machine does, which nobody asked for.
func (s *suite) death(t *testing.T) {
	for name, letter := range map[string]string{"off": "o", "restart": "r", "panic": "p"} {
		t.Run(name, func(t *testing.T) { s.die(t, letter) })
	}
}

func (s *suite) die(t *testing.T, letter string) {
	vm := s.prepare(t, "dying")
	if err := vm.Restore(limit(t, soon), s.state); err != nil {
		t.Fatal(err)
	}
	listen(vm.channel).next(t, soon)
	select {
	case <-vm.Done():
		t.Fatal("it is gone already")
	default:
	}
	if _, err := io.WriteString(vm.channel, letter); err != nil {
		t.Fatal(err)
	}
	isGone(t, vm)
	if err := vm.Err(); err == nil {
		t.Error("the machine is gone without a reason")
	} else {
		Says(t, err, "dying")
		t.Log(err)
	}
	vm.Kill()
	if vm.Err() == nil {
		t.Error("to kill what was gone took its reason away")
	}
}

func (s *suite) contexts(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	memory := s.copyMemory(t, "late")
	defer os.Remove(memory)
	cfg, _ := s.config(t, "late", memory)
	if vm, err := s.d.Prepare(over, cfg); err == nil {
		vm.Kill()
		t.Error("a machine was prepared in a context that is over")
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	vm := s.prepare(t, "waiting")
	if err := vm.Restore(over, s.state); !errors.Is(err, context.Canceled) {
		t.Errorf("a machine was restored in a context that is over: %v", err)
	}
	vm.Kill()
	isGone(t, vm)
}

// Says checks that an error says what it must.
func Says(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("the error %v does not say %q", err, w)
		}
	}
}

func isGone(t *testing.T, vm hypervisor.VM) {
	t.Helper()
	select {
	case <-vm.Done():
	case <-time.After(soon):
		t.Fatalf("waited %v for a machine to be gone", soon)
	}
}

func limit(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// openFiles are this process's descriptors, as what they are open on.
func openFiles(t *testing.T) (files []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && !strings.HasPrefix(to, "/proc/") {
			files = append(files, filepath.Base(l)+" "+to)
		}
	}
	return files
}

// childProcesses are this process's children, as /proc/PID/stat begins.
func childProcesses(t *testing.T) (children []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range stats {
		b, _ := os.ReadFile(f)
		if i := bytes.LastIndexByte(b, ')'); i > 0 {
			if fields := strings.Fields(string(b[i+1:])); len(fields) > 1 && fields[1] == fmt.Sprint(os.Getpid()) {
				children = append(children, string(b[:i+1]))
			}
		}
	}
	return children
}

// minus is what is in a and not in b.
func minus(a, b []string) []string {
	return slices.DeleteFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
