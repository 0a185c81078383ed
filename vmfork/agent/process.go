package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// fdPMI is the descriptor of a rank's connection to the PMI proxy.
const fdPMI = 3

// process is one that the agent has started.
type process struct {
	pid   int
	ended <-chan unix.WaitStatus
	over  atomic.Bool // it has ended
	tty   *os.File    // the master of its terminal, or nil
	ends  []*end      // of its streams
}

// spawn starts a process and serves its streams, each of which is nil, for
// /dev/null, or is closed when there is nothing more to copy. On an error they
// are not touched.
func spawn(cmd Command, stdio [3]io.ReadWriteCloser, extra []*os.File) (*process, error) {
	if len(cmd.Argv) == 0 || cmd.Argv[0] == "" {
		return nil, errors.New("no program was named")
	}
	x := &exec.Cmd{
		Path: cmp.Or(cmd.Path, cmd.Argv[0]), Args: cmd.Argv, Dir: cmd.Dir, Env: cmd.Env, ExtraFiles: extra,
		SysProcAttr: &syscall.SysProcAttr{
			// A session of its own: with autogroup scheduling the agent
			// would starve beside spinning ranks of its own session.
			Setsid: true,
		},
	}
	// A launcher in a VM that is not root serves its own user only, and may not
	// even set what is set.
	if !cmd.Own && (os.Geteuid() == 0 || int(cmd.User.UID) != os.Geteuid()) {
		x.SysProcAttr.Credential = &syscall.Credential{Uid: cmd.User.UID, Gid: cmd.User.GID, Groups: cmd.User.Groups}
	}
	p := &process{}
	var mine, theirs []io.Closer // what is served here, and what to close after the start
	fail := func(err error) (*process, error) {
		for _, f := range append(mine, theirs...) {
			f.Close()
		}
		return nil, err
	}
	var pipes [3]*os.File // this end of each
	if cmd.TTY != nil {
		if stdio[0] == nil || stdio[1] != nil || stdio[2] != nil {
			return nil, errors.New("a process at a terminal has one stream, number 0")
		}
		master, slave, err := openTTY(Size{cmd.TTY.Rows, cmd.TTY.Cols}, cmd.User.UID)
		if err != nil {
			return nil, err
		}
		p.tty = master
		mine, theirs = append(mine, master), append(theirs, slave)
		x.Stdin, x.Stdout, x.Stderr = slave, slave, slave
		x.SysProcAttr.Setctty = true
		x.Env = cmd.TTY.withTerm(x.Env)
	} else {
		for fd, s := range stdio {
			if s == nil {
				continue // exec.Cmd opens /dev/null
			}
			r, w, err := os.Pipe()
			if err != nil {
				return fail(err)
			}
			switch fd {
			case 0:
				x.Stdin, pipes[fd] = r, w
				mine, theirs = append(mine, w), append(theirs, r)
			case 1:
				x.Stdout, pipes[fd] = w, r
				mine, theirs = append(mine, r), append(theirs, w)
			case 2:
				x.Stderr, pipes[fd] = w, r
				mine, theirs = append(mine, r), append(theirs, w)
			}
		}
	}
	var err error
	p.ended, err = children().start(func() (int, error) {
		start := func() error { return group.start(x.SysProcAttr, x.Start) }
		if err := cmd.Bind.start(start); err != nil {
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
	// The reaper waits for it, so its handle is of no use, and costs a
	// descriptor. Release forgets the pid.
	p.pid = x.Process.Pid
	x.Process.Release()
	// All are known before this returns, for then there may be a fork.
	newEnd := func(s io.ReadWriteCloser, input bool) *end {
		e := newEnd(s, input)
		p.ends = append(p.ends, e)
		return e
	}
	if p.tty != nil {
		in, out := newEnd(stdio[0], true), newEnd(stdio[0], false)
		go in.feedTTY(p.tty)
		go out.carry(p.tty)
	}
	for fd, f := range pipes {
		switch {
		case f == nil:
		case fd == 0:
			go newEnd(stdio[fd], true).feed(f)
		default:
			go newEnd(stdio[fd], false).carry(f)
		}
	}
	return p, nil
}

// signal sends a signal to the process's group.
func (p *process) signal(n int) { unix.Kill(-p.pid, unix.Signal(n)) }

// resize tells the process of its terminal's size, if it has one.
func (p *process) resize(s Size) {
	if p.tty != nil {
		setSize(p.tty, s)
	}
}

// hangUp takes the terminal away from a process that lives: nobody is at it
// any more. The copies of a process in clones keep theirs.
func (p *process) hangUp() {
	if p.tty != nil && !p.over.Load() && !p.ends[0].abandoned.Load() {
		p.tty.Close()
	}
}

// wait returns how the process has ended. One may wait.
func (p *process) wait() Exit {
	ws := <-p.ended
	p.over.Store(true)
	if ws.Signaled() {
		return Exit{Signal: int(ws.Signal()), Core: ws.CoreDump(), PID: p.pid}
	}
	return Exit{Status: ws.ExitStatus(), PID: p.pid}
}

// run starts a process, answers the host, and serves the stream in the
// background. On an error nothing has been answered.
func (c *clone) run(st *stream, cmd Command) error {
	var stdio [3]io.ReadWriteCloser
	for fd := range stdio {
		if s := c.takeStdio(cmd.ID, fd); s != nil {
			stdio[fd] = s
		}
	}
	var extra []*os.File
	servePMI := func() {}
	p, err := func() (*process, error) {
		if cmd.PMI != nil {
			serve, file, err := c.connectPMI(*cmd.PMI, &cmd.Env)
			if err != nil {
				return nil, err
			}
			defer file.Close()
			extra, servePMI = []*os.File{file}, serve
		}
		if cmd.Progress {
			cmd.Env = preload(cmd.Env)
		}
		if cmd.PMIx {
			return spawnHelper(cmd, stdio)
		}
		return spawn(cmd, stdio, extra)
	}()
	// If it did not start, the proxy hears of this rank too: as of one that ended.
	go servePMI()
	if err != nil {
		for _, s := range stdio {
			if s != nil {
				s.Close()
			}
		}
		return err
	}
	writeLine(st, answer{})
	go func() {
		for {
			var m control
			if readLine(st.in, &m) != nil {
				p.hangUp()
				return
			}
			if m.Signal != 0 {
				p.signal(m.Signal)
			}
			if m.Resize != nil {
				p.resize(*m.Resize)
			}
		}
	}()
	go func() {
		writeLine(st, p.wait())
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

// connectPMI makes the rank's connection to its group's proxy: what serves it,
// and the rank's end.
func (c *clone) connectPMI(r PMIRank, env *[]string) (serve func(), theirs *os.File, err error) {
	c.mu.Lock()
	local := c.groups[r.Group]
	c.mu.Unlock()
	if local.proxy == nil {
		return nil, nil, fmt.Errorf("rank %d has no PMI proxy", r.Rank)
	}
	found, err := local.proxy.Environ(r.Rank, fdPMI)
	if err != nil {
		return nil, nil, fmt.Errorf("rank %d has no PMI proxy: %w", r.Rank, err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make rank %d a PMI connection: %w", r.Rank, err)
	}
	unix.SetNonblock(fds[0], true)
	mine := os.NewFile(uintptr(fds[0]), "pmi")
	*env = append(*env, found...)
	return func() { local.proxy.ServeRank(context.Background(), r.Rank, mine) }, os.NewFile(uintptr(fds[1]), "pmi"), nil
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
