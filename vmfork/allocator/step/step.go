package step

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

const (
	// startLimit is for a start whose context has no deadline: managers answer
	// in seconds, and a program arrives in seconds.
	startLimit = 2 * time.Minute
	// abortLimit is how long a start that is given up has to end in order.
	abortLimit = 2 * time.Second
	// maxNoise bounds what a host may print before the script speaks.
	maxNoise = 64 << 10
)

// binary is a program of this machine.
type binary struct {
	file *os.File
	path string
	size int64
	hash string // SHA-256, hexadecimal
}

func openBinary(path string) (binary, error) {
	f, err := os.Open(path)
	if err != nil {
		return binary{}, err
	}
	b := binary{file: f, path: path}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0 || info.Size() == 0) {
		err = fmt.Errorf("%s is not an executable file", path)
	}
	h := sha256.New()
	if err == nil {
		b.size, err = io.Copy(h, f)
	}
	if err != nil {
		f.Close()
		return binary{}, err
	}
	b.hash = hex.EncodeToString(h.Sum(nil))
	return b, nil
}

// Start starts cmd, whose far end runs [Shell] or [ShellLine] on the host, and
// makes it run program there, as [allocator.Allocation].Start has it. explain,
// if not nil, makes a better error of how cmd ended, without the host's name;
// it is not asked about what sudo said.
func Start(ctx context.Context, host string, cmd *exec.Cmd, program string, args []string, explain func(*allocator.ExitError) error) (allocator.Process, error) {
	p, err := start(ctx, host, cmd, program, args, explain)
	if err == nil {
		return p, nil
	}
	var of *allocator.HostError
	if !errors.As(err, &of) {
		err = &allocator.HostError{Host: host, Err: err}
	}
	return nil, err
}

func start(ctx context.Context, host string, cmd *exec.Cmd, program string, args []string, explain func(*allocator.ExitError) error) (allocator.Process, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("start %s: %w", program, context.Cause(ctx))
	}
	if strings.ContainsRune(program+strings.Join(args, ""), 0) {
		return nil, fmt.Errorf("start %s: an argument has a zero byte", program)
	}
	b, err := openBinary(program)
	if err != nil {
		return nil, fmt.Errorf("start a program: %w", err)
	}
	defer b.file.Close()
	command, err := allocator.Command(host, cmd, killLimit, nil)
	if err != nil {
		return nil, err
	}
	p := &process{Process: command, out: bufio.NewReader(command), host: host, explain: explain}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("it does not run after %v: %w", startLimit, context.DeadlineExceeded))
		defer cancel()
	}
	met := make(chan error, 1)
	go func() { met <- p.meet(b, args) }()
	select {
	case err = <-met:
	case <-ctx.Done():
		p.abort(cmd)
		<-met
		return nil, fmt.Errorf("start %s: %w", program, context.Cause(ctx))
	}
	if err != nil {
		p.abort(cmd)
		// That the stream ended says less than why.
		if ended := p.Wait(); ended != nil && (errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE)) {
			return nil, ended
		}
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return p, nil
}

// process is a command that has become the program.
type process struct {
	allocator.Process
	out     *bufio.Reader
	host    string
	explain func(*allocator.ExitError) error
}

func (p *process) Read(b []byte) (int, error) { return p.out.Read(b) }

func (p *process) Wait() error {
	err := p.Process.Wait()
	var exit *allocator.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if strings.Contains(exit.Stderr, "sudo:") {
		err = fmt.Errorf("the daemon has to be root there, and sudo -n does not let it: allow it without a password (NOPASSWD in sudoers), or run as root: %w", exit)
	} else if p.explain == nil {
		return err
	} else if err = p.explain(exit); err == nil {
		err = exit
	}
	return &allocator.HostError{Host: p.host, Err: err}
}

// abort ends a process that is of no use any more. The end of its input should
// do; but a command that has not reached the host does not look at it.
func (p *process) abort(cmd *exec.Cmd) {
	closed := make(chan struct{})
	go func() {
		p.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(abortLimit):
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		<-closed
	}
}

// meet talks to the script until the stream is the program's.
func (p *process) meet(b binary, args []string) error {
	mark := "mpirun-sf-" + rand.Text()
	script := order(mark, b, args, allocator.CloseLimit)
	// From a goroutine of its own: a host that prints much first must not be
	// waited for by one that waits for it.
	sent := make(chan error, 1)
	go func() {
		_, err := fmt.Fprintf(p.Process, "%d\n%s", len(script), script)
		sent <- err
	}()
	for noise := 0; noise < maxNoise; {
		line, err := p.out.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return fmt.Errorf("hear from its shell: %w", err)
		}
		noise += len(line)
		switch strings.TrimSpace(string(line)) {
		case mark + " run":
			return nil
		case mark + " want":
			if err := <-sent; err != nil {
				return fmt.Errorf("send a script: %w", err)
			}
			if _, err := io.Copy(p.Process, io.NewSectionReader(b.file, 0, b.size)); err != nil {
				return fmt.Errorf("send %s: %w", b.path, err)
			}
		}
	}
	return errors.New("its shell prints much, and does not run what it is told to: no file that a login shell reads there may print anything or run another program")
}
