package agent

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Many processes that end at once, started at the same time, beside orphans:
// each end is told to whoever started it, and nobody is left unwaited for.
func TestReaper(t *testing.T) {
	_, conn := startAgent(t, "MPIRUN_SF_TEST_REAPER=1")
	if got := readAll(t, conn); got != "ok" {
		t.Error(got)
	}
}

// reapMany runs in a process of its own, and writes "ok" or what was wrong.
func reapMany(to io.WriteCloser) {
	defer to.Close()
	var mu sync.Mutex
	var wrong []string
	fail := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		wrong = append(wrong, fmt.Sprintf(format, args...))
	}
	r := newReaper()
	// The first round begins with the reaper asleep, as does each after the
	// last child has gone.
	for round := range 5 {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for n := range 5 {
					want := (i + n) % 100
					// The child in the background becomes an orphan.
					cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("(true; exit 9) & exit %d", want))
					ended, err := r.start(func() (int, error) {
						if n == 2 {
							// The kernel makes a child for this too.
							if err := exec.Command("/no/such/program").Start(); err == nil {
								fail("a program that is not there started")
							}
						}
						if err := cmd.Start(); err != nil {
							return 0, err
						}
						return cmd.Process.Pid, nil
					})
					if err != nil {
						fail("start: %v", err)
						return
					}
					select {
					case ws := <-ended:
						if ws.ExitStatus() != want {
							fail("process %d: ended with %d, want %d", cmd.Process.Pid, ws.ExitStatus(), want)
						}
					case <-time.After(10 * time.Second):
						fail("round %d: waited 10 s for the end of process %d", round, cmd.Process.Pid)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	var left []byte
	for range 100 {
		if left, _ = os.ReadFile(filepath.Join("/proc/self/task", fmt.Sprint(unix.Gettid()), "children")); len(left) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if len(left) > 0 {
		fail("children are left: %s", left)
	}
	r.mu.Lock()
	if len(r.waiting)+len(r.early)+r.starting > 0 {
		fail("after all have ended %d are waited for, %d kept and %d being started", len(r.waiting), len(r.early), r.starting)
	}
	r.mu.Unlock()
	if len(wrong) == 0 {
		wrong = []string{"ok"}
	}
	io.WriteString(to, strings.Join(wrong, "\n"))
}
