package sfld

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

// The way of a ticket: clones, an exit, a kill, a join.
func TestTicketsWay(t *testing.T) {
	e, d := testEngine(t)
	fromHost(t, e, "error kind=unknown text=there is no VM parent", api.RequestTicket, "clones", "1")
	startVM(t, e)
	id := field(t, fromHost(t, e, "ok ticket=", api.RequestTicket, "clones", "2", "vcpus", "2"), "ticket")
	if shown := fromHost(t, e, "ok ticket="+id+" asked=2 granted=2 clone=1:clone-1:", api.ShowTicket, "ticket", id); field(t, shown, "granted") != "2" {
		t.Errorf("the ticket is %s", shown)
	}
	fromHost(t, e, "error kind=state text=ticket "+id+" has not made its clones", api.Join, "ticket", id)
	fromHost(t, e, "ok id=0 pause-us=", api.Clone, "ticket", id)
	fromHost(t, e, "error kind=state text=ticket "+id+" has made its clones", api.Clone, "ticket", id)
	left(t, e, d, "parent", "clone-1", "clone-2")
	for n, name := range []string{"clone-1", "clone-2"} {
		d.process(t, name, fmt.Sprintf("ok id=%d member=%d name=%s ip=%v vcpus=2 host=here ticket=%s", n+1, n+1, name, e.plan.IP(n+1), id), api.Whoami)
	}
	fromHost(t, e, fmt.Sprintf("ok vm=parent:0:%v:::0 vm=clone-1:1:%v:0:%s:1 vm=clone-2:2:%v:0:%s:2", e.plan.IP(0), e.plan.IP(1), id, e.plan.IP(2), id), api.List)
	fromHost(t, e, "error kind=refused text=parent is no clone", api.Exit)
	d.process(t, "clone-1", "", api.Exit, "status", "3") // whose session breaks off
	left(t, e, d, "parent", "clone-2")
	fromHost(t, e, "error kind=timeout text=clone-2 did not exit in time", api.Join, "ticket", id, "timeout", "0.05")
	fromHost(t, e, "error kind=unknown text=ticket "+id+" has no clone 3", api.Kill, "ticket", id, "clone", "3")
	fromHost(t, e, "ok", api.Kill, "ticket", id, "clone", "2")
	fromHost(t, e, "ok", api.Kill, "ticket", id, "clone", "2")
	fromHost(t, e, "ok", api.Kill, "ticket", id, "clone", "1") // its status stays
	fromHost(t, e, "ok status=1:3 status=2:137", api.Join, "ticket", id)
	fromHost(t, e, "error kind=unknown", api.Join, "ticket", id)
	fromHost(t, e, "error kind=unknown", api.ShowTicket, "ticket", id)
	left(t, e, d, "parent")
	if r := reservations(t); len(r) != 1 { // the parent's
		t.Errorf("the reservations are %v", r)
	}
	// Numbers are used again, names of tickets are not.
	again := fromHost(t, e, "ok ticket=", api.RequestTicket, "clones", "1")
	if field(t, again, "ticket") == id || !strings.HasPrefix(field(t, again, "clone"), "1:clone-1:") {
		t.Errorf("the next ticket is %s", again)
	}
	fromHost(t, e, "ok", api.Kill, "ticket", field(t, again, "ticket"))
	left(t, e, d, "parent")
}

// clone forks a machine from the host into n clones, whose ticket it returns.
func (e *Engine) clone(t *testing.T, vm, n string) string {
	t.Helper()
	id := field(t, fromHost(t, e, "ok ticket=", api.RequestTicket, "clones", n, "vm", vm), "ticket")
	fromHost(t, e, "ok id=0", api.Clone, "ticket", id, "vm", vm)
	return id
}

