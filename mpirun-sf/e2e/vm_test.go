package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestVM: what a command in a machine finds, and what it leaves.
func TestVM(t *testing.T) {
	nothingIsLeft(t)
	dir, readOnly := t.TempDir(), t.TempDir()
	write(t, filepath.Join(readOnly, "there"), "on the host\n")
	// Nothing is built or booted for a machine like one before.
	machine.boot(t)
	c := newVM("e2e-command", []string{"-env", "GREETING", "a, b = c", "-env", "EMPTY=", "--share", dir, "--share", readOnly + ":ro"}, "sh", "-c", `
		cat
		echo "env=$GREETING,${EMPTY-unset},${FROM_OUTSIDE-unset}"
		echo "in $PWD on $(hostname), $(nproc) CPUs, $(id -u)"
		tty
		echo by a machine >by-machine
		cat "$1/there"; touch "$1/by-machine"
		exit 7`, "sh", readOnly)
	c.dir, c.env, c.stdin = dir, []string{"FROM_OUTSIDE=yes"}, strings.NewReader("typed\n")
	r := c.run(t)
	if want := "typed\nenv=a, b = c,,unset\nin " + dir + " on parent, 2 CPUs, 0\nnot a tty\non the host\n"; r.status != 7 || r.stdout != want {
		t.Errorf("status %d, printed\n%s\nand not\n%s", r.status, r.stdout, want)
	}
	if !strings.Contains(r.stderr, "Read-only file system") || !strings.Contains(r.stderr, "virtual machine e2e-command ready in") ||
		strings.Contains(r.stderr, "built") || strings.Contains(r.stderr, "booted") {
		t.Errorf("on stderr:\n%s", r.stderr)
	}
	t.Logf("a command's start and end in a machine of its own took %.2f s", r.took.Seconds())
	if b, err := os.ReadFile(filepath.Join(dir, "by-machine")); err != nil || string(b) != "by a machine\n" {
		t.Errorf("what the command wrote in its working directory is %q (%v)", b, err)
	}
	if _, err := os.Stat(filepath.Join(readOnly, "by-machine")); err == nil {
		t.Error("the command wrote in a folder that is shared for reading")
	}
	if _, err := os.Stat(vmFolder("e2e-command")); err == nil {
		t.Error("the folder of the machine's sockets and keys is still there")
	}
}

