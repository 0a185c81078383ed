package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// farmVM is a virtual machine on the first host of a farm, whose clones other hosts
// carry too. Its own command is cat.
type farmVM struct {
	*farm
	name string
	dir  string // shared with it; the tests' program net is in it
	run  *running
	in   *os.File // of cat
}

// startVM starts a machine of the usual shape.
func (f *farm) startVM(t *testing.T, name string, options ...string) *farmVM {
	t.Helper()
	v := &farmVM{farm: f, name: vmNameOf(name), dir: t.TempDir()}
	netProgram(t, v.dir)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	v.in = in
	args := slices.Concat([]string{"vm", "run", "--name", v.name}, vmShape, []string{"--share", v.dir, "--share", examples + ":ro"}, options,
		[]string{"--", "sh", "-c", "echo up; exec cat"})
	v.run = f.start(t, command{dir: v.dir, stdin: out, args: args, limit: 10 * time.Minute})
	out.Close()
	t.Cleanup(func() { v.end(t) })
	v.run.awaitOutput("up\n", 1)
	return v
}

// end ends the machine, if it runs, and wants nothing of it to be left on any host.
func (v *farmVM) end(t *testing.T) {
	t.Helper()
	if v.in == nil {
		return
	}
	v.in.Close()
	v.in = nil
	if r := v.run.wait(); r.status != 0 {
		t.Errorf("the machine ended with status %d:\n%s", r.status, r.stderr)
	}
}

// begin starts a script in a machine: this one, or a clone of it.
func (v *farmVM) begin(t *testing.T, machine, script string) *running {
	t.Helper()
	if machine != "" {
		machine = "/" + machine
	}
	return v.farm.start(t, beside(command{
		args: []string{"vm", "exec", v.name + machine, "sh", "-c", "DIR=" + v.dir + "\n" + forkLibrary + script}, limit: 4 * time.Minute,
	}))
}

// prints runs a script in the machine, which has to succeed, and is what it printed.
func (v *farmVM) prints(t *testing.T, script string) string {
	t.Helper()
	return v.printsIn(t, "", script)
}

func (v *farmVM) printsIn(t *testing.T, machine, script string) string {
	t.Helper()
	r := v.begin(t, machine, "exec 2>&1\n"+script).wait()
	if r.status != 0 {
		t.Fatalf("status %d after\n%s\n%s%s\n%s", r.status, script, r.stdout, r.stderr, v.run.stderr)
	}
	return r.stdout
}

// file is what a machine has written into the shared folder.
func (v *farmVM) file(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(v.dir, name))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// awaitFile waits until a file in the shared folder has that text.
func (v *farmVM) awaitFile(t *testing.T, name, text string) {
	t.Helper()
	v.run.await(name+" with "+text, func() bool {
		b, _ := os.ReadFile(filepath.Join(v.dir, name))
		return strings.Contains(string(b), text)
	})
}

// netProgram compiles testdata/net into a folder.
func netProgram(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), setUpLimit)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "net"), "./testdata/net")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the program net: %v\n%s", err, out)
	}
}

// field is a word of the line of sf whoami in a file: ID NAME IP VCPUS HOST MEMBER TICKET.
func field(line string, n int) string {
	if words := strings.Fields(line); n < len(words) {
		return words[n]
	}
	return ""
}

const (
	fieldIP   = 2
	fieldHost = 4
)

