package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

// forkLibrary is in front of each script: what the cases have in common.
const forkLibrary = `
# fork N [OPTION...] sets t, the ticket, and id.
fork() { t=$(sf request-ticket "$@") && id=$(sf clone "$t") || exit 77; }
forever() { while :; do sleep 60; done; }
# why COMMAND... prints the kind of its error, or ok.
why() { if e=$("$@" 2>&1 >/dev/null); then echo ok; else echo "$e" | grep -oE -m1 '(invalid|unknown|refused|state|resources|failed|lost|timeout|killed|cloned|version|unavailable):' | head -n 1 | tr -d :; fi; }
# alone waits until there is no clone any more, and prints how many machines there are.
alone() { for i in 1 2 3 4 5 6 7 8 9 10; do [ "$(sf list | wc -l)" = 1 ] && break; sleep 0.5; done; sf list | wc -l; }
`

// forkVM is a virtual machine of mpirun-sf vm run that several cases fork, one after
// another. Its own command is cat.
type forkVM struct {
	t    *testing.T
	name string
	dir  string // shared with it
	run  *running
	in   *os.File // of cat
}

// startVM starts one of 256 MB and two virtual CPUs. When the test ends it ends, well,
// and nothing may be left of it.
func startVM(t *testing.T, options ...string) *forkVM {
	t.Helper()
	nothingIsLeft(t)
	v := &forkVM{t: t, name: vmNameOf(t.Name()), dir: t.TempDir()}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	v.in = in
	args := append([]string{"vm", "run", "--name", v.name, "--memory", "256M", "--cpus", "2"}, options...)
	v.run = command{dir: v.dir, stdin: out, args: append(args, "--", "sh", "-c", "echo up; exec cat"), limit: 10 * time.Minute}.start(t)
	out.Close()
	t.Cleanup(func() { v.end() })
	v.run.awaitOutput("up\n", 1)
	return v
}

// vmNameOf is a name that no other run of these tests gives a machine.
func vmNameOf(test string) string {
	return fmt.Sprint(strings.ToLower(test), "-", os.Getpid())
}

// end ends the machine, and is how it ended.
func (v *forkVM) end() result {
	v.t.Helper()
	v.in.Close()
	r := v.run.wait()
	if r.status != 0 && !v.t.Failed() {
		v.t.Errorf("the machine ended with status %d:\n%s", r.status, r.stderr)
	}
	return r
}

// begin starts a script in the machine, beside its own command and others.
func (v *forkVM) begin(t *testing.T, script string) *running {
	t.Helper()
	return command{beside: true, args: []string{"vm", "ssh", v.name, "DIR=" + v.dir + forkLibrary + script}}.start(t)
}

// prints runs a script in the machine, which has to succeed and print that, on standard
// error too.
func (v *forkVM) prints(t *testing.T, script, want string) {
	t.Helper()
	r := v.begin(t, "exec 2>&1\n"+script).wait()
	if r.status != 0 || r.stdout != want {
		t.Errorf("status %d, got\n%s\nwant\n%s\nafter\n%s\n%s", r.status, r.stdout, want, script, r.stderr)
	}
}

// guestProgram compiles a program of testdata/fork into the folder that is shared with
// the machine. To run it in clones it has to be copied, for that folder is mounted anew.
func (v *forkVM) guestProgram(t *testing.T, name string) {
	t.Helper()
	const bindings = "../../vmfork/bindings/c"
	program := compile(t, "gcc", "testdata/fork/"+name+".c", "-pthread", "-I"+bindings, bindings+"/sf.c")
	data, err := os.ReadFile(program)
	if err == nil {
		err = os.WriteFile(filepath.Join(v.dir, name), data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// dial connects to the machine's socket on the host, and who calls there has the right to
// everything.
func (v *forkVM) dial(t *testing.T) *api.Conn {
	t.Helper()
	conn, err := api.Dial(t.Context(), "/run/mpirun-sf/vm/"+v.name+"/sf.sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// call makes a call from the host. An error is one of the protocol's.
func (v *forkVM) call(t *testing.T, name string, keyValues ...string) (api.Reply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), defaultLimit)
	defer cancel()
	conn := v.dial(t)
	defer conn.Close()
	reply, err := conn.Do(ctx, api.NewRequest(name, keyValues...))
	if err == nil && reply.Err != nil {
		err = reply.Err
	}
	return reply, err
}

// must is call where an error is the test's end.
func (v *forkVM) must(t *testing.T, name string, keyValues ...string) api.Reply {
	t.Helper()
	reply, err := v.call(t, name, keyValues...)
	if err != nil {
		t.Fatalf("%s %q: %v", name, keyValues, err)
	}
	return reply
}

// ticket requests one on behalf of the host.
func (v *forkVM) ticket(t *testing.T, clones, vm string) string {
	t.Helper()
	request := []string{"clones", clones}
	if vm != "" {
		request = append(request, "vm", vm)
	}
	id, err := v.must(t, api.RequestTicket, request...).Name("ticket")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// machines are the names of all that run.
func (v *forkVM) machines(t *testing.T) (names []string) {
	t.Helper()
	all, err := v.must(t, api.List).Machines()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		names = append(names, m.Name)
	}
	return names
}

// alone fails the test if there are clones, also a moment later.
func (v *forkVM) alone(t *testing.T) {
	t.Helper()
	var names []string
	for deadline := time.Now().Add(promptly); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if names = v.machines(t); len(names) == 1 {
			return
		}
	}
	t.Errorf("there are still %v", names)
}

// hypervisors are those of the machine and its clones, and what was started ahead.
func (v *forkVM) hypervisors() (all []process) {
	for _, p := range processes() {
		if p.isQEMU("") {
			all = append(all, p)
		}
	}
	return all
}