// TestVMEnd: a machine ends with its command, and that of a signal.
func TestVMEnd(t *testing.T) {
	nothingIsLeft(t)
	t.Run("signals", func(t *testing.T) {
		run := newVM("e2e-end", []string{"-q", "-wdir", "/usr/bin"}, "sh", "-c", "trap 'echo got it' USR1; pwd; echo up; while :; do sleep 0.1; done").start(t)
		run.awaitOutput("up", 1)
		beside(newVM("e2e-end", nil, "true")).run(t).oneLine(t, "a virtual machine named e2e-end runs already", "--name")
		run.cmd.Process.Signal(syscall.SIGUSR1)
		run.awaitOutput("got it", 1)
		begin := time.Now()
		run.cmd.Process.Signal(syscall.SIGTERM)
		if r := run.wait(); r.status != 128+15 || r.stdout != "/usr/bin\nup\ngot it\n" || strings.Contains(r.stderr, "mpirun-sf") {
			t.Errorf("status %d\nstdout:\n%s\nstderr:\n%s", r.status, r.stdout, r.stderr)
		}
		if took := time.Since(begin); took > promptly {
			t.Errorf("the machine ended %v after its command", took)
		}
	})
	t.Run("before it runs", func(t *testing.T) {
		run := newVM("e2e-end", []string{"-v"}, "true").start(t)
		run.await("the image", func() bool { return strings.Contains(run.stderr.String(), " image ") })
		run.cmd.Process.Signal(syscall.SIGINT)
		if r := run.wait(); r.status != 130 {
			t.Errorf("status %d after Ctrl-C:\n%s", r.status, r.stderr)
		}
	})
	// Nobody could clean up: all but a folder is the kernel's to remove.
	t.Run("killed", func(t *testing.T) {
		run := newVM("e2e-end", nil, "sh", "-c", "echo up; exec sleep 100").start(t)
		run.awaitOutput("up", 1)
		run.cmd.Process.Kill()
		if r := run.wait(); r.status != 137 {
			t.Errorf("status %d", r.status)
		}
		if r := mpirun(t, "vm", "ls").succeeds(t); strings.Contains(r.stdout, "e2e-end") {
			t.Errorf("vm ls still shows it:\n%s", r.stdout)
		}
		mpirun(t, "vm", "exec", "e2e-end", "true").oneLine(t, "e2e-end", "no")
		if r := mpirun(t, "clean").succeeds(t); !strings.Contains(r.stderr, "of dead virtual machines and") {
			t.Errorf("clean says %q", r.stderr)
		}
		if _, err := os.Stat(vmFolder("e2e-end")); err == nil {
			t.Error("the folder of its sockets and keys is still there after clean")
		}
	})
	t.Run("lost", func(t *testing.T) {
		run := newVM("e2e-end", nil, "sh", "-c", "echo up; exec sleep 100").start(t)
		run.awaitOutput("up", 1)
		for _, p := range processes() {
			if p.isQEMU("") {
				syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
		begin := time.Now()
		run.wait().fails(t, 1, "the virtual machine was lost", "killed")
		if took := time.Since(begin); took > promptly {
			t.Errorf("the launcher noticed after %v", took)
		}
	})
}

// TestVMExec: one more command in a machine that runs.
func TestVMExec(t *testing.T) {
	machine.boot(t)
	for name, c := range map[string]struct {
		argv           []string
		stdin          string
		status         int
		stdout, stderr string
	}{
		"status":          {[]string{"sh", "-c", "exit 9"}, "", 9, "", ""},
		"killed":          {[]string{"sh", "-c", "kill -SEGV $$"}, "", 139, "", ""},
		"streams":         {[]string{"sh", "-c", "cat; echo error >&2"}, strings.Repeat("typed\n", 50000), 0, strings.Repeat("typed\n", 50000), "error\n"},
		"end of input":    {[]string{"cat"}, "", 0, "", ""},
		"words":           {[]string{"printf", "<%s>", "a b", "", "$HOME", "-v"}, "", 0, "<a b><><$HOME><-v>", ""},
		"after --":        {[]string{"--", "sh", "-c", "echo $PWD"}, "", 0, "/root\n", ""},
		"a shell":         {nil, "echo in a shell; exit 4\n", 4, "in a shell\n", ""},
		"no such program": {[]string{"no-such"}, "", 127, "", "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			r := command{args: append([]string{"vm", "exec", machine.name}, c.argv...), stdin: strings.NewReader(c.stdin)}.run(t)
			if r.status != c.status || r.stdout != c.stdout || !strings.Contains(r.stderr, c.stderr) || c.stderr == "" && r.stderr != "" {
				t.Errorf("status %d\nstdout:\n%.300s\nstderr:\n%.300s", r.status, r.stdout, r.stderr)
			}
		})
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			run := command{args: []string{"vm", "exec", machine.name, "sh", "-c", "echo up; exec sleep 100"}}.start(t)
			run.awaitOutput("up", 1)
			run.cmd.Process.Signal(sig)
			if r := run.wait(); r.status != 128+int(sig) {
				t.Errorf("status %d:\n%s", r.status, r.stderr)
			}
		})
	}
	t.Run("killed outside", func(t *testing.T) {
		// Who waits for input sees its end; nobody is at the other end of its output.
		run := command{args: []string{"vm", "exec", machine.name, "sh", "-c", "echo up; cat; touch /root/seen"}, stdin: silence(t)}.start(t)
		run.awaitOutput("up", 1)
		run.cmd.Process.Kill()
		run.wait()
		machine.in(t, "for i in $(seq 50); do [ -e /root/seen ] && exit; sleep 0.1; done; exit 1").succeeds(t)
	})
}

// silence is an input that never comes to its end.
func silence(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r
}