// TestForkOverHosts: a machine forks, and its clones fork, and all is as on one host.
func TestForkOverHosts(t *testing.T) {
	f := hosts.begin(t)
	v := f.startVM(t, "fork", "--hosts", "host1,host2")
	t.Run("forks of forks", v.forksOfForks)
	t.Run("statuses", func(t *testing.T) {
		got := v.prints(t, `fork 2
case $id in
1) forever ;;
2) sf exit 3 ;;
esac
sf kill $t 1
sf join -t 60 $t; echo "status $?"; alone`)
		if want := "1 137\n2 3\nstatus 137\n1\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("a lost clone", func(t *testing.T) {
		run := v.begin(t, "", `fork 2
[ $id != 1 ] || forever
[ $id != 2 ] || sf exit 4
sf ticket $t
sf join -t 60 $t; echo "status $?"; alone`)
		run.awaitOutput(" host2\n", 1)
		name := field(run.stdout.String(), 1)
		for _, p := range allProcesses() {
			if p.isQEMU("-name " + name) {
				syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
		if r := run.wait(); !strings.HasSuffix(r.stdout, "host2\n1 lost\n2 4\nstatus 1\n1\n") {
			t.Errorf("got %q", r.stdout)
		}
	})
	t.Run("a clone's checkpoint", func(t *testing.T) { slow(t); v.checkpointElsewhere(t) })
	t.Run("hierarchical", func(t *testing.T) {
		got := v.prints(t, `fork 4 --hierarchical
[ $id = 0 ] || sf exit $(nproc)
sf ticket $t; echo; sf join -t 60 $t; alone`)
		clones, statuses, _ := strings.Cut(got, "\n\n")
		processors := 0
		for line := range strings.Lines(clones + "\n") {
			id, cpus := field(line, 0), field(line, 3)
			if !strings.Contains(statuses, id+" "+cpus+"\n") {
				t.Errorf("a clone has other virtual CPUs than its ticket says, %s:\n%s", strings.TrimSpace(line), statuses)
			}
			var n int
			fmt.Sscan(cpus, &n)
			processors += n
		}
		if processors != 4 || !strings.HasSuffix(got, "\n1\n") {
			t.Errorf("%d processors instead of 4:\n%s", processors, got)
		}
	})
	t.Run("mpirun-sf inside", func(t *testing.T) {
		got := v.prints(t, "cd $DIR && exec mpirun-sf -q -np 3 "+example("hello"))
		if strings.Count(got, "sum 3, allreduce") != 3 || !strings.Contains(got, "hello from rank 2 of 3") {
			t.Errorf("got:\n%s", got)
		}
		if got := v.prints(t, "cd $DIR && exec mpirun-sf -q -np 3 "+example("ring")); !strings.Contains(got, "ring of 3 ranks, 10 laps: token 60, as expected\n") {
			t.Errorf("got:\n%s", got)
		}
	})
	t.Run("conformance", func(t *testing.T) {
		slow(t)
		bindings := "../../vmfork/bindings"
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(v.dir, "conformance"), "./go")
		build.Dir, build.Env = bindings, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the conformance program: %v\n%s", err, out)
		}
		golden, err := os.ReadFile(bindings + "/testdata/conformance.golden")
		if err != nil {
			t.Fatal(err)
		}
		// It may not lie in the shared folder, which is mounted anew in clones.
		if got := v.prints(t, "cp $DIR/conformance /root && exec /root/conformance"); got != string(golden) {
			t.Errorf("it printed\n%s\nand not\n%s", got, golden)
		}
	})
	v.end(t)
}

