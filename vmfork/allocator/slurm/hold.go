package slurm

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// Request is what [Allocate] asks for.
type Request struct {
	Ranks   int      // how many tasks
	Name    string   // of the job; empty: mpirun-sf
	Options []string // for salloc, after our own and so before them in rank: -N, -p, -t, ...
	// Progress is called with each line that salloc prints while it waits, and
	// when the allocation ends by itself. It may be nil.
	Progress func(line string)
}

const (
	// releaseLimit is how long salloc has to give an allocation back.
	releaseLimit = 20 * time.Second
	// maxEnvironment bounds what the holder tells, in bytes.
	maxEnvironment = 16 << 20
)

// holding is what salloc runs: it tells its environment, and holds the
// allocation until it is told to go. Then salloc gives it back. If its input
// ends without a word the launcher is dead, and maybe salloc too, of which a
// zombie would look alive: it gives the allocation back itself.
const holding = `env -0; printf "%s\0" "$1"; read -r word || exec scancel --quiet "$SLURM_JOB_ID" 2>/dev/null`

// Allocate asks Slurm for hosts and waits until it has them, or ctx ends. Close
// of the result gives them back.
func Allocate(ctx context.Context, r Request) (*Allocation, error) {
	if r.Ranks < 1 || r.Ranks > maxHosts*maxCount {
		return nil, fmt.Errorf("ask Slurm for hosts: %d ranks are no job", r.Ranks)
	}
	if err := checkOptions(r.Options); err != nil {
		return nil, fmt.Errorf("ask Slurm for hosts: %w", err)
	}
	h, err := startHolder(r)
	if err != nil {
		return nil, fmt.Errorf("ask Slurm for hosts: %w", err)
	}
	type answer struct {
		env map[string]string
		err error
	}
	told := make(chan answer, 1)
	go func() {
		env, err := h.listen()
		told <- answer{env, err}
	}()
	var got answer
	select {
	case got = <-told:
	case <-ctx.Done():
		h.withdraw()
		return nil, fmt.Errorf("wait for Slurm's allocation of %d ranks: %w", r.Ranks, context.Cause(ctx))
	}
	if got.err != nil {
		h.withdraw()
		return nil, fmt.Errorf("ask Slurm for hosts: %w", got.err)
	}
	a, err := newAllocation(func(name string) string { return got.env[name] })
	if err != nil {
		h.release()
		return nil, err
	}
	a.held = h
	return a, nil
}

// checkOptions refuses what would make salloc do something else than hold an
// allocation.
func checkOptions(options []string) error {
	for _, o := range options {
		switch {
		case o == ":":
			return errors.New("a heterogeneous job is not supported: leave \":\" out")
		case o == "--":
			return errors.New("\"--\" is not for salloc's options here")
		// getopt takes the beginnings of options for them.
		case len(o) >= len("--no-s") && strings.HasPrefix("--no-shell", o):
			return fmt.Errorf("%q would leave an allocation behind", o)
		case strings.ContainsRune(o, 0):
			return fmt.Errorf("%q has a zero byte", o)
		}
	}
	return nil
}

// holder is a salloc that runs.
type holder struct {
	allocator.Process
	cmd  *exec.Cmd
	mark string
	job  func() string // its number, as far as salloc told; empty: none yet

	once sync.Once
	err  error // of release
}

// jobNumber is in salloc's first words to an allocation, whether it has it or
// only waits for it.
var jobNumber = regexp.MustCompile(`job allocation ([0-9]{1,10})$`)

func startHolder(r Request) (*holder, error) {
	name := r.Name
	if name == "" {
		name = "mpirun-sf"
	}
	mark := rand.Text()
	args := []string{"--job-name=" + name, "--no-bell", "--ntasks=" + strconv.Itoa(r.Ranks)}
	args = append(args, r.Options...)
	args = append(args, "--", "/bin/sh", "-c", holding, "sh", mark)
	h := &holder{cmd: exec.Command("salloc", args...), mark: mark}
	h.cmd.Env = commandEnvironment(os.Environ())
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	var mu sync.Mutex
	var number string
	h.job = func() string {
		mu.Lock()
		defer mu.Unlock()
		return number
	}
	notice := func(line string) {
		if found := jobNumber.FindStringSubmatch(line); found != nil {
			mu.Lock()
			number = found[1]
			mu.Unlock()
		}
		if r.Progress != nil {
			r.Progress(line)
		}
	}
	started := make(chan error)
	go func() {
		// The kernel sends that signal when the thread ends that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		p, err := allocator.Command("salloc", h.cmd, releaseLimit, notice)
		h.Process = p
		started <- err
		if err == nil {
			p.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, unhost(err)
	}
	return h, nil
}

// unhost takes away the name under which salloc passes for a host.
func unhost(err error) error {
	var of *allocator.HostError
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}

// listen reads the job's environment from the holder.
func (h *holder) listen() (map[string]string, error) {
	env := map[string]string{}
	in := bufio.NewReader(io.LimitReader(h, maxEnvironment))
	for {
		entry, err := in.ReadString(0)
		if err != nil {
			break
		}
		entry = entry[:len(entry)-1]
		if entry == h.mark {
			return env, nil
		}
		if name, value, ok := strings.Cut(entry, "="); ok {
			env[name] = value
		}
	}
	h.Close()
	if err := h.Wait(); err != nil {
		var exit *allocator.ExitError
		if errors.As(err, &exit) {
			return nil, fmt.Errorf("salloc: %w", exit)
		}
		return nil, unhost(err)
	}
	return nil, errors.New("salloc ended without an allocation: is there an option among those for Slurm that makes it do something else?")
}

// withdraw ends a request that Slurm may or may not have granted yet.
func (h *holder) withdraw() {
	h.cmd.Process.Signal(unix.SIGTERM)
	h.release()
}

// release gives the allocation back, and makes sure that it is.
func (h *holder) release() error {
	h.once.Do(func() {
		io.WriteString(h, "release\n") // if nobody hears it any more, nobody holds either
		h.Close()
		var exit *allocator.ExitError
		killed := errors.As(h.Wait(), &exit) && exit.Signal != ""
		if id := h.job(); killed && id != "" {
			ctx, cancel := context.WithTimeout(context.Background(), releaseLimit)
			defer cancel()
			cmd := exec.CommandContext(ctx, "scancel", "--quiet", id)
			cmd.Env = h.cmd.Env
			if out, err := cmd.CombinedOutput(); err != nil {
				h.err = fmt.Errorf("cancel Slurm's job %s: %w: %s: do it by hand, with scancel", id, err, strings.TrimSpace(string(out)))
			}
		}
	})
	return h.err
}
