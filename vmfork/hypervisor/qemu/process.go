package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu/qmp"
)

// Descriptors that a QEMU process finds open, in the order of cmd.ExtraFiles.
const (
	fdMonitor = 3 + iota
	fdPorts   // as many as there are, and then the tap
)

// vm is one QEMU process.
type vm struct {
	cfg     hypervisor.Config
	cmd     *exec.Cmd
	wire    net.Conn // under monitor
	monitor *qmp.Client
	stderr  *tailBuffer
	resumed <-chan struct{} // the first RESUME event: the vCPUs run

	done    chan struct{}
	mu      sync.Mutex // guards all below
	killed  bool
	stopped bool // by Suspend
	err     error
	ram     []*os.File // /proc/PID/mem, closed when the process is gone
}

var _ hypervisor.VM = (*vm)(nil)

// start runs QEMU with args and speaks to it until its monitor answers.
func start(ctx context.Context, binary string, cfg hypervisor.Config, args []string) (*vm, error) {
	monitor, port, err := hypervisor.NewPort("monitor")
	if err != nil {
		return nil, err
	}
	defer port.File.Close()

	v := &vm{cfg: cfg, wire: monitor, stderr: &tailBuffer{}, done: make(chan struct{})}
	v.cmd = exec.Command(binary, args...)
	v.cmd.Stderr = v.stderr
	v.cmd.ExtraFiles = []*os.File{port.File}
	for _, p := range cfg.Ports {
		v.cmd.ExtraFiles = append(v.cmd.ExtraFiles, p.File)
	}
	if cfg.Tap != nil {
		v.cmd.ExtraFiles = append(v.cmd.ExtraFiles, cfg.Tap)
	}
	// Its own session: a Ctrl-C at the launcher's terminal is not for QEMU.
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startNoHuge(v.cmd); err != nil {
		monitor.Close()
		return nil, fmt.Errorf("start QEMU for %s: %w", cfg.Name, err)
	}
	go v.wait()
	if v.monitor, err = qmp.New(ctx, monitor); err != nil {
		v.Kill()
		return nil, v.explain(fmt.Errorf("start QEMU for %s: %w", cfg.Name, err))
	}
	v.resumed = v.monitor.Event("RESUME")
	v.monitor.Watch("STOP", func() {
		v.mu.Lock()
		ours := v.stopped
		v.mu.Unlock()
		if !ours {
			go v.diagnose()
		}
	})
	return v, nil
}

func (v *vm) wait() {
	err := v.cmd.Wait()
	v.mu.Lock()
	if !v.killed {
		var status *exec.ExitError
		switch {
		case err == nil:
			err = errors.New("QEMU ended by itself")
		case errors.As(err, &status):
			err = fmt.Errorf("QEMU ended: %w", err) // "signal: killed" alone explains nothing
		}
		v.err = v.explain(fmt.Errorf("%s: %w", v.cfg.Name, err))
	}
	for _, f := range v.ram {
		f.Close()
	}
	v.mu.Unlock()
	v.wire.Close()
	close(v.done)
}

// diagnoseLimit is how long QEMU may take to say why a machine has stopped.
const diagnoseLimit = 5 * time.Second

// diagnose ends a machine that stopped and that nobody had told to. QEMU stops
// what it cannot go on with, and keeps it for somebody to look at: under KVM, a
// guest whose memory cannot be read (where TCG dies of SIGBUS).
func (v *vm) diagnose() {
	ctx, cancel := context.WithTimeout(context.Background(), diagnoseLimit)
	defer cancel()
	status, err := v.status(ctx)
	if err != nil {
		status = err.Error()
	}
	reason := fmt.Errorf("%s: QEMU stopped it: %s", v.cfg.Name, status)
	if said := v.stderr.line("error: ", "KVM internal error"); said != "" {
		reason = fmt.Errorf("%w (QEMU says: %s)", reason, said)
	}
	v.end(reason)
}

// status is what QEMU calls the machine's state.
func (v *vm) status(ctx context.Context) (string, error) {
	var is struct{ Status string }
	err := v.monitor.Do(ctx, "query-status", nil, &is)
	return is.Status, err
}

// explain adds what QEMU wrote on its standard error.
func (v *vm) explain(err error) error {
	if said := v.stderr.last(); said != "" {
		return fmt.Errorf("%w (QEMU says: %s)", err, said)
	}
	return err
}