// TestVMClones: two machines, each with a clone that has the same name.
func TestVMClones(t *testing.T) {
	nothingIsLeft(t)
	other := newVM("e2e-other", nil, "sh", "-c", "echo up; exec cat")
	end := silence(t)
	other.stdin = end
	run := other.start(t)
	run.awaitOutput("up", 1)
	fork := "t=$(sf request-ticket 1) && id=$(sf clone $t) || exit; if [ $id -gt 0 ]; then sleep 1000; fi; echo $t"
	exec := func(name, script string) result {
		return beside(command{args: []string{"vm", "exec", name, "sh", "-c", script}}).run(t)
	}
	mine := strings.TrimSpace(exec(machine.ready(t), fork).succeeds(t).stdout)
	t.Run("one", func(t *testing.T) {
		has(t, exec(machine.name+"/clone-1", "hostname").succeeds(t).stdout, "clone-1")
		ssh := beside(command{args: []string{"vm", "ssh", machine.name + "/clone-1", "hostname"}}).run(t)
		has(t, ssh.stdout, "clone-1")
		r := beside(command{args: []string{"vm", "ls"}}).run(t).succeeds(t)
		for _, fields := range []string{machine.name + " parent 0", machine.name + " clone-1 1", "e2e-other parent 0"} {
			if !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), fields) {
				t.Errorf("vm ls does not show %s:\n%s", fields, r.stdout)
			}
		}
	})
	exec("e2e-other", fork).succeeds(t)
	t.Run("two", func(t *testing.T) {
		exec("clone-1", "hostname").oneLine(t, "have a clone named clone-1 each: say which, as ", "/clone-1")
		has(t, exec("e2e-other/parent", "hostname").succeeds(t).stdout, "parent")
		beside(command{args: []string{"vm", "exec", "nobody", "true"}}).run(t).oneLine(t, "nobody: there is no such machine", "e2e-other", machine.name)
	})
	t.Run("kill", func(t *testing.T) {
		beside(command{args: []string{"vm", "kill", "--vm", machine.name, mine}}).run(t).succeeds(t)
		beside(command{args: []string{"vm", "join", "--vm", machine.name, mine}}).run(t).fails(t, 1)
		has(t, exec("e2e-other/clone-1", "hostname").succeeds(t).stdout, "clone-1")
		exec(machine.name+"/clone-1", "hostname").oneLine(t, machine.name+"/clone-1: there is no such machine")
	})
	run.cmd.Process.Signal(syscall.SIGTERM)
	run.wait()
	machine.settles(t)
}

// ready is the machine's name, once it runs.
func (m *sharedVM) ready(t *testing.T) string { t.Helper(); m.boot(t); return m.name }