// forksOfForks: two clones on two hosts fork into two each. All have what was before
// their fork, in memory and on disk, and what the clone that they are of has made of it;
// all share a folder; all talk to each other.
func (v *farmVM) forksOfForks(t *testing.T) {
	got := v.prints(t, `mkdir -p $DIR/out /root/work && cd /root/work
cp $DIR/net . && head -c 4M /dev/urandom >disk && head -c 3M /dev/urandom >/dev/shm/memory && sync
cat disk /dev/shm/memory | cksum >$DIR/out/before
# all is in the parent: everybody says who they are, and then asks everybody
meet() {
	exec >$DIR/out/$1 2>&1
	sf whoami
	cat disk /dev/shm/memory | cksum
	cat mark /dev/shm/mark 2>/dev/null
	./net answer 7000 "this is $1" $DIR/out/$1.heard &
	for i in $(seq 100); do grep -qs ready $DIR/out/$1.heard && break; sleep 0.3; done
	echo "$1 $(sf whoami | cut -d ' ' -f 3):7000" >$DIR/out/$1.here
	for i in $(seq 240); do [ $(ls $DIR/out | grep -c here) = 7 ] && break; sleep 0.5; done
	./net insist $(cat $DIR/out/*.here | cut -d ' ' -f 2)
	echo done >$DIR/out/$1.done
	for i in $(seq 240); do [ $(ls $DIR/out | grep -c done) = 7 ] && break; sleep 0.5; done
}
fork 2
if [ $id != 0 ]; then
	top=$id
	echo "of $top" >mark; echo "in memory of $top" >/dev/shm/mark
	echo more >>disk
	fork 2
	if [ $id != 0 ]; then meet $top.$id; sf exit $((10 * top + id)); fi
	( meet $top )
	sf join -t 120 $t >$DIR/out/$top.joined
	sf exit $top
fi
( meet 0 )
sf join -t 120 $t; echo "status $?"; alone`)
	if want := "1 1\n2 2\nstatus 1\n1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	before := v.file(t, "out/before")
	hosts := map[string]string{}
	for _, who := range []string{"0", "1", "2", "1.1", "1.2", "2.1", "2.2"} {
		lines := strings.SplitAfter(v.file(t, "out/"+who), "\n")
		if len(lines) < 2 {
			t.Errorf("%s wrote %q", who, lines)
			continue
		}
		hosts[who] = field(lines[0], fieldHost)
		said := strings.Join(lines, "")
		switch top, _, deep := strings.Cut(who, "."); {
		case who == "0" && lines[1] != before:
			t.Errorf("the parent's files changed: %s after %s", lines[1], before)
		case who == "0":
		case lines[1] == before || lines[1] != strings.SplitAfter(v.file(t, "out/"+top), "\n")[1]:
			t.Errorf("the files of %s are not those of %s, which it is a clone of: %s", who, top, lines[1])
		case !strings.Contains(said, "of "+top+"\nin memory of "+top+"\n"):
			t.Errorf("%s does not have what %s made: %s", who, top, said)
		case !deep && v.file(t, "out/"+who+".joined") != fmt.Sprintf("1 %s1\n2 %s2\n", who, who):
			t.Errorf("%s joined %s", who, v.file(t, "out/"+who+".joined"))
		}
		for _, other := range []string{"0", "1", "2", "1.1", "1.2", "2.1", "2.2"} {
			if n := strings.Count(said, ": this is "+other+"\n"); n != 1 {
				t.Errorf("%s on %s got %d answers from %s:\n%s", who, hosts[who], n, other, said)
			}
		}
	}
	if hosts["0"] != "host0" || hosts["1"] != "host1" || hosts["2"] != "host2" {
		t.Errorf("the clones are not on host1 and host2, each on one: %v", hosts)
	}
	if hosts["1.1"] == hosts["1.2"] || hosts["2.1"] == hosts["2.2"] {
		t.Errorf("the clones of clones are not on another host than what they are clones of, one of two: %v", hosts)
	}
}

// checkpointElsewhere: a clone on another host keeps a checkpoint of itself, goes on,
// and makes clones of it on both hosts.
func (v *farmVM) checkpointElsewhere(t *testing.T) {
	got := v.prints(t, `mkdir -p $DIR/kept && cd /root && echo long ago >when
fork 1
if [ $id != 0 ]; then
	head -c 2M /dev/urandom >/dev/shm/kept && echo then >when && cksum </dev/shm/kept >$DIR/kept/sum
	set -- $(sf checkpoint) && c=$1 id=$2
	if [ $id != 0 ]; then
		{ sf whoami; cat when; cksum </dev/shm/kept; } >$DIR/kept/of.$(sf whoami | cut -d ' ' -f 1,7 | tr ' ' .) 2>&1
		sf exit $((20 + id))
	fi
	echo now >when; echo other >/dev/shm/kept
	t=$(sf request-ticket 2) && sf create-clones $c $t && sf join -t 100 $t >$DIR/kept/joined
	t=$(sf request-ticket 1) && sf create-clones $c $t && sf join -t 100 $t >>$DIR/kept/joined
	sf discard $c && why sf create-clones $c $t >>$DIR/kept/joined
	sf exit 9
fi
sf join -t 200 $t; cat when; alone`)
	if got != "1 9\nlong ago\n1\n" {
		t.Errorf("got %q", got)
	}
	if got, want := v.file(t, "kept/joined"), "1 21\n2 22\n1 21\nunknown\n"; got != want {
		t.Errorf("the clone's joins got %q, want %q", got, want)
	}
	on := map[string]int{}
	clones, err := filepath.Glob(filepath.Join(v.dir, "kept/of.*"))
	if err != nil || len(clones) != 3 {
		t.Fatalf("instead of three clones there are %v, %v", clones, err)
	}
	for _, path := range clones {
		who, rest, _ := strings.Cut(v.file(t, "kept/"+filepath.Base(path)), "\n")
		on[field(who, fieldHost)]++
		if want := "then\n" + v.file(t, "kept/sum"); rest != want {
			t.Errorf("a clone of the checkpoint (%s) has %q, want %q", who, rest, want)
		}
	}
	if on["host1"] == 0 || on["host2"] == 0 || len(on) != 2 {
		t.Errorf("the checkpoint's clones are not on both hosts but on %v", on)
	}
}
