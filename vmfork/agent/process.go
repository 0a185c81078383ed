package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/pmi"
)

// fdPMI is the descriptor of a rank's connection to the PMI proxy.
const fdPMI = 3

// run starts a process, answers the host, and serves the stream in the
// background. On an error nothing has been answered.
func (c *clone) run(st *stream, cmd Command) error {
	x := &exec.Cmd{
		Args: cmd.Argv, Dir: cmd.Dir, Env: cmd.Env,
		SysProcAttr: &syscall.SysProcAttr{
			// A session of its own: with autogroup scheduling the agent
			// would starve beside spinning ranks of its own session.
			Setsid:     true,
			Credential: &syscall.Credential{Uid: cmd.User.UID, Gid: cmd.User.GID, Groups: cmd.User.Groups},
		},
	}
	var mine, theirs []io.Closer // what is served here, and what to close after the start
	servePMI := func() {}
	fail := func(err error) error {
		for _, f := range append(mine, theirs...) {
			f.Close()
		}
		// The proxy hears of this rank too: as of one that ended.
		go servePMI()
		for fd := range 3 {
			if s := c.takeStdio(cmd.ID, fd); s != nil {
				s.Close()
			}
		}
		return err
	}
	if len(cmd.Argv) == 0 || cmd.Argv[0] == "" {
		return fail(errors.New("no program was named"))
	}
	x.Path = cmd.Argv[0]
	var copies []func()
	for fd := range 3 {
		s := c.takeStdio(cmd.ID, fd)
		if s == nil {
			continue // exec.Cmd opens /dev/null
		}
		mine = append(mine, s)
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		if fd == 0 {
			x.Stdin = r
			mine, theirs = append(mine, w), append(theirs, r)
			copies = append(copies, func() { io.Copy(w, s); w.Close(); s.Close() })
			continue
		}
		if fd == 1 {
			x.Stdout = w
		} else {
			x.Stderr = w
		}
		mine, theirs = append(mine, r), append(theirs, w)
		copies = append(copies, func() { io.Copy(s, r); r.Close(); s.Close() })
	}
	if cmd.PMI {
		serve, file, err := c.connectPMI(cmd.ID, &x.Env)
		if err != nil {
			return fail(err)
		}
		x.ExtraFiles = []*os.File{file}
		theirs = append(theirs, file)
		servePMI = serve
	}
	if cmd.UCX {
		if _, err := os.Stat(ucxProgress); err == nil {
			x.Env = append(x.Env, "LD_PRELOAD="+strings.TrimSpace(ucxProgress+" "+lookup(cmd.Env, "LD_PRELOAD")))
		}
	}
	ended, err := children().start(func() (int, error) {
		if err := x.Start(); err != nil {
			return 0, err
		}
		return x.Process.Pid, nil
	})
	if err != nil {
		return fail(startError(err, cmd.Dir))
	}
	for _, f := range theirs {
		f.Close()
	}
	for _, serve := range append(copies, servePMI) {
		go serve()
	}
	// The reaper waits for it, so its handle is of no use, and costs a
	// descriptor. Release forgets the pid.
	pid := x.Process.Pid
	x.Process.Release()
	writeLine(st, answer{})
	go func() {
		for {
			var m control
			if readLine(st.in, &m) != nil {
				return
			}
			unix.Kill(-pid, unix.Signal(m.Signal))
		}
	}()
	go func() {
		ws := <-ended
		e := Exit{Status: ws.ExitStatus()}
		if ws.Signaled() {
			e = Exit{Signal: int(ws.Signal()), Core: ws.CoreDump()}
		}
		writeLine(st, e)
		st.Close()
	}()
	return nil
}

// startError is why a program did not start, in dir. The host names the program.
func startError(err error, dir string) error {
	var at *fs.PathError
	switch {
	case !errors.As(err, &at):
		return err
	case errors.Is(err, fs.ErrNotExist):
		// The kernel says the same of a folder, a program and its interpreter.
		if _, err := os.Stat(dir); err != nil && dir != "" {
			return fmt.Errorf("its working directory %s: %w", dir, at.Err)
		}
		if _, err := os.Stat(at.Path); err == nil {
			return fmt.Errorf("the interpreter or dynamic linker that it names is missing in the guest: %w", at.Err)
		}
	}
	return at.Err
}

func (c *clone) takeStdio(id, fd int) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stdio[stdioKey{id, fd}]
	delete(c.stdio, stdioKey{id, fd})
	return s
}

// connectPMI makes the rank's connection to the proxy: what serves it, and the
// rank's end.
func (c *clone) connectPMI(rank int, env *[]string) (serve func(), theirs *os.File, err error) {
	c.mu.Lock()
	proxy, local := c.proxy, c.local
	c.mu.Unlock()
	at := slices.Index(local.ranks, rank)
	if proxy == nil || at < 0 {
		return nil, nil, fmt.Errorf("rank %d has no PMI proxy", rank)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make rank %d a PMI connection: %w", rank, err)
	}
	unix.SetNonblock(fds[0], true)
	mine := os.NewFile(uintptr(fds[0]), "pmi")
	*env = append(*env, pmi.Environ(rank, local.size, at, len(local.ranks), fdPMI)...)
	return func() { proxy.ServeRank(context.Background(), rank, mine) }, os.NewFile(uintptr(fds[1]), "pmi"), nil
}

// lookup is the value of a variable in a list of NAME=VALUE.
func lookup(env []string, name string) string {
	for _, e := range slices.Backward(env) {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}
