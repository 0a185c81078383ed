package e2e

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

// TestForkLosesNothing: programs that are in the middle of something while the machine
// is forked, again and again. Each checks itself, in the parent and in the clones.
func TestForkLosesNothing(t *testing.T) {
	v := startVM(t)
	forks := func(few, many int) int {
		if full {
			return many
		}
		return few
	}
	for _, c := range []struct {
		program, arguments string
	}{
		{"stream", fmt.Sprint(forks(5, 30))},
		{"timers", fmt.Sprint(forks(2, 10))},
		{"journal", fmt.Sprint("/root/journal.data ", forks(4, 8))}, // as many as its file has room for
		{"pages", fmt.Sprint(forks(32, 64))},
	} {
		t.Run(c.program, func(t *testing.T) {
			v.guestProgram(t, c.program)
			r := v.begin(t, fmt.Sprintf("cp $DIR/%s /root && cd /root && ./%[1]s %s 2>&1", c.program, c.arguments)).wait()
			t.Logf("%s%s", r.stdout, r.stderr)
			if r.status != 0 || !strings.HasPrefix(r.stdout, c.program+": ok") {
				t.Errorf("status %d", r.status)
			}
			v.alone(t)
		})
	}
	t.Run("output", v.outputOnce)
	t.Run("clock", func(t *testing.T) { slow(t); v.clock(t) })
	t.Run("dirtied pages", func(t *testing.T) { slow(t); v.dirtiedPages(t) })
}

// clock: the wall clock of the parent, which stood still, and of a clone, also of an old
// checkpoint, is the host's.
func (v *forkVM) clock(t *testing.T) {
	r := v.begin(t, `
set -- $(sf checkpoint); c=$1; id=$2
if [ $id = 0 ]; then
	for i in 1 2 3; do fork 1; [ $id -gt 0 ] && break; sf join $t; done
fi
if [ $id = 0 ]; then
	sleep 3
	t=$(sf request-ticket 1); sf create-clones $c $t; sf join $t; sf discard $c
fi
whose=$(sf whoami | cut -d ' ' -f 6,7 | tr ' ' -); date +%s.%N > $DIR/clock$whose
[ $id = 0 ] || sf exit 0`).wait()
	if r.status != 0 {
		t.Fatalf("status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	files, _ := filepath.Glob(filepath.Join(v.dir, "clock*"))
	if len(files) != 5 {
		t.Errorf("clocks of 5 machines are expected, there are %v", files)
	}
	for _, path := range files {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(path)
		clock, err := strconv.ParseFloat(strings.TrimSpace(string(data)), 64)
		// When the host made the file is what it knows the time by.
		if late := float64(st.ModTime().UnixNano())/1e9 - clock; err != nil || math.Abs(late) > 1 {
			t.Errorf("%s: the guest's clock is %.3f s late: %q", filepath.Base(path), late, data)
		} else {
			t.Logf("%s: %.3f s", filepath.Base(path), late)
		}
	}
}

// outputOnce: what a process of the parent reads and writes through the launcher is there
// once and in order, whoever forks the machine meanwhile.
func (v *forkVM) outputOnce(t *testing.T) {
	const lines, printed = 2000, 1000
	before := v.run.stdout.String()
	var want bytes.Buffer
	typed := make(chan error, 1)
	for i := range lines {
		fmt.Fprintf(&want, "typed %d\n", i)
	}
	done := make(chan struct{})
	go func() {
		data := want.Bytes()
		for len(data) > 0 {
			n := min(len(data), 97)
			if _, err := v.in.Write(data[:n]); err != nil {
				typed <- err
				return
			}
			data = data[n:]
			time.Sleep(5 * time.Millisecond)
		}
		typed <- nil
	}()
	printing := v.begin(t, `i=0; while [ $i -lt 1000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); [ $((i % 30)) = 0 ] && sleep 0.05; done; true`)
	go func() { defer close(done); printing.wait() }()
	forks := 0
	for running := true; running || forks < 3; forks++ {
		ticket := v.ticket(t, "1", "")
		v.must(t, api.Clone, "ticket", ticket)
		v.must(t, api.Kill, "ticket", ticket)
		select {
		case <-done:
			running = false
		default:
		}
	}
	if err := <-typed; err != nil {
		t.Fatal(err)
	}
	v.run.await("the last line", func() bool {
		return strings.HasSuffix(v.run.stdout.String(), fmt.Sprintf("typed %d\n", lines-1))
	})
	if got := strings.TrimPrefix(v.run.stdout.String(), before); got != want.String() {
		t.Errorf("what was typed came back otherwise: %s", difference(got, want.String()))
	}
	var out, errs strings.Builder
	for i := range printed {
		fmt.Fprintln(&out, "out", i)
		fmt.Fprintln(&errs, "err", i)
	}
	r := printing.wait()
	if r.stdout != out.String() {
		t.Errorf("standard output: %s", difference(r.stdout, out.String()))
	}
	if r.stderr != errs.String() {
		t.Errorf("standard error: %s", difference(r.stderr, errs.String()))
	}
	t.Logf("%d forks", forks)
}

// difference shows the first line in which two texts differ.
func difference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range w {
		if i >= len(g) || g[i] != w[i] {
			return fmt.Sprintf("line %d of %d is %q and not %q", i, len(w), append(g, "")[min(i, len(g))], w[i])
		}
	}
	return fmt.Sprintf("%d lines more: %q", len(g)-len(w), g[len(w)])
}

// dirtiedPages: a fork copies what was written since the last one, and not what there is.
func (v *forkVM) dirtiedPages(t *testing.T) {
	fork := func() (pages int) {
		t.Helper()
		ticket := v.ticket(t, "1", "")
		reply := v.must(t, api.Clone, "ticket", ticket)
		v.must(t, api.Kill, "ticket", ticket)
		for _, key := range []string{"dirtied-pages", "pause-us"} {
			value, _ := reply.Args.Get(key)
			n, err := strconv.Atoi(value)
			if err != nil {
				t.Fatalf("the reply has no %s: %v", key, reply.Args)
			}
			if key == "dirtied-pages" {
				pages = n
			}
			t.Logf("%s: %d", key, n)
		}
		return pages
	}
	v.prints(t, "head -c 64M /dev/zero | tr '\\0' x > /tmp/large; ls -s /tmp/large", "65536 /tmp/large\n")
	all := fork()
	fork()
	idle := fork()
	v.prints(t, "head -c 16M /dev/zero | tr '\\0' y > /tmp/small; rm /tmp/large", "")
	some := fork()
	const page = 4096
	if all < 64<<20/page || idle > 16<<20/page || some < 16<<20/page || some > 16<<20/page+idle+16<<20/page {
		t.Errorf("after 64 MB were written %d pages are copied, after nothing was %d, after 16 MB were %d", all, idle, some)
	}
	v.prints(t, "rm /tmp/small", "")
}
