package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance/counter"
)

// soon is how long anything but a boot may take on a busy machine, which may be
// emulated in its turn.
const soon = 2 * time.Minute

// Run tests a driver. It needs what the driver needs, and fails without. It returns the guest that it has booted, for
// [Parent.RunMemory].
func Run(t *testing.T, d hypervisor.Driver, g Guest) *Parent {
	t.Helper()
	// Memory files belong on a tmpfs: elsewhere the kernel writes them out.
	dir, err := os.MkdirTemp("/dev/shm", "conformance-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &suite{d: d, g: g, dir: dir, seed: maphash.MakeSeed()}
	name, version := d.Name(), d.Version()
	if name == "" || version == "" || d.Version() != version {
		t.Errorf("the driver calls itself %q, version %q, and then %q", name, version, d.Version())
	}
	t.Logf("%s, %s", name, version)
	s.describe(t)
	// What a driver keeps for good is there after its first machine.
	s.prepareOver(t, "first", s.emptyMemory(t, "first")).Kill()
	files, children := openFiles(t), childProcesses(t)
	if !t.Run("boot and suspend", s.bootAndSuspend) {
		t.FailNow()
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
	return &Parent{suite: *s}
}

type suite struct {
	d    hypervisor.Driver
	g    Guest
	dir  string
	seed maphash.Seed // of sums

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

// Machine is a machine, the host's end of its port, and who hears it.
type Machine struct {
	hypervisor.VM
	cfg     hypervisor.Config
	channel net.Conn
	*ear
	begin count // the first that was heard of a clone
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

// prepare prepares a machine over the guest's RAM. It ends with the test.
func (s *suite) prepare(t *testing.T, name string) *Machine {
	t.Helper()
	return s.prepareOver(t, name, s.memoryFor(t, name))
}

// prepareOver prepares a machine over a RAM file. It ends with the test.
func (s *suite) prepareOver(t *testing.T, name, memory string) *Machine {
	t.Helper()
	cfg, channel := s.config(t, name, memory)
	vm, err := s.d.Prepare(limit(t, soon), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	return &Machine{VM: vm, cfg: cfg, channel: channel, ear: listen(channel)}
}

func (s *suite) bootAndSuspend(t *testing.T) {
	s.memory = s.emptyMemory(t, "parent")
	cfg, channel := s.config(t, "parent", s.memory)
	step := steps(t)
	vm, err := s.d.Boot(limit(t, s.g.BootLimit), cfg, s.g.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	step("started")
	ear := listen(channel)
	s.last = ear.next(t, s.g.BootLimit)
	step("heard")
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
	step("counted")
	if s.state, err = vm.Suspend(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	step("suspended")
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
	step("summed up")
	vm.Kill()
	vm.Kill()
	isGone(t, vm)
	step("killed")
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

func (s *suite) restore(t *testing.T) {
	step := steps(t)
	sum := s.sum(t)
	step("summed up")
	var vms []*Machine
	for i := range 3 {
		vms = append(vms, s.prepare(t, fmt.Sprintf("clone-%d", i+1)))
	}
	step("prepared")
	var wg sync.WaitGroup
	for i, vm := range vms {
		wg.Go(func() {
			if err := vm.Restore(limit(t, soon), s.state); err != nil {
				t.Errorf("clone %d: %v", i+1, err)
			}
		})
	}
	wg.Wait()
	step("restored")
	if t.Failed() {
		return
	}
	last := make([]count, len(vms))
	for i := range vms {
		first := vms[i].next(t, soon)
		if first.who != s.last.who || first.n != s.last.n+1 || !first.whole {
			t.Errorf("clone %d began with %v after the guest's %v", i+1, first, s.last)
		}
		last[i] = first
	}
	step("heard")
	// One ends; the others go on.
	vms[0].Kill()
	vms[0].Kill()
	isGone(t, vms[0])
	if err := vms[0].Err(); err != nil {
		t.Errorf("a killed clone ended with %v", err)
	}
	for i := 1; i < len(vms); i++ {
		for range 10 {
			next := vms[i].next(t, soon)
			if next.who != last[i].who || next.n != last[i].n+1 || !next.whole {
				t.Errorf("clone %d said %v after %v", i+1, next, last[i])
			}
			last[i] = next
		}
		if err := vms[i].Err(); err != nil {
			t.Errorf("clone %d: %v", i+1, err)
		}
	}
	step("counted")
	if s.sum(t) != sum {
		t.Error("clones change the RAM that they were made of")
	}
	step("summed up")
}

func (s *suite) badState(t *testing.T) {
	memory := s.memoryFor(t, "bad") // one will do: none of them runs
	noise := bytes.Repeat([]byte("this is no device state\n"), 1000)
	for name, state := range map[string][]byte{
		"nothing": nil,
		"noise":   noise,
		"a half":  s.state[:len(s.state)/2],
		"a start": s.state[:8],
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _ := s.config(t, "bad", memory)
			vm, err := s.d.Prepare(limit(t, soon), cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(vm.Kill)
			err = vm.Restore(limit(t, soon), state)
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
	vm.next(t, soon)
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
	memory := s.memoryFor(t, "late")
	cfg, _ := s.config(t, "late", memory)
	if vm, err := s.d.Prepare(over, cfg); err == nil {
		vm.Kill()
		t.Error("a machine was prepared in a context that is over")
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	vm := s.prepareOver(t, "waiting", memory)
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

// steps begins to measure the steps of a test, each from the end of the last: where
// processors are slow, one wants to know which they are.
func steps(t *testing.T) (step func(what string)) {
	last := time.Now()
	return func(what string) {
		t.Helper()
		now := time.Now()
		t.Logf("%s in %v", what, now.Sub(last).Round(time.Millisecond))
		last = now
	}
}

func limit(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