// TestVMSSH: with the machine's ssh.
func TestVMSSH(t *testing.T) {
	name := machine.ready(t)
	ssh := func(t *testing.T, stdin string, args ...string) result {
		t.Helper()
		return command{args: append([]string{"vm", "ssh", name}, args...), stdin: strings.NewReader(stdin)}.run(t)
	}
	r := ssh(t, "typed\n", "cat; echo error >&2; hostname; exit 6")
	if r.status != 6 || r.stdout != "typed\nparent\n" || r.stderr != "error\n" {
		t.Errorf("status %d\nstdout:\n%s\nstderr:\n%s", r.status, r.stdout, r.stderr)
	}
	if r := ssh(t, "tty; exit 3\n", "-tt"); r.status != 3 || !strings.Contains(r.stdout, "/dev/pts/") {
		t.Errorf("a shell at a terminal: status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	config := filepath.Join(vmFolder(name), "ssh_config")
	plain := func(args ...string) command {
		return command{program: "ssh", args: append([]string{"-F", config}, args...)}
	}
	t.Run("by its configuration", func(t *testing.T) {
		if r := plain(name, "hostname").run(t); r.status != 0 || r.stdout != "parent\n" {
			t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
		}
	})
	t.Run("another key", func(t *testing.T) {
		key := filepath.Join(t.TempDir(), "key")
		tool(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
		config := filepath.Join(t.TempDir(), "config")
		b, err := os.ReadFile(filepath.Join(vmFolder(name), "ssh_config"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, config, strings.ReplaceAll(string(b), filepath.Join(vmFolder(name), "id"), key))
		r := command{program: "ssh", args: []string{"-F", config, name, "hostname"}}.run(t)
		if r.status != 255 || !strings.Contains(r.stderr, "Permission denied") || r.stdout != "" {
			t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
		}
	})
	t.Run("private", func(t *testing.T) {
		for _, file := range []string{"", "id", "host_key", "sf.sock", "attach.sock", "ssh_config", "lock"} {
			st, err := os.Stat(filepath.Join(vmFolder(name), file))
			if err != nil || st.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s/%s has mode %v (%v)", vmFolder(name), file, st.Mode(), err)
			}
		}
	})
}

// TestVMBadInput: one line says what is wrong.
func TestVMBadInput(t *testing.T) {
	machine.boot(t)
	nothingIsLeft(t)
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	for name, c := range map[string]struct {
		line  string
		attr  *syscall.SysProcAttr
		words []string
	}{
		"no such command":   {"vm start", nil, []string{"vm has no command start"}},
		"no name":           {"vm exec", nil, []string{"which machine?", "vm ls"}},
		"no name for ssh":   {"vm ssh", nil, []string{"which machine?", "vm ls"}},
		"no such machine":   {"vm exec nobody true", nil, []string{"nobody: there is no such machine", machine.name}},
		"to ssh to":         {"vm ssh nobody true", nil, []string{"nobody: there is no such machine"}},
		"to kill":           {"vm kill --vm nobody t1", nil, []string{"nobody: there is no such machine"}},
		"no such ticket":    {"vm kill --vm " + machine.name + " no-such", nil, []string{"no-such"}},
		"not root":          {"vm run true", nobody, []string{"needs root", "sudo"}},
		"not root for exec": {"vm exec " + machine.name + " true", nobody, []string{"only root may", "sudo"}},
		"name of a clone":   {"vm run --name clone-7 true", nil, []string{"--name clone-7"}},
		"missing file":      {"vm run --with no-such true", nil, []string{"--with no-such", "no such file"}},
		"no such image":     {"vm run --image no-such true", nil, []string{"no-such does not exist"}},
		"too large":         {"vm run --memory 900G true", nil, []string{"--memory", "does not fit into the", "free here"}},
		"unknown option":    {"vm run --no-such true", nil, []string{"no-such", "--help"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if c.attr != nil {
				dir = "/" // which nobody can enter
			}
			command{args: strings.Fields(c.line), attr: c.attr, dir: dir}.run(t).oneLine(t, c.words...)
		})
	}
}

// TestVMWith: what else there is to be in a machine, and room on its disk.
func TestVMWith(t *testing.T) {
	nothingIsLeft(t)
	// A guest has a /tmp of its own, and what is brought would lie under it.
	dir, err := os.MkdirTemp("/var/tmp", "mpirun-sf-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	tool(t, "cp", compile(t, "gcc", "testdata/probe.c"), filepath.Join(dir, "probe"))
	if err := os.MkdirAll(filepath.Join(dir, "folder", "in it"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "folder", "in it", "file"), "of the host\n")
	options := []string{"--with", filepath.Join(dir, "probe"), "--with", filepath.Join(dir, "folder"), "--free", "300M"}
	r := newVM("e2e-with", options, "sh", "-c", `cd "$1" || exit
		PMI_RANK=5 ./probe arg:brought; cat folder/*/file; echo changed >folder/own && cat folder/own
		dd if=/dev/zero of=/root/large bs=1M count=250 2>/dev/null && wc -c </root/large`, "sh", dir).run(t).succeeds(t)
	if want := "5 arg:brought = brought\nof the host\nchanged\n262144000\n"; r.stdout != want {
		t.Errorf("printed\n%s\nand not\n%s", r.stdout, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "folder", "own")); err == nil {
		t.Error("what was brought is shared")
	}
}

// TestVMOwnImage: a disk of the user's own. Nothing that the machine does changes it.
func TestVMOwnImage(t *testing.T) {
	nothingIsLeft(t)
	// A root that was made elsewhere; here, by us, with a trace of its own.
	_, rest, _ := strings.Cut(newVM("e2e-own", []string{"-v"}, "true").run(t).succeeds(t).stderr, " s  image ")
	key, _, _ := strings.Cut(rest, ",")
	dir := t.TempDir()
	raw, qcow := filepath.Join(dir, "own.raw"), filepath.Join(dir, "own.qcow2")
	tool(t, "cp", "--sparse=always", filepath.Join(cacheDir, "mpirun-sf", "images", key, "root.img"), raw)
	write(t, filepath.Join(dir, "trace"), "my own disk\n")
	tool(t, "debugfs", "-w", "-R", "write "+filepath.Join(dir, "trace")+" etc/trace", raw)
	tool(t, "qemu-img", "convert", "-O", "qcow2", raw, qcow)
	before := checksum(t, qcow)
	copyTo(t, dir, "nompi")
	c := newVM("e2e-own", []string{"--image", qcow}, "sh", "-c", "cat /etc/trace; echo changed >/etc/trace; mpirun-sf -q -np 2 ./nompi")
	c.dir = dir
	r := c.run(t).succeeds(t)
	has(t, r.stdout, "my own disk", "no MPI here: clone-1, PMI_RANK 0 of PMI_SIZE 2", "no MPI here: clone-2, PMI_RANK 1 of PMI_SIZE 2")
	if after := checksum(t, qcow); after != before {
		t.Error("the machine changed the user's file")
	}
	if full {
		t.Run("without a shell", func(t *testing.T) {
			for _, shell := range []string{"dash", "sh"} {
				tool(t, "debugfs", "-w", "-R", "rm /usr/bin/"+shell, raw)
			}
			newVM("e2e-own", []string{"--image", raw}, "ls").run(t).fails(t, 1, "start /bin/sh", "no such file")
		})
	}
}

func checksum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}
