package e2e

import (
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A place is where mpirun-sf is called: on this machine, for clones on it or on
// many hosts, or in a virtual machine, which it forks. What is true of a job in one
// is true of it in the others.
type place string

const (
	onHost  place = "host"
	inside  place = "inside"
	onHosts place = "hosts"
)

var places = []place{onHost, inside, onHosts}

// everywhere runs a test in all places with make test-all, and else in one of them, which is another one for another test.
// What holds in one and not in the others, TestHello finds.
func everywhere(t *testing.T, test func(t *testing.T, p place)) {
	turn := fnv.New32()
	turn.Write([]byte(t.Name()))
	for i, p := range places {
		t.Run(string(p), func(t *testing.T) {
			if i != int(turn.Sum32())%len(places) {
				slow(t)
			}
			test(t, p)
		})
	}
}

// outside runs a test on the host and on many hosts.
func outside(t *testing.T, test func(t *testing.T, p place)) {
	for _, p := range []place{onHost, onHosts} {
		t.Run(string(p), func(t *testing.T) { test(t, p) })
	}
}

// start starts a command, which is one of the host, in this place.
func (p place) start(t *testing.T, c command) *running {
	t.Helper()
	switch p {
	case onHost:
		return c.start(t)
	case onHosts:
		f := hosts.begin(t)
		c.args = f.over(farmSize, c.args)
		return f.start(t, c)
	}
	machine.boot(t)
	dir := c.dir
	if dir == "" {
		dir = t.TempDir()
	}
	c.args = slices.Concat([]string{"vm", "exec", machine.name, "sh", "-c", `cd "$1" && shift && exec env "$@"`, "sh", dir}, c.env, []string{"mpirun-sf"}, c.args)
	c.env = nil
	r := c.start(t)
	r.settled = func() {
		t.Helper()
		machine.settles(t)
	}
	return r
}

// run runs mpirun-sf in a fresh working directory.
func (p place) run(t *testing.T, args ...string) result {
	t.Helper()
	return p.start(t, command{args: args}).wait()
}

// clone is what a job's n-th clone is called, as far as that is known before:
// inside a machine, names that others have had lately are not given again.
func (p place) clone(n int) string {
	if p == inside {
		return "clone-"
	}
	return fmt.Sprintf("clone-%d", n)
}

// clones are the names of a job's n clones, in order, by its output.
func (p place) clones(t *testing.T, output string, n int) (names []string) {
	t.Helper()
	numbers := map[int]bool{}
	for _, text := range strings.Split(output, "clone-")[1:] {
		var number int
		if _, err := fmt.Sscan(text[:len(text)-len(strings.TrimLeft(text, "0123456789"))], &number); err == nil {
			numbers[number] = true
		}
	}
	for number := range numbers {
		if p != inside && number > n {
			t.Errorf("a job of %d clones has a clone-%d:\n%s", n, number, output)
		}
	}
	if len(numbers) != n {
		t.Fatalf("%d clones instead of %d in:\n%s", len(numbers), n, output)
	}
	for number := 1; len(names) < n; number++ {
		if numbers[number] {
			names = append(names, fmt.Sprintf("clone-%d", number))
		}
	}
	return names
}

// machine is the virtual machine that the tests of all jobs inside one share, so
// that it is booted once. Each leaves it as it was.
var machine = sharedVM{name: fmt.Sprintf("e2e-%d", os.Getpid())}

type sharedVM struct {
	name string
	once sync.Once
	err  error
	cmd  *exec.Cmd
	end  io.Closer // its command's standard input
	log  buffer
}

// vmShape is what most machines of the tests are like; for each other shape a
// guest has to be booted.
var vmShape = []string{"--memory", "256M", "--cpus", "2"}

// boot starts it if it does not run yet.
func (m *sharedVM) boot(t *testing.T) {
	t.Helper()
	m.once.Do(func() { m.err = m.start() })
	if m.err != nil {
		t.Fatalf("the machine that jobs run in: %v\n%s", m.err, &m.log)
	}
}

func (m *sharedVM) start() error {
	args := slices.Concat([]string{"vm", "run", "--name", m.name}, vmShape,
		[]string{"--share", os.TempDir(), "--share", examples + ":ro", "--", "sh", "-c", "echo waiting; exec cat"})
	m.cmd = exec.Command(launcher, args...)
	m.cmd.Dir, m.cmd.Env, m.cmd.Stdout, m.cmd.Stderr = os.TempDir(), environ(nil), &m.log, &m.log
	var err error
	if m.end, err = m.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(defaultLimit); !strings.Contains(m.log.String(), "waiting\n"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.stop()
			return fmt.Errorf("it did not start in %v", defaultLimit)
		}
	}
	return nil
}

// stop ends the machine, if it runs, as its command's end does.
func (m *sharedVM) stop() {
	if m.cmd == nil || m.cmd.Process == nil {
		return
	}
	m.end.Close()
	late := time.AfterFunc(10*time.Second, func() { m.cmd.Process.Kill() })
	m.cmd.Wait()
	late.Stop()
	m.cmd = nil
}

// pid is that of the launcher which started the machine, 0 if none did.
func (m *sharedVM) pid() int {
	if m.cmd == nil || m.cmd.Process == nil {
		return 0
	}
	return m.cmd.Process.Pid
}

// settles waits until nothing of the jobs in it is left: no clone, and of the
// machine itself its process and one that may wait to succeed it.
func (m *sharedVM) settles(t *testing.T) {
	t.Helper()
	var clones, own []process
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		clones, own = nil, nil
		for _, p := range m.processes() {
			switch {
			case p.isQEMU("-name clone-"):
				clones = append(clones, p)
			case p.isQEMU(""):
				own = append(own, p)
			}
		}
		if len(clones) == 0 && len(own) <= 2 {
			return
		}
	}
	t.Errorf("of jobs in a virtual machine these are left: %v %v", clones, own)
}

// processes are the machine's, and its clones'.
func (m *sharedVM) processes() []process {
	var out []process
	all := allProcesses()
	for _, p := range all {
		if descends(all, p, m.pid()) {
			out = append(out, p)
		}
	}
	return out
}

// in runs a shell's script in it.
func (m *sharedVM) in(t *testing.T, script string) result {
	t.Helper()
	m.boot(t)
	return command{args: []string{"vm", "exec", m.name, "sh", "-c", script}}.run(t)
}

// newVM is a machine to be, of the usual shape, which runs argv.
func newVM(name string, options []string, argv ...string) command {
	args := slices.Concat([]string{"vm", "run", "--name", name}, vmShape, options, []string{"--"}, argv)
	return command{args: args}
}

// vmFolder is where a machine's sockets and keys are.
func vmFolder(name string) string { return filepath.Join("/run/mpirun-sf/vm", name) }
