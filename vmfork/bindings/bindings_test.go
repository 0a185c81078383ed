// Package bindings tests the bindings of the VM fork API for other languages
// against a fake server: no virtual machine is needed.
//
//  1. make builds the libraries, and testdata's exercises with them: programs,
//     one for each language, that do the same and print the same.
//  2. Each runs with SF_SOCKET set to a fake's socket.
//  3. What it printed is compared, and what it asked.
package bindings

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// tools are what building and running the bindings needs, and the Debian
// package that each comes from.
var tools = [][2]string{
	{"make", "make"},
	{"cc", "gcc"},
	{"g++", "g++"},
	{"gfortran", "gfortran"},
	{"python3", "python3"},
	{"javac", "default-jdk-headless"},
	{"jar", "default-jdk-headless"},
	{"java", "default-jdk-headless"},
}

// languages are the commands that run the exercises.
var languages = []struct {
	name    string
	command []string
}{
	{"c", []string{"build/exercise-c"}},
	{"cpp", []string{"build/exercise-cpp"}},
	{"fortran", []string{"build/exercise-fortran"}},
	{"python", []string{"python3", "-Werror", "testdata/exercise.py"}},
	{"java", []string{"java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", "java/sf.jar:build", "Exercise"}},
}

var build = sync.OnceValue(func() error {
	for _, tool := range tools {
		if _, err := exec.LookPath(tool[0]); err != nil {
			return fmt.Errorf("find %s: %w (apt-get install %s)", tool[0], err, tool[1])
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "make", "exercises").CombinedOutput(); err != nil {
		return fmt.Errorf("build the bindings: %w\n%s", err, out)
	}
	return nil
})

// run gives what an exercise prints. It is an error if the exercise fails or
// writes to stderr, as sanitizers do.
func run(t *testing.T, command []string, socket string, arguments ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, command[0], append(slices.Clone(command[1:]), arguments...)...)
	cmd.Env = append(os.Environ(), "SF_SOCKET="+socket, "PYTHONPATH=python", "PYTHONDONTWRITEBYTECODE=1", "LC_ALL=C.UTF-8")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stderr.Len() > 0 {
		t.Fatalf("run %s %s: %v\n%s%s", command, arguments, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// each runs a test for the bindings of all languages but those given.
func each(t *testing.T, test func(t *testing.T, command []string), but ...string) {
	if err := build(); err != nil {
		t.Fatal(err)
	}
	for _, l := range languages {
		if !slices.Contains(but, l.name) {
			t.Run(l.name, func(t *testing.T) { test(t, l.command) })
		}
	}
}

// calls is the dialogue of calls.golden: what every binding asks, in this
// order, and what it gets.
var calls = [][2]string{
	{"request-ticket clones=3", "ok ticket=t%201 asked=3 granted=2 clone=1:clone-4:10.0.0.4:2:h=1 clone=2:clone-5:10.0.0.5:1:h%252"},
	{"request-ticket clones=4 hierarchical=1 vcpus=2 vm=web%201%25", "ok asked=4 granted=1 later=x clone=1:gr%c3%BCn:10.0.0.6:2:h1:later ticket=t2"},
	{"clone ticket=t%201", "ok id=0"},
	{"clone ticket=t2 vm=web%201%25", "ok id=0"},
	{"ticket ticket=t%201", "ok ticket=t%201 asked=3 granted=2 clone=1:clone-4:10.0.0.4:2:h=1 clone=2:clone-5:10.0.0.5:1:h%252"},
	{"checkpoint-parent", "ok checkpoint=c1 id=0"},
	{"checkpoint-parent", "ok checkpoint=c1 id=2 ticket=t9"},
	{"create-clones checkpoint=c1 ticket=t%201", "ok id=0"},
	{"discard checkpoint=c1", "ok"},
	{"exit status=3", "error kind=refused text=this%20is%20no%20clone"},
	{"exit status=4 vm=web%201%25", "ok"},
	{"join ticket=t%201", "ok status=2:7 status=1:0"},
	{"join ticket=t%201 timeout=2.5", "error kind=timeout text=2%20clones%20run"},
	{"join ticket=t%201 timeout=0", "error kind=lost text=clone%201%20was%20lost clone=1 status=2:5"},
	{"kill ticket=t%201 clone=2", "ok"},
	{"kill ticket=t%201", "ok"},
	{"await-fork", "ok id=2 ticket=t9"},
	{"list", "ok vm=parent:0:10.0.0.1:::0 vm=clone-1:1:10.0.0.2:0:t1:1"},
}

func TestCalls(t *testing.T) {
	golden, err := os.ReadFile("testdata/calls.golden")
	if err != nil {
		t.Fatal(err)
	}
	replies := map[string][]string{"whoami": {"ok id=0 member=3 name=clone-3 ip=10.0.0.3 vcpus=2 host=a%20host later="}}
	var want []string
	for _, c := range calls {
		want = append(want, c[0])
		replies[c[0]] = append(replies[c[0]], c[1])
	}
	for kind := range strings.FieldsSeq("invalid unknown refused state resources failed lost timeout killed cloned version unavailable novel") {
		request := "ticket ticket=" + kind
		want = append(want, request)
		replies[request] = []string{"error kind=" + kind + " text=because%20of%20" + kind}
	}
	each(t, func(t *testing.T, command []string) {
		f := serve(t, dialogue(replies))
		if got := run(t, command, f.path, "calls"); got != string(golden) {
			t.Errorf("printed\n%s\nwant\n%s", got, golden)
		}
		if got := f.requests(); !slices.Equal(got, want) {
			t.Errorf("asked\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// whoami is a reply that the garbage below is made of.
const whoami = "ok id=0 member=0 name=parent ip=10.0.0.1 vcpus=1 host=h"

var garbage = []struct{ reply, want string }{
	{whoami + "\n", "ok"},
	{whoami + " unknown-key= id=x\n", "ok"}, // the first of two counts
	{whoami + "\nmore\n", "ok"},
	{strings.Replace(whoami, "host=h", "host=%c3%BC%ff", 1) + "\n", "ok"},
	{"", "unavailable"},
	{"\n", "version"},
	{"ok", "version"},
	{whoami, "version"}, // the connection ends before LF
	{"ok\n", "version"}, // nothing of what it should say
	{"okay\n", "version"},
	{"o\n", "version"},
	{whoami + " \n", "version"},
	{whoami + "\r\n", "version"},
	{whoami + " key\n", "version"},
	{whoami + " =v\n", "version"},
	{whoami + " Key=v\n", "version"},
	{whoami + " 1key=v\n", "version"},
	{whoami + "  k=v\n", "version"},
	{whoami + " k=%\n", "version"},
	{whoami + " k=%4\n", "version"},
	{whoami + " k=%4g\n", "version"},
	{whoami + " k=% 41\n", "version"},
	{whoami + " k=a\x01\n", "version"},
	{whoami + " k=a\x00\n", "version"},
	{whoami + " k=a\x7f\n", "version"},
	{strings.Replace(whoami, "id=0", "id=zero", 1) + "\n", "version"},
	{strings.Replace(whoami, "id=0", "id=", 1) + "\n", "version"},
	{strings.Replace(whoami, "id=0", "id=+1", 1) + "\n", "version"},
	{strings.Replace(whoami, "id=0", "id=%201", 1) + "\n", "version"},
	{strings.Replace(whoami, "id=0", "id=99999999999999999999", 1) + "\n", "version"},
	{strings.Replace(whoami, "id=0 ", "", 1) + "\n", "version"},
	{"error\n", "version"},
	{"error kind=unknown\n", "version"},
	{"error text=x\n", "version"},
	{"error kind=unknown text=x\n", "unknown"},
	{"error kind=unknown text=" + strings.Repeat("%20long", 10000) + " more=1\n", "unknown"},
	{whoami + " k=" + strings.Repeat("v", 1<<19) + "\n", "ok"},
	{whoami + " k=" + strings.Repeat("v", 1<<20) + "\n", "version"},
	{whoami + " k=" + strings.Repeat("v", 3<<20), "version"},
	{"HTTP/1.1 400 Bad Request\r\n\r\n", "version"},
}

func TestGarbage(t *testing.T) {
	each(t, func(t *testing.T, command []string) {
		n := 0
		f := serve(t, func(string) string {
			n++
			return garbage[n-1].reply
		})
		got := strings.Fields(run(t, command, f.path, "garbage", fmt.Sprint(len(garbage))))
		if len(got) != len(garbage) {
			t.Fatalf("%d results of %d calls: %s", len(got), len(garbage), got)
		}
		for i, g := range garbage {
			if got[i] != g.want {
				t.Errorf("reply %.90q: %s, want %s", g.reply, got[i], g.want)
			}
		}
	}, "fortran")
}

// mutate is a reply with a few bytes other than they should be.
func mutate(r *rand.Rand, reply string) string {
	const odd = " =:%\n\x00\x7f\xff0a-9"
	b := []byte(reply)
	for range r.IntN(4) {
		i := r.IntN(len(b) + 1)
		c := odd[r.IntN(len(odd))]
		switch r.IntN(4) {
		case 0:
			b = slices.Insert(b, i, c)
		case 1:
			b = b[:i]
		case 2:
			b = append(b, b[i:]...)
		default:
			if i < len(b) {
				b[i] = c
			}
		}
	}
	return string(b)
}

// Whatever is answered, an exercise ends as it should, and the sanitizers of
// C and C++ have nothing to say.
func TestFuzz(t *testing.T) {
	rounds := map[string]string{"c": "600", "cpp": "200", "python": "200", "java": "200"}
	for _, seed := range []uint64{1, uint64(time.Now().UnixNano())} {
		each(t, func(t *testing.T, command []string) {
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			f := serve(t, func(request string) string {
				call, _, _ := strings.Cut(request, " ")
				reply := whoami
				for _, c := range calls {
					if name, _, _ := strings.Cut(c[0], " "); name == call && r.IntN(3) > 0 {
						reply = c[1]
					}
				}
				return mutate(r, reply+"\n")
			})
			name := t.Name()[strings.LastIndex(t.Name(), "/")+1:]
			name, _, _ = strings.Cut(name, "#")
			if got := run(t, command, f.path, "fuzz", rounds[name]); got != "fuzz: ok\n" {
				t.Errorf("printed %q", got)
			}
		}, "fortran")
	}
}

// A ticket that goes out of scope is killed, by whom it belongs to.
func TestScope(t *testing.T) {
	each(t, func(t *testing.T, command []string) {
		member := 3
		f := serve(t, func(request string) string {
			switch call, _, _ := strings.Cut(request, " "); call {
			case "whoami":
				return fmt.Sprintf("ok id=0 member=%d name=n ip=10.0.0.1 vcpus=1 host=h\n", member)
			case "request-ticket":
				return "ok ticket=t asked=1 granted=1 clone=1:n:10.0.0.2:1:h\n"
			case "clone":
				member = 4 // from here on the program is a clone
				return "ok id=1\n"
			case "join":
				return "ok status=1:0\n"
			case "kill":
				return "error kind=unknown text=joined%20before\n"
			}
			return "error kind=invalid text=" + request + "\n"
		})
		run(t, command, f.path, "scope")
		got := f.requests()
		// Where the binding does not remember that it has joined, it asks in vain.
		if len(got) > 4 && got[4] == "kill ticket=t" {
			got = slices.Delete(got, 4, 5)
		}
		want := []string{"request-ticket clones=1", "kill ticket=t", "request-ticket clones=2", "join ticket=t",
			"request-ticket clones=3", "clone ticket=t"}
		if !slices.Equal(got, want) {
			t.Errorf("asked %q, want %q", got, want)
		}
	}, "c", "fortran")
}

func TestNoServer(t *testing.T) {
	each(t, func(t *testing.T, command []string) {
		for _, path := range []string{t.TempDir() + "/none", t.TempDir() + strings.Repeat("/none", 100)} {
			if got := run(t, command, path, "garbage", "1"); got != "unavailable\n" {
				t.Errorf("%.60s: %q", path, got)
			}
		}
	}, "fortran")
}

// A signal's handler does not end a call that waits.
func TestSignals(t *testing.T) {
	if err := build(); err != nil {
		t.Fatal(err)
	}
	f := serve(t, func(string) string {
		time.Sleep(100 * time.Millisecond)
		return whoami + "\n"
	})
	if got := run(t, languages[0].command, f.path, "signals", "3"); got != "ok\nok\nok\nsignals\n" {
		t.Errorf("printed %q", got)
	}
}

// A program that dies takes its waiting call back: its end of the connection closes.
func TestDeathCancels(t *testing.T) {
	each(t, func(t *testing.T, command []string) {
		path := t.TempDir() + "/sf.sock"
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		cmd := exec.CommandContext(t.Context(), command[0], append(slices.Clone(command[1:]), "calls")...)
		cmd.Env = append(os.Environ(), "SF_SOCKET="+path, "PYTHONPATH=python", "PYTHONDONTWRITEBYTECODE=1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		l.(*net.UnixListener).SetDeadline(time.Now().Add(time.Minute))
		conn, err := l.Accept()
		if err != nil {
			t.Fatalf("wait for a call: %v", err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		r := bufio.NewReader(conn)
		if request, err := r.ReadString('\n'); err != nil || request != "whoami\n" {
			t.Fatalf("got the call %q, %v", request, err)
		}
		cmd.Process.Signal(os.Interrupt)
		if more, err := io.ReadAll(r); err != nil || len(more) > 0 {
			t.Errorf("until the connection ended there came %q, %v", more, err)
		}
	})
}