// Suspend implements [hypervisor.VM].
func (v *vm) Suspend(ctx context.Context) ([]byte, error) {
	path := filepath.Join(v.cfg.Dir, v.cfg.Name+".state")
	defer os.Remove(path)
	v.mu.Lock()
	v.stopped = true
	v.mu.Unlock()
	if err := v.monitor.Do(ctx, "stop", nil, nil); err != nil {
		return nil, fmt.Errorf("suspend %s: %w", v.cfg.Name, err)
	}
	// One that had stopped by itself is of no use to anybody.
	switch status, err := v.status(ctx); {
	case err != nil:
		return nil, fmt.Errorf("suspend %s: %w", v.cfg.Name, err)
	case status != "paused":
		return nil, fmt.Errorf("suspend %s: QEMU had stopped it: %s", v.cfg.Name, status)
	}
	if err := v.monitor.Do(ctx, "xen-save-devices-state", map[string]any{"filename": path}, nil); err != nil {
		return nil, fmt.Errorf("suspend %s: %w", v.cfg.Name, err)
	}
	state, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("suspend %s: %w", v.cfg.Name, err)
	}
	// A stopped guest's devices still have a process behind them, which could
	// take what is meant for the guest's next life out of its ports.
	if err := v.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		return nil, fmt.Errorf("suspend %s: %w", v.cfg.Name, err)
	}
	return state, nil
}

// Resume implements [hypervisor.VM].
func (v *vm) Resume(ctx context.Context) error {
	v.mu.Lock()
	v.stopped = false
	v.mu.Unlock()
	err := v.cmd.Process.Signal(unix.SIGCONT)
	if err == nil {
		err = v.monitor.Do(ctx, "cont", nil, nil)
	}
	if err != nil {
		return fmt.Errorf("resume %s: %w", v.cfg.Name, err)
	}
	return nil
}

// Restore implements [hypervisor.VM].
func (v *vm) Restore(ctx context.Context, state []byte) error {
	if len(state) == 0 {
		// QEMU would wait for ever for what it has not even begun to read.
		return v.end(fmt.Errorf("restore %s: the device state does not load: it is empty", v.cfg.Name))
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("restore %s: %w", v.cfg.Name, err)
	}
	defer r.Close()
	go func() { // more than a pipe holds waits for QEMU to read
		w.Write(state)
		w.Close()
	}()
	err = v.monitor.SendFile(ctx, "state", r)
	if err == nil {
		err = v.monitor.Do(ctx, "migrate-incoming", map[string]any{"uri": "fd:state"}, nil)
	}
	var refused *qmp.Error
	switch {
	case err == nil:
	case errors.As(err, &refused):
		w.Close()
		return fmt.Errorf("restore %s: %w", v.cfg.Name, err)
	case ctx.Err() == nil:
		// The monitor broke: QEMU may have ended before its answer was read.
		select {
		case <-v.done:
		case <-time.After(lastWordsLimit):
			return fmt.Errorf("restore %s: %w", v.cfg.Name, err)
		}
	}
	select {
	case <-v.resumed:
		return nil
	case <-v.done:
		if v.Err() == nil {
			return fmt.Errorf("restore %s: it was killed", v.cfg.Name)
		}
		// QEMU's last words on a state that it cannot load.
		return fmt.Errorf("restore %s: the device state does not load: %w", v.cfg.Name, v.Err())
	case <-ctx.Done():
		return fmt.Errorf("restore %s: wait for its vCPUs to run: %w", v.cfg.Name, ctx.Err())
	}
}

// lastWordsLimit is how long a QEMU that has closed its monitor may take to end.
const lastWordsLimit = 5 * time.Second

// Kill implements [hypervisor.VM].
func (v *vm) Kill() {
	v.mu.Lock()
	v.killed = true
	v.mu.Unlock()
	v.cmd.Process.Kill()
	<-v.done
}

// end ends a machine that is of no use, for a reason.
func (v *vm) end(reason error) error {
	v.mu.Lock()
	if v.err == nil {
		v.err = reason
	}
	v.mu.Unlock()
	v.Kill()
	return reason
}

// Done implements [hypervisor.VM].
func (v *vm) Done() <-chan struct{} { return v.done }

// Err implements [hypervisor.VM].
func (v *vm) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// PID implements [hypervisor.VM].
func (v *vm) PID() int { return v.cmd.Process.Pid }

// CPUTime implements [hypervisor.VM]. It adds the threads' own counters: the
// process's in /proc/PID/stat has a grain of 10 ms.
func (v *vm) CPUTime() (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", v.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("read CPU time of %s: process %d has no threads", v.cfg.Name, v.cmd.Process.Pid)
	}
	var sum time.Duration
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that ended meanwhile
		}
		first, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time of %s: %w", v.cfg.Name, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// tailBuffer keeps the end of what is written to it.
type tailBuffer struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 4096; over > 0 {
		t.buf = t.buf[over:]
	}
	return len(p), nil
}

// line is the last line that begins with one of the words.
func (t *tailBuffer) line(words ...string) (found string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range strings.Lines(string(t.buf)) {
		for _, w := range words {
			if strings.HasPrefix(l, w) {
				found = strings.TrimSpace(l)
			}
		}
	}
	return found
}

// last is the last line that is not empty.
func (t *tailBuffer) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.buf), []byte("\n"))
	return string(bytes.TrimPrefix(lines[len(lines)-1], []byte("qemu-system-x86_64: ")))
}
