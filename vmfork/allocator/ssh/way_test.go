package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/hostlist"
)

func TestHostsOnTheWay(t *testing.T) {
	w := newWorld(t)
	gate, inner := w.simple("gate"), w.simple("inner")
	w.simple("middle")
	w.write("config", "Host far\nHostName 127.0.0.1\n"+fmt.Sprintf("Port %d\n", inner.port)+"ProxyJump gate,middle\n"+
		"Host direct\nHostName 127.0.0.1\n"+fmt.Sprintf("Port %d\n", inner.port)+"ProxyCommand nc-of-sorts %h %p\n"+
		"Host circle\nProxyJump circle\n"+
		fmt.Sprintf("Host lost\nHostName 127.0.0.1\nPort %d\nProxyJump gate\n", freePort(t))+
		"Host badgate\nProxyJump nobody@gate\n")
	a := w.open(Config{}, "far", "inner", "lost", "circle", "badgate")
	errs := make(chan error)
	for range 4 {
		go func() { errs <- w.echo(a, "far") }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(gate.log.String(), "Accepted publickey"); n != 1 {
		t.Errorf("%d logins at the gate for four connections, want 1", n)
	}
	fails(t, w.echo(a, "lost"), "lost", "through gate")
	fails(t, w.echo(a, "circle"), "circle", "round in circles")
	fails(t, w.echo(a, "badgate"), "badgate", "gate: log in as nobody@127.0.0.1", "none of the keys")
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestProxyCommand(t *testing.T) {
	w := newWorld(t)
	h := w.simple("h2")
	// bash's own TCP, so that the test needs no other program.
	w.write("config", "Host through\nHostName 127.0.0.1\n"+fmt.Sprintf("Port %d\n", h.port)+
		"ProxyCommand bash -c 'exec 3<>/dev/tcp/%h/%p; cat <&3 & cat >&3; kill $!'\n"+
		"Host broken\nHostName 127.0.0.1\n"+fmt.Sprintf("Port %d\n", h.port)+"ProxyCommand echo no way to %n >&2; exit 1\n")
	a := w.open(Config{}, "through", "broken")
	if err := w.echo(a, "through"); err != nil {
		t.Error(err)
	}
	fails(t, w.echo(a, "broken"), "broken")
}

func TestHostsThatAreNotThere(t *testing.T) {
	w := newWorld(t)
	w.simple("h1")
	w.enter("refuses", freePort(t))
	// One that takes connections, and says nothing.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	w.write("config", "Host silent\nConnectTimeout 1\nHost *\n")
	w.enter("silent", silent.Addr().(*net.TCPAddr).Port)
	// One that hangs up.
	rude, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer rude.Close()
	go func() {
		for {
			conn, err := rude.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	w.enter("rude", rude.Addr().(*net.TCPAddr).Port)
	w.write("config", "Host unknown\nHostName no-such-host.invalid\n")
	a := w.open(Config{}, "h1", "refuses", "silent", "rude", "unknown")
	fails(t, w.echo(a, "refuses"), "refuses", "127.0.0.1:", "connection refused", "does sshd run there")
	err = w.echo(a, "silent")
	fails(t, err, "silent", "waited 1s for its greeting")
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v is not that time was over", err)
	}
	fails(t, w.echo(a, "rude"), "rude", "closed the connection")
	fails(t, w.echo(a, "unknown"), "unknown", "no-such-host.invalid")

	// All at once.
	_, err = allocator.StartAll(t.Context(), a, a.Hosts(), program(t, "#!/bin/sh\ncat\n"), func(allocator.Host) []string { return nil }, nil)
	var all *allocator.HostErrors
	if !errors.As(err, &all) || len(all.Errors) != 4 || !strings.HasPrefix(err.Error(), "4 of 5 hosts cannot be used:\n  refuses: ") {
		t.Errorf("all at once: %v", err)
	}
	t.Log(err)

	// A context that ends while the host is silent.
	w.write("config", "Host patient\nConnectTimeout 600\nHost *\n")
	w.enter("patient", silent.Addr().(*net.TCPAddr).Port)
	b := w.open(Config{}, "patient")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := b.Start(ctx, b.Hosts()[0], program(t, "#!/bin/sh\n")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not that the context has ended", err)
	}
}

func TestConnectionsThatAreCut(t *testing.T) {
	w := newWorld(t)
	h := w.simple("h2")
	a := w.open(Config{}, "h2")
	path := program(t, "#!/bin/sh\necho about to hang >&2\necho $PPID $$\nexec cat\n")
	start := func(name string) (p allocator.Process, sshd, pid int) {
		p, err := a.Start(t.Context(), allocator.Host{Name: name}, path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscanln(p, &sshd, &pid); err != nil {
			t.Fatal(err)
		}
		return p, sshd, pid
	}
	lost := func(p allocator.Process, what ...string) {
		t.Helper()
		if _, err := p.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: %v", err)
		}
		err := p.Wait()
		fails(t, err, "h2", what...)
		if !errors.Is(err, allocator.ErrLost) {
			t.Errorf("%v is not that the connection was lost", err)
		}
		p.Close()
	}
	// sshd's child dies.
	p, child, pid := start("h2")
	if err := killProcess(child); err != nil {
		t.Fatal(err)
	}
	lost(p, "the connection was lost", "about to hang")
	ended(t, pid)

	// The host is silent, as one that has lost its power.
	w.write("config", "Host far\nServerAliveInterval 1\nServerAliveCountMax 2\nHost *\n")
	line := newWire(t, h.port)
	w.enter("far", line.port)
	w.write("known_hosts", knownhosts.Line([]string{fmt.Sprintf("127.0.0.1:%d", line.port)}, h.keys[0])+"\n")
	a = w.open(Config{}, "far")
	p, _, pid = start("far")
	line.hold()
	err := p.Wait()
	fails(t, err, "far", "no answer for 2s")
	if !errors.Is(err, allocator.ErrLost) {
		t.Errorf("%v is not that the connection was lost", err)
	}
	line.cut()
	ended(t, pid) // by the end of its input
}

// launches is the environment variable that makes this test binary start a
// program on a host; its value is the user's home.
const launches = "MPIRUN_SF_TEST_LAUNCHES"

func launchAndWait(home, system, name, path string) int {
	a, err := newAllocation(Config{Hosts: []hostlist.Host{{Host: allocator.Host{Name: name}}}}, account{name: "root", home: home}, system)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	p, err := a.Start(context.Background(), a.Hosts()[0], path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	io.Copy(os.Stdout, p)
	return 0
}

// A launcher that is killed leaves nothing, neither on the host nor here.
func TestLauncherThatIsKilled(t *testing.T) {
	w := newWorld(t)
	h := w.simple("h1")
	proxy := filepath.Join(t.TempDir(), "proxy")
	w.write("config", fmt.Sprintf("Host proxied\nHostName 127.0.0.1\nPort %d\n", h.port)+
		"ProxyCommand bash -c 'echo $$ >"+proxy+"; exec 3<>/dev/tcp/%h/%p; cat <&3 & cat >&3; kill $!'\n")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := program(t, "#!/bin/sh\necho $$\nexec cat\n")
	for _, name := range []string{"h1", "proxied"} {
		cmd := exec.Command(self, w.system, name, path)
		cmd.Env = append(os.Environ(), launches+"="+w.home)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscanln(out, &pid); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		ended(t, pid)
	}
	text, err := os.ReadFile(proxy)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		t.Fatal(err)
	}
	ended(t, pid)
}
