package sfld

import (
	"context"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

func TestOwns(t *testing.T) {
	parent := &machine{}
	a, b := &machine{parent: parent}, &machine{parent: parent}
	aa := &machine{parent: a}
	for _, c := range []struct {
		name string
		who  *machine
		of   *machine
		want bool
	}{
		{"the host, the first VM", nil, parent, true},
		{"the host, a clone", nil, aa, true},
		{"itself", a, a, true},
		{"its clone", a, aa, true},
		{"its clone's clone", parent, aa, true},
		{"its parent", a, parent, false},
		{"its sibling", a, b, false},
		{"its sibling's clone", b, aa, false},
	} {
		if got := (caller{m: c.who}).ownsLocked(c.of); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// Whose what is, asked by processes of VMs.
func TestAuthority(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	outer := e.clone(t, "parent", "2") // clone-1 and clone-2, the host's
	inner := field(t, d.process(t, "clone-1", "ok", api.RequestTicket, "clones", "1"), "ticket")
	d.process(t, "clone-1", "ok id=0", api.Clone, "ticket", inner) // clone-3
	point := field(t, d.process(t, "clone-1", "ok", api.CheckpointParent), "checkpoint")

	for _, vm := range []string{"clone-2", "clone-3"} {
		for _, call := range [][]string{
			{api.Join, "ticket", inner, "timeout", "0"}, {api.Kill, "ticket", inner}, {api.Clone, "ticket", inner},
			{api.Join, "ticket", outer, "timeout", "0"}, {api.Kill, "ticket", outer},
			{api.Discard, "checkpoint", point},
		} {
			d.process(t, vm, "error kind=refused", call[0], call[1:]...)
		}
		for _, call := range [][]string{{api.Whoami}, {api.RequestTicket, "clones", "1"}, {api.CheckpointParent}, {api.Exit}} {
			d.process(t, vm, "error kind=refused text=clone-1 is not a VM of yours", call[0], append(call[1:], "vm", "clone-1")...)
		}
		d.process(t, vm, "ok ticket="+inner, api.ShowTicket, "ticket", inner) // no secret
		d.process(t, vm, "ok vm=parent:", api.List)
	}
	d.process(t, "clone-1", "error kind=refused", api.Kill, "ticket", outer)
	d.process(t, "clone-1", "error kind=refused", api.Exit, "vm", "parent")
	d.process(t, "clone-1", "error kind=unknown text=there is no VM clone-9", api.Whoami, "vm", "clone-9")
	d.process(t, "clone-1", "error kind=unknown", api.Join, "ticket", "no-such-ticket")
	d.process(t, "clone-1", "ok id=1 member=3 name=clone-3", api.Whoami, "vm", "clone-3")
	d.process(t, "parent", "ok id=1 member=3 name=clone-3", api.Whoami, "vm", "clone-3")
	d.process(t, "clone-1", "error kind=invalid text=3 virtual CPUs are more than the 2", api.RequestTicket, "clones", "1", "vcpus", "3")
	// What its owner may, and the owner's parent.
	d.process(t, "clone-1", "error kind=timeout text=clone-3", api.Join, "ticket", inner, "timeout", "0")
	d.process(t, "parent", "error kind=timeout text=clone-3", api.Join, "ticket", inner, "timeout", "0")
	d.process(t, "clone-1", "ok", api.Exit, "vm", "clone-3", "status", "9") // and it lives on
	d.process(t, "clone-1", "ok status=1:9", api.Join, "ticket", inner)
	d.process(t, "parent", "ok", api.Discard, "checkpoint", point)
	d.process(t, "clone-1", "error kind=unknown", api.Discard, "checkpoint", point)
	fromHost(t, e, "ok", api.Kill, "ticket", outer)
	left(t, e, d, "parent")
}

// Clones of a checkpoint, also of a VM that is no more.
func TestCheckpoints(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	outer := e.clone(t, "parent", "1")
	point := field(t, fromHost(t, e, "ok checkpoint=", api.CheckpointParent, "vm", "clone-1"), "checkpoint")
	for n, want := range []string{"vm=clone-2:2:", "vm=clone-3:3:"} {
		id := field(t, fromHost(t, e, "ok", api.RequestTicket, "clones", "1"), "ticket")
		fromHost(t, e, "ok id=0", api.CreateClones, "checkpoint", point, "ticket", id)
		fromHost(t, e, "error kind=state", api.CreateClones, "checkpoint", point, "ticket", id)
		if list := fromHost(t, e, "ok", api.List); !strings.Contains(list, want) {
			t.Errorf("the machines are %s, without %s", list, want)
		}
		if n == 0 {
			fromHost(t, e, "ok", api.Kill, "ticket", outer) // and with it the VM
			left(t, e, d, "parent", "clone-2")
			taken(e, 1) // so that the next clone is another
		}
	}
	fromHost(t, e, "ok", api.Discard, "checkpoint", point)
	id := field(t, fromHost(t, e, "ok", api.RequestTicket, "clones", "1"), "ticket")
	fromHost(t, e, "error kind=unknown", api.CreateClones, "checkpoint", point, "ticket", id)
	fromHost(t, e, "ok", api.Kill, "ticket", id)
	left(t, e, d, "parent", "clone-2", "clone-3") // which do not need it
}

func taken(e *Engine, member int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.taken[member] = true
}

// The first VM is one, with a reservation for as long as the job.
func TestFirstVM(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	if err := (&service{e: e, ctx: e.ctx}).StartVM(VMArgs{VCPUs: 1, Limit: time.Second}, &VMStarted{}); err == nil || err.Error() != "the job has its first VM already" {
		t.Errorf("a second first VM: %v", err)
	}
	d.process(t, "parent", "ok id=0", api.Whoami)
	if r := reservations(t); len(r) != 1 {
		t.Errorf("the reservations are %v", r)
	}
	id := e.identity(e.machines[0], agent.Fork{})
	other := e.identity(e.machines[0], agent.Fork{})
	if len(id.Seed) != 64 || string(id.Seed) == string(other.Seed) || id.BootID == other.BootID || id.MachineID == other.MachineID || string(id.Session) == string(other.Session) {
		t.Errorf("identities are not unique: %+v %+v", id.BootID, other.BootID)
	}
}

// A VM that is forked again and again has few slices all the same.
func TestManyForks(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	for range 30 {
		point := field(t, fromHost(t, e, "ok checkpoint=", api.CheckpointParent), "checkpoint")
		fromHost(t, e, "ok", api.Discard, "checkpoint", point)
	}
	const few = 3 + 2*7 // the booted guest's, and a logarithm's worth of memory and of disk
	var n int
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if n = e.local.Inventory().Slices; n <= few {
			break
		}
	}
	if n > few {
		t.Errorf("after 30 forks there are %d slices", n)
	}
	if out, err := exec.CommandContext(soon(t), "head", "-c", "4096", d.disk(t, "parent")).Output(); err != nil || strings.Trim(string(out), "x") != "" {
		t.Errorf("its disk begins with %.20q, %v", out, err)
	}
	left(t, e, d, "parent")
}

// What a process holds is gone when the process is, and not before.
func TestHold(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	point := field(t, d.process(t, "parent", "ok", api.CheckpointParent), "checkpoint")
	used := field(t, d.process(t, "parent", "ok", api.RequestTicket, "clones", "1"), "ticket")
	d.process(t, "parent", "ok", api.CreateClones, "checkpoint", point, "ticket", used)
	unused := field(t, d.process(t, "parent", "ok", api.RequestTicket, "clones", "1"), "ticket")
	lives, end := context.WithCancel(t.Context())
	var holding sync.WaitGroup
	for _, what := range [][]string{{"checkpoint", point}, {"ticket", used}, {"ticket", unused}} {
		holding.Go(func() { d.guest(t, "parent").call(lives, api.Hold, what...) })
	}
	d.process(t, "parent", "error kind=invalid", api.Hold)
	d.process(t, "parent", "error kind=unknown", api.Hold, "ticket", "no-such-ticket")
	d.process(t, "parent", "error kind=unknown", api.Hold, "checkpoint", "no-such-checkpoint")
	d.process(t, "clone-1", "error kind=refused", api.Hold, "ticket", used)
	d.process(t, "clone-1", "error kind=refused", api.Hold, "checkpoint", point)
	d.process(t, "parent", "error kind=timeout", api.Join, "ticket", used, "timeout", "0.05")
	end()
	holding.Wait()
	left(t, e, d, "parent")
	d.process(t, "parent", "error kind=unknown", api.Discard, "checkpoint", point)
	d.process(t, "parent", "error kind=unknown", api.Kill, "ticket", unused)
}
