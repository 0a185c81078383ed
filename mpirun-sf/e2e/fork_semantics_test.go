package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

// semantics are scripts that fork the machine they run in, with what they print. A clone
// tells what it saw by its exit status, and a number that nobody expects is that it saw
// something else.
var semantics = []struct{ name, script, want string }{
	{"several tickets", `
a=$(sf request-ticket 2); b=$(sf request-ticket 1); c=$(sf request-ticket 1)
id=$(sf clone $b); [ $id -gt 0 ] && sf exit 2$id
id=$(sf clone $a); [ $id -gt 0 ] && sf exit 1$id
id=$(sf clone $c); [ $id -gt 0 ] && sf exit 3$id
sf join $a; sf join $b; sf join $c; true`, "1 11\n2 12\n1 21\n1 31\n"},

	{"a clone forks again", `
fork 2
if [ $id -gt 0 ]; then
	me=$id
	fork $me
	[ $id -gt 0 ] && sf exit $((10 * me + id))
	sf exit $(($(sf join $t | cut -d ' ' -f 2 | paste -sd +)))
fi
sf join $t; alone`, "1 11\n2 43\n1\n"},

	{"great-grandchildren", `
depth=0
while [ $depth -lt 4 ]; do
	fork 1
	[ $id -gt 0 ] || break
	depth=$((depth + 1))
done
if [ $depth -lt 4 ]; then status=$(sf join $t | cut -d ' ' -f 2); else status=0; fi
[ $depth = 0 ] || sf exit $((status + depth))
echo $status; alone`, "10\n1\n"},

	{"exits before its children", `
fork 1
if [ $id -gt 0 ]; then
	fork 2
	[ $id -gt 0 ] && forever
	sf exit 3
fi
sf join $t; alone`, "1 3\n1\n"},

	{"crashes before its children", `
fork 2
if [ $id = 1 ]; then
	fork 1
	[ $id -gt 0 ] && forever
	echo c > /proc/sysrq-trigger
	forever
fi
[ $id = 0 ] || sf exit 5
sf join -t 60 $t 2>/dev/null; echo $?; alone`, "1 lost\n2 5\n1\n1\n"},

	{"never exits", `
fork 1
[ $id -gt 0 ] && forever
sf join -t 1 $t 2>/dev/null; echo $?
sf join -t 0 $t 2>/dev/null; echo $?
sf ticket $t | wc -l
sf kill $t; echo $?
why sf join $t; why sf ticket $t; sf list | wc -l`, "124\n124\n1\n0\nunknown\nunknown\n1\n"},

	{"killed one by one", `
fork 2
[ $id -gt 0 ] && forever
sf kill $t 1; why sf kill $t 3
sf join -t 1 $t 2>/dev/null; echo $?
sf kill $t 2; sf kill $t 2
sf join $t; true`, "unknown\n124\n1 137\n2 137\n"},

	{"join twice", `
fork 1
[ $id -gt 0 ] && sf exit 0
sf join $t; why sf join $t; why sf clone $t; why sf kill $t`, "1 0\nunknown\nunknown\nunknown\n"},

	{"joined by two at once", `
fork 1
if [ $id -gt 0 ]; then sleep 2; sf exit 4; fi
sf join $t > /tmp/a & sf join $t > /tmp/b & wait; cat /tmp/a /tmp/b`, "1 4\n1 4\n"},

	{"joined before it is cloned, and cloned twice", `
t=$(sf request-ticket 1); why sf join $t
id=$(sf clone $t)
if [ $id -gt 0 ]; then sleep 1; sf exit 0; fi
why sf clone $t; sf join $t`, "state\nstate\n1 0\n"},

	{"a ticket that is killed unused", `
t=$(sf request-ticket 3); sf ticket $t | wc -l; why sf kill $t; why sf clone $t; why sf kill $t`, "3\nok\nunknown\nunknown\n"},

	{"what a clone does not own", `
fork 2
if [ $id = 1 ]; then
	[ "$(why sf join $t) $(why sf kill $t) $(why sf request-ticket 1 --vm parent) $(why sf kill $t 2)" = "refused refused refused refused" ] || sf exit 1
	sibling=$(sf ticket $t | sed -n 2p | cut -d ' ' -f 2)
	[ "$(why sf request-ticket 1 --vm $sibling) $(why sf checkpoint --vm $sibling) $(why sf exit --vm $sibling)" = "refused refused refused" ] || sf exit 2
	[ "$(why sf request-ticket 1 --vm nobody)" = unknown ] || sf exit 3
	touch $DIR/tried
fi
[ $id = 2 ] && until [ -e $DIR/tried ]; do sleep 0.2; done
[ $id = 0 ] || sf exit 0
sf join -t 60 $t`, "1 0\n2 0\n"},

	{"forks take turns", `
a=$(sf request-ticket 1); b=$(sf request-ticket 1)
turn() { id=$(sf clone $1 2> /tmp/err$1); case $id in 0) echo $2 0;; '') cat /tmp/err$1;; *) sf exit 6;; esac; }
turn $a a > /tmp/a & turn $b b > /tmp/b & wait
cat /tmp/a /tmp/b; sf join $a; sf join $b; true`, "a 0\nb 0\n1 6\n1 6\n"},

	{"two generations at once", `
rm -f $DIR/go; echo one > /root/state; grown=one
fork 2
is() { until [ -e $DIR/go ]; do sleep 0.2; done; [ $grown-$(cat /root/state) = $1-$1 ] && sf exit $2; sf exit 99; }
[ $id -gt 0 ] && is one 1$id
first=$t; grown=two; echo two > /root/state
fork 2
[ $id -gt 0 ] && is two 2$id
grown=three; echo three > /root/state
sf list | wc -l; sf list | cut -d ' ' -f 2 | uniq -d
touch $DIR/go
sf join $first; sf join $t; true`, "5\n1 11\n2 12\n1 21\n2 22\n"},

	{"a checkpoint, generations later", `
x=old; echo old > /root/state
set -- $(sf checkpoint); c=$1; id=$2
if [ $id -gt 0 ]; then
	[ $x-$(cat /root/state) = old-old ] || sf exit 99
	fork 1 # clones of checkpoints are machines like others
	[ $id -gt 0 ] && sf exit 40
	sf exit $(($(sf join $t | cut -d ' ' -f 2) + $(sf whoami | cut -d ' ' -f 1)))
fi
for n in 1 2 3; do
	x=new$n; echo $x > /root/state
	fork 1
	[ $id -gt 0 ] && sf exit $n
	sf join $t
done
for n in 1 2; do t=$(sf request-ticket $n); sf create-clones $c $t; sf join $t; done
echo $x $(cat /root/state)
sf discard $c; why sf discard $c; t=$(sf request-ticket 1); why sf create-clones $c $t; why sf kill $t`,
		"1 1\n1 2\n1 3\n1 41\n1 41\n2 42\nnew3 new3\nunknown\nunknown\nok\n"},

	{"a checkpoint whose clones live", `
set -- $(sf checkpoint); c=$1; id=$2
[ $id -gt 0 ] && { sleep 2; sf exit $id; }
a=$(sf request-ticket 1); b=$(sf request-ticket 1)
sf create-clones $c $a; sf create-clones $c $b; sf discard $c
sf list | wc -l; sf join $a; sf join $b; true`, "3\n1 1\n1 1\n"},

	{"virtual CPUs", `
nproc
for request in 1 '--hierarchical 2' '--hierarchical 3' '--vcpus 2 1'; do
	fork $request
	[ $id -gt 0 ] && sf exit $(nproc)
	echo "$request:" $(sf ticket $t | cut -d ' ' -f 4) = $(sf join $t | cut -d ' ' -f 2)
done; nproc; why sf request-ticket 1 --vcpus 3`, "2\n1: 1 = 1\n--hierarchical 2: 2 = 2\n--hierarchical 3: 2 1 = 2 1\n--vcpus 2 1: 2 = 2\n2\ninvalid\n"},

	{"who a clone is", `
fork 2
if [ $id -gt 0 ]; then
	eval "$(sf env)"
	read -r _ name ip vcpus _ <<-END
	$(sf ticket $t | grep "^$id ")
	END
	[ "$SF_ID $SF_TICKET $SF_NAME $SF_IP" = "$id $t $name $ip" ] || sf exit 1
	[ "$(hostname) $(cat /etc/hostname)" = "$name $name" ] || sf exit 2
	ip -4 address | grep -q " $ip/" || sf exit 3
	grep -q "^$ip $name$" /etc/hosts || sf exit 4
	sf exit 0
fi
sf join $t`, "1 0\n2 0\n"},
}