// Many wait for the same clones: all of them are told.
func TestJoinTogether(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	id := e.clone(t, "parent", "1")
	var joins sync.WaitGroup
	for range 5 {
		joins.Go(func() {
			got := reply(caller{e, nil, ""}.Call(soon(t), api.NewRequest(api.Join, "ticket", id)))
			if got != "ok status=1:4" && !strings.HasPrefix(got, "error kind=unknown") {
				t.Errorf("one of many was told %s", got)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	d.process(t, "clone-1", "", api.Exit, "status", "4")
	joins.Wait()
	left(t, e, d, "parent")
}

// A clone that ends without exit is lost; join waits for the others.
func TestLostClone(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	id := e.clone(t, "parent", "2")
	d.die("clone-1")
	left(t, e, d, "parent", "clone-2")
	fromHost(t, e, "error kind=timeout text=clone-2 did not", api.Join, "ticket", id, "timeout", "0")
	d.process(t, "clone-2", "", api.Exit)
	got := fromHost(t, e, "error kind=lost text=clone 1 was lost: clone-1: it died ", api.Join, "ticket", id)
	if !strings.HasSuffix(got, " clone=1 status=2:0") {
		t.Errorf("join says %s", got)
	}
	left(t, e, d, "parent")
}

// Killed while its clones are made, in whichever step: nothing of it is left,
// and who waits hears of it.
func TestKilledWhileCloning(t *testing.T) {
	for _, step := range []string{"restore", "identity", "begin", "none"} {
		t.Run(step, func(t *testing.T) {
			e, d := testEngine(t)
			startVM(t, e)
			there, goOn := make(chan bool, 10), make(chan bool)
			wait := func(name string) {
				if name == "clone-2" {
					there <- true
					<-goOn
				}
			}
			d.ask(func(name string) error {
				if step == "restore" {
					wait(name)
				}
				return nil
			}, func(name string, kind byte) error {
				if step == "identity" && kind == 'i' || step == "begin" && kind == 'b' {
					wait(name)
				}
				return nil
			})
			id := field(t, fromHost(t, e, "ok", api.RequestTicket, "clones", "3"), "ticket")
			answers := make(chan string, 2)
			call := func(call string) {
				go func() {
					answers <- reply(caller{e, nil, ""}.Call(soon(t), api.NewRequest(call, "ticket", id)))
				}()
			}
			call(api.Clone)
			if step != "none" {
				<-there
				call(api.Join)
				time.Sleep(10 * time.Millisecond)
			}
			killed := make(chan bool)
			go func() {
				fromHost(t, e, "ok", api.Kill, "ticket", id)
				close(killed)
			}()
			if step == "restore" { // which has no way to be told
				time.Sleep(10 * time.Millisecond)
				goOn <- true
			}
			select {
			case <-killed:
			case <-soon(t).Done():
				t.Fatal("waited 20 s for a ticket to be killed")
			}
			close(goOn)
			left(t, e, d, "parent")
			for range cap(answers) {
				if step == "none" && len(answers) == 0 {
					break
				}
				// With luck it was killed after or before the fork.
				if got := <-answers; !strings.HasPrefix(got, "error kind=killed") && (step != "none" || !strings.HasPrefix(got, "ok") && !strings.HasPrefix(got, "error kind=unknown")) {
					t.Errorf("who waited was told %s", got)
				}
			}
			d.ask(nil, nil)
			fromHost(t, e, "ok", api.Kill, "ticket", e.clone(t, "parent", "1")) // it can be forked again
			left(t, e, d, "parent")
		})
	}
}

// One clone that fails takes the others along, and leaves the VM as it was.
func TestOneCloneFails(t *testing.T) {
	for name, c := range map[string]struct {
		fail func(d *fakeDriver) (restore func(string) error, order func(string, byte) error)
		want string
	}{
		"cannot load the state": {func(*fakeDriver) (func(string) error, func(string, byte) error) {
			return func(name string) error {
				if name == "clone-2" {
					return errors.New("it does not load")
				}
				return nil
			}, nil
		}, "error kind=failed text=it does not load"},
		"cannot take its identity": {func(*fakeDriver) (func(string) error, func(string, byte) error) {
			return nil, func(name string, kind byte) error {
				if name == "clone-2" && kind == 'i' {
					return errors.New("no clock")
				}
				return nil
			}
		}, "error kind=failed text=clone-2 could not take its identity: no clock"},
		"fails in a hook": {func(*fakeDriver) (func(string) error, func(string, byte) error) {
			return nil, func(name string, kind byte) error {
				if name == "clone-2" && kind == 'b' {
					return errors.New("hook 10-x: it exited with status 1")
				}
				return nil
			}
		}, "error kind=failed text=clone-2: hook 10-x: it exited with status 1"},
		"dies": {func(d *fakeDriver) (func(string) error, func(string, byte) error) {
			return nil, func(name string, kind byte) error {
				if name == "clone-2" && kind == 'i' {
					d.die(name)
					select {} // nobody answers any more
				}
				return nil
			}
		}, "error kind=failed text=clone-2 could not take its identity: wait for its agent: the guest is gone: clone-2: it died"},
	} {
		t.Run(name, func(t *testing.T) {
			e, d := testEngine(t)
			startVM(t, e)
			id := field(t, fromHost(t, e, "ok", api.RequestTicket, "clones", "3"), "ticket")
			d.ask(c.fail(d))
			begin := time.Now()
			fromHost(t, e, c.want, api.Clone, "ticket", id)
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			fromHost(t, e, "error kind=unknown", api.Join, "ticket", id)
			left(t, e, d, "parent")
			d.ask(nil, nil)
			fromHost(t, e, "ok", api.Kill, "ticket", e.clone(t, "parent", "2"))
			left(t, e, d, "parent")
		})
	}
}

// A VM whose successor does not come up goes on, and can be forked again.
func TestSuccessorFails(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	// By other processes, for this one serves it.
	disk, written := d.disk(t, "parent"), bytes.Repeat([]byte("y"), 8192)
	dd := exec.CommandContext(soon(t), "dd", "of="+disk, "bs=8192", "conv=notrunc", "status=none")
	dd.Stdin = bytes.NewReader(written)
	if out, err := dd.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	d.ask(func(string) error { return errors.New("no room") }, nil)
	id := field(t, fromHost(t, e, "ok", api.RequestTicket, "clones", "1"), "ticket")
	fromHost(t, e, "error kind=failed text=fork parent: no room", api.Clone, "ticket", id)
	fromHost(t, e, "error kind=unknown", api.ShowTicket, "ticket", id)
	d.process(t, "parent", "ok id=0", api.Whoami)
	if read, err := exec.CommandContext(soon(t), "head", "-c", "8192", disk).Output(); err != nil || !bytes.Equal(read, written) {
		t.Errorf("what the VM had written to its disk is lost (%v)", err)
	}
	d.ask(nil, nil)
	fromHost(t, e, "ok", api.Kill, "ticket", e.clone(t, "parent", "1"))
	d.process(t, "parent", "ok id=0", api.Whoami)
}

// The time of a fork is over: the error names who did not make it.
func TestTooLate(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	stop := make(chan bool)
	t.Cleanup(func() { close(stop) })
	d.ask(nil, func(name string, kind byte) error {
		if kind == 'i' && name != "clone-2" {
			<-stop
		}
		return nil
	})
	g, err := e.request(t.Context(), nil, demand{clones: 3, vcpus: 1}, 1, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, _, err = e.live(ctx, g, e.machines[0], "")
	if err == nil || !strings.HasPrefix(err.Error(), "clone-1, clone-3 did not become ready in time (the first: ") {
		t.Errorf("the error is %v", err)
	}
	left(t, e, d, "parent")
}

// What a VM has goes with it, also what it asks for in its last moment.
func TestEndOfAnOwner(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	id := e.clone(t, "parent", "1")
	inner := field(t, d.process(t, "clone-1", "ok", api.RequestTicket, "clones", "2"), "ticket")
	d.process(t, "clone-1", "ok id=0", api.Clone, "ticket", inner)
	d.process(t, "clone-1", "ok checkpoint=", api.CheckpointParent)
	deepest := field(t, d.process(t, "clone-2", "ok", api.RequestTicket, "clones", "1"), "ticket")
	d.process(t, "clone-2", "ok id=0", api.Clone, "ticket", deepest)
	left(t, e, d, "parent", "clone-1", "clone-2", "clone-3", "clone-4")
	e.mu.Lock()
	m := e.machines[1]
	e.mu.Unlock()
	fromHost(t, e, "ok", api.Exit, "vm", "clone-1", "status", "7")
	left(t, e, d, "parent")
	if _, err := e.request(t.Context(), m, demand{clones: 1, vcpus: 1}, 1, 1<<20); api.KindOf(err) != api.KindUnknown {
		t.Errorf("a VM that is gone was granted a ticket: %v", err)
	}
	fromHost(t, e, "ok status=1:7", api.Join, "ticket", id)
	left(t, e, d, "parent")
	if len(e.checkpoints)+len(e.grants)+len(e.taken) > 0 {
		t.Errorf("left are %v %v %v", e.checkpoints, e.grants, e.taken)
	}
}

// Forks and ends of the same machines at once, in any order.
func TestForksAgainstEnds(t *testing.T) {
	e, d := testEngine(t)
	startVM(t, e)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			ask := func(call string, args ...string) string {
				return reply(caller{e, nil, ""}.Call(soon(t), api.NewRequest(call, args...)))
			}
			for range 3 {
				r := ask(api.RequestTicket, "clones", "2")
				if !strings.HasPrefix(r, "ok") {
					t.Errorf("no ticket: %s", r)
					return
				}
				id, name := field(t, r, "ticket"), strings.Split(field(t, r, "clone"), ":")[1]
				over := make(chan bool)
				go func() {
					defer close(over)
					r := ask(api.RequestTicket, "clones", "1", "vm", name)
					if strings.HasPrefix(r, "ok") {
						ask(api.Clone, "vm", name, "ticket", field(t, r, "ticket"))
						ask(api.Kill, "ticket", field(t, r, "ticket"))
					}
				}()
				if i%2 == 0 {
					go d.die(name)
				}
				ask(api.Clone, "ticket", id)
				ask(api.Kill, "ticket", id)
				<-over
			}
		})
	}
	all.Wait()
	left(t, e, d, "parent")
	d.process(t, "parent", "ok id=0", api.Whoami)
}
