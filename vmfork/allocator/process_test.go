package allocator

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMain turns the test binary into a job of its own, a holder.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ALLOCATOR_TEST_DIR"); dir != "" {
		if err := hold(Local{Dir: dir}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hold reserves as often as it can, for clones of the memory that it reads from
// standard input, says how often, and holds on until the input ends.
func hold(l Local) error {
	var memory int64
	if _, err := fmt.Scanln(&memory); err != nil {
		return err
	}
	for held := 0; ; held++ {
		g, err := l.Reserve("job", Demand{Clones: 1, VCPUs: 1, Memory: memory})
		if err != nil {
			return err
		}
		if g.Clones == 0 {
			fmt.Println(held)
			break
		}
		defer g.Release()
		time.Sleep(5 * time.Millisecond) // the others' turn
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

type holder struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

func newHolder(t *testing.T, l Local) *holder {
	t.Helper()
	h := &holder{command: exec.CommandContext(t.Context(), os.Args[0])}
	h.command.Env = append(os.Environ(), "ALLOCATOR_TEST_DIR="+l.Dir)
	h.command.Stderr = os.Stderr
	var err error
	if h.in, err = h.command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	if err := h.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.kill)
	return h
}

func (h *holder) begin(t *testing.T, memory int64) {
	t.Helper()
	if _, err := fmt.Fprintln(h.in, memory); err != nil {
		t.Fatal(err)
	}
}

func (h *holder) held(t *testing.T) (n int) {
	t.Helper()
	line, err := h.out.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, &n)
	}
	if err != nil {
		t.Fatalf("a holder said %q: %v", strings.TrimSpace(line), err)
	}
	return n
}

func (h *holder) kill() {
	_ = h.command.Process.Kill() // SIGKILL
	_ = h.command.Wait()
}

func TestProcessesShareTheMachineAndItsDeadGiveBack(t *testing.T) {
	l := Local{Dir: t.TempDir()}
	const parts = 20
	memory := share(t, parts)
	holders := make([]*holder, 4)
	for i := range holders {
		holders[i] = newHolder(t, l)
	}
	for _, h := range holders {
		h.begin(t, memory)
	}
	total, counts := 0, make([]int, len(holders))
	for i, h := range holders {
		counts[i] = h.held(t)
		total += counts[i]
	}
	t.Logf("holders got %v", counts)
	// What is free changes while others use the machine.
	if total < parts*3/4 || total > parts+3 {
		t.Errorf("%d clones of 1/%d of what was free were granted", total, parts)
	}
	if got := len(files(t, l)); got != total {
		t.Errorf("%d files for %d grants", got, total)
	}

	for _, h := range holders[1:] {
		h.kill()
	}
	if n, err := l.Clean(); err != nil || n != total-counts[0] {
		t.Errorf("cleaned %d reservations of the dead, want %d: %v", n, total-counts[0], err)
	}
	g := reserve(t, l, "job", Demand{Clones: parts, VCPUs: 1, Memory: memory})
	if g.Clones < (total-counts[0])*3/4 {
		t.Errorf("the dead had %d clones, the next got %d", total-counts[0], g.Clones)
	}
	g.Release()

	// The living one releases what it has.
	holders[0].in.Close()
	if err := holders[0].command.Wait(); err != nil {
		t.Error(err)
	}
	if left := files(t, l); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