// seldom are those that make test leaves to make test-all: each is akin to one that it runs.
var seldom = []string{
	"great-grandchildren", "crashes before its children", "joined by two at once", "forks take turns",
	"a checkpoint, generations later", "who a clone is", "a checkpoint of a clone that is gone",
}

// TestForkSemantics: what the calls promise, in one machine that is forked in between.
func TestForkSemantics(t *testing.T) {
	v := startVM(t)
	run := func(name string, test func(*testing.T)) {
		t.Run(name, func(t *testing.T) {
			if slices.Contains(seldom, name) {
				slow(t)
			}
			test(t)
		})
	}
	for _, c := range semantics {
		run(c.name, func(t *testing.T) { v.prints(t, c.script, c.want) })
	}
	run("a hypervisor that is killed", v.hypervisorKilled)
	run("a checkpoint of a clone that is gone", v.orphanedCheckpoint)
	run("transitive", v.transitive)
	run("kill during clone", v.killDuringClone)
	run("a caller that goes away", v.callerGoesAway)
	v.alone(t)
	if left := v.hypervisors(); len(left) > 2 {
		// The machine's own, and perhaps its successor.
		t.Errorf("hypervisors without a clone: %v", left)
	}
}

// hypervisorKilled: who joins a clone whose process dies is told, and its children die too.
func (v *forkVM) hypervisorKilled(t *testing.T) {
	run := v.begin(t, `
fork 2
if [ $id = 1 ]; then fork 1; touch $DIR/child$id; forever; fi
if [ $id = 2 ]; then sleep 1; sf exit 9; fi
echo clones; sf ticket $t | cut -d ' ' -f 2; echo joins
sf join -t 60 $t; echo $?; alone`)
	run.await("the grandchild", func() bool {
		return strings.Contains(run.stdout.String(), "joins") && there(v.dir, "child0") && there(v.dir, "child1")
	})
	name := strings.Fields(run.stdout.String())[1]
	for _, p := range v.hypervisors() {
		if slices.Contains(p.argv, name) {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	r := run.wait()
	if !strings.HasSuffix(r.stdout, "joins\n1 lost\n2 9\n1\n1\n") || !strings.Contains(r.stderr, "lost") {
		t.Errorf("got\n%s%s", r.stdout, r.stderr)
	}
}

// orphanedCheckpoint: a checkpoint that the host has made of a clone is the host's, and
// serves when the clone is gone.
func (v *forkVM) orphanedCheckpoint(t *testing.T) {
	ticket := v.ticket(t, "1", "")
	dismiss := v.awaitFork(t, "touch $DIR/came; sf await-fork; sf exit 33")
	defer dismiss()
	v.must(t, api.Clone, "ticket", ticket)
	v.run.await("the clone", func() bool { return there(v.dir, "came") })
	time.Sleep(2 * time.Second) // and it waits for its own fork
	clones := v.machines(t)
	checkpoint, err := v.must(t, api.CheckpointParent, "vm", clones[1]).Name("checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	v.must(t, api.Kill, "ticket", ticket)
	v.alone(t)
	ticket = v.ticket(t, "1", "")
	v.must(t, api.CreateClones, "checkpoint", checkpoint, "ticket", ticket)
	reply, err := v.call(t, api.Join, "ticket", ticket, "timeout", "30")
	if statuses, _ := reply.Statuses(); err != nil || statuses[1] != 33 {
		t.Errorf("its clone: %v, %v", statuses, err)
		v.call(t, api.Kill, "ticket", ticket)
	}
	v.must(t, api.Discard, "checkpoint", checkpoint)
}

// awaitFork has a process in the machine wait for forks, which runs the script in clones.
func (v *forkVM) awaitFork(t *testing.T, script string) (dismiss func()) {
	t.Helper()
	waiting := v.begin(t, "echo $$ > /tmp/waiting; echo waits; set -- $(sf await-fork)\n"+script)
	waiting.awaitOutput("waits", 1)
	time.Sleep(time.Second) // and now it does
	return func() {
		v.prints(t, "kill -9 -- -$(cat /tmp/waiting)", "")
		waiting.wait()
	}
}

// transitive: the host forks the machine, and the machine a clone of its own, by the
// commands that a user has; the callback is await-fork.
func (v *forkVM) transitive(t *testing.T) {
	dismiss := v.awaitFork(t, `[ "$(sf whoami | cut -d ' ' -f 7)" = $2 ] && sf exit 5$1; sf exit 99`)
	vm := func(verb string, args ...string) string {
		t.Helper()
		r := command{beside: true, args: append([]string{"vm", verb, "--vm", v.name}, args...)}.run(t)
		return fmt.Sprint(strings.TrimSpace(r.stdout), r.status)
	}
	ticket := strings.TrimSuffix(vm("request-ticket", "2"), "0")
	checkpoint := strings.Fields(vm("checkpoint"))[0]
	other := strings.TrimSuffix(vm("request-ticket", "1"), "0")
	for _, c := range [][]string{
		{"clone " + ticket, "00"}, {"join " + ticket, "1 51\n2 5251"}, {"join " + ticket, "1"},
		{"create-clones " + checkpoint + " " + other, "0"}, {"join " + other, "1 5151"},
		{"discard " + checkpoint, "0"}, {"discard " + checkpoint, "1"},
	} {
		if got := vm(strings.Fields(c[0])[0], strings.Fields(c[0])[1:]...); got != c[1] {
			t.Errorf("vm %s: got %q, want %q", c[0], got, c[1])
		}
	}
	dismiss()

	// The grandchild's number in its ticket is 1, and it is a clone of the clone.
	v.prints(t, `
fork 1
if [ $id -gt 0 ]; then set -- $(sf await-fork); sf exit 7$1; fi
name=$(sf ticket $t | cut -d ' ' -f 2)
sleep 1
u=$(sf request-ticket 1 --vm $name)
sf clone $u --vm $name
sf join --vm $name $u
set -- $(sf checkpoint --vm $name)
u=$(sf request-ticket 1 --vm $name); sf create-clones $1 $u; sf join $u
sf exit 8 --vm $name; sf join $t; alone`, "0\n1 71\n1 71\n1 8\n1\n")
}

// killDuringClone: at whatever moment a ticket is killed, its clone call ends, nothing is
// left, and the parent can fork again.
func (v *forkVM) killDuringClone(t *testing.T) {
	delays := []time.Duration{0, 20, 80, 200}
	if full {
		delays = []time.Duration{0, 1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 100, 130, 160, 200, 250, 300, 400, 600}
	}
	killed := 0
	for _, delay := range delays {
		ticket := v.ticket(t, "2", "")
		cloned := make(chan error, 1)
		go func() {
			_, err := v.call(t, api.Clone, "ticket", ticket)
			cloned <- err
		}()
		time.Sleep(delay * time.Millisecond)
		v.must(t, api.Kill, "ticket", ticket)
		if err := <-cloned; err != nil {
			killed++
			// When the kill was first there was no ticket to clone.
			if kind := api.KindOf(err); kind != api.KindKilled && (delay > 20 || kind != api.KindUnknown) {
				t.Errorf("killed %d ms after its begin, clone says %v", delay, err)
			}
		}
		v.alone(t)
		if _, err := v.call(t, api.Join, "ticket", ticket); api.KindOf(err) != api.KindUnknown {
			t.Errorf("join of the killed ticket: %v", err)
		}
	}
	if killed == 0 {
		t.Error("no clone call was under way when its ticket was killed")
	}
	v.prints(t, "fork 1; [ $id -gt 0 ] && sf exit 3; sf join $t; true", "1 3\n")
}

// callerGoesAway: so does its fork, and the ticket.
func (v *forkVM) callerGoesAway(t *testing.T) {
	for _, delay := range []time.Duration{0, 30, 100} {
		ticket := v.ticket(t, "2", "")
		conn := v.dial(t)
		go conn.Do(t.Context(), api.NewRequest(api.Clone, "ticket", ticket))
		time.Sleep(delay * time.Millisecond)
		conn.Close()
		time.Sleep(time.Second)
		// The fork may have been finished before.
		if _, err := v.call(t, api.Kill, "ticket", ticket); err != nil && api.KindOf(err) != api.KindUnknown {
			t.Errorf("after %d ms, kill: %v", delay, err)
		}
		v.alone(t)
	}
}
