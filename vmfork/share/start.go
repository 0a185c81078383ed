package share

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	// readyWait is how long a child may take to be ready.
	readyWait = 10 * time.Second
	// leaveWait is how long a child may take to leave after it was asked to.
	leaveWait = 2 * time.Second
)

// A Command is how the child process is run.
type Command struct {
	// Path is the program that calls [Main]. Empty means the program that is running.
	Path string
	// Args are its arguments, as ["share"].
	Args []string
	// Stderr takes its log. Nil means that of this process.
	Stderr io.Writer
}

// A Server is a child process that serves one folder.
type Server struct {
	command *exec.Cmd
	control *os.File // the child leaves when it is closed
	done    chan struct{}
	err     error // after done
}

// Start runs a child process that serves a folder on a listening TCP socket. When it returns without error, the folder is
// there and clones can connect. The listener remains the caller's to close, at once if it likes. ctx bounds the start,
// not the server's life.
func Start(ctx context.Context, config Config, listener *os.File, run Command) (*Server, error) {
	s, err := start(ctx, config, listener, run)
	if err != nil {
		return nil, fmt.Errorf("start server of shared folder: %w", err)
	}
	return s, nil
}

func start(ctx context.Context, config Config, listener *os.File, run Command) (*Server, error) {
	if !filepath.IsAbs(config.Folder) {
		return nil, fmt.Errorf("%s is no absolute path", config.Folder)
	}
	line, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	if run.Path == "" {
		if run.Path, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	childControl, control, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childControl.Close()
	output, childOutput, err := os.Pipe()
	if err != nil {
		control.Close()
		return nil, err
	}
	defer output.Close()
	defer childOutput.Close()

	s := &Server{command: exec.Command(run.Path, run.Args...), control: control, done: make(chan struct{})}
	s.command.Env = []string{} // it needs nothing of ours
	s.command.Dir = "/"
	s.command.Stdin = childControl
	s.command.Stdout = childOutput
	s.command.Stderr = run.Stderr
	if run.Stderr == nil {
		s.command.Stderr = os.Stderr
	}
	s.command.WaitDelay = leaveWait
	s.command.ExtraFiles = []*os.File{listener}
	if err := s.command.Start(); err != nil {
		control.Close()
		return nil, err
	}
	childOutput.Close() // so that the child's end is the end of output
	go func() {
		s.err = s.command.Wait()
		close(s.done)
	}()
	if err := s.waitReady(ctx, append(line, '\n'), output); err != nil {
		_ = s.command.Process.Kill()
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// waitReady configures the child and hears its report.
func (s *Server) waitReady(ctx context.Context, line []byte, output *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = s.command.Process.Kill() })()
	if _, err := s.control.Write(line); err != nil {
		return fmt.Errorf("configure it: %w", err)
	}
	said, err := io.ReadAll(&untilLine{output, false})
	var report report
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("wait for it to be ready: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("wait for it to be ready: %w", err)
	case len(said) == 0:
		return errors.New("it ended before it was ready")
	case json.Unmarshal(said, &report) != nil:
		return fmt.Errorf("it said %.100q instead of being ready", said)
	case report.Error != "":
		return errors.New(report.Error)
	}
	return nil
}

// untilLine ends with the first line, or after 64 KB.
type untilLine struct {
	r    io.Reader
	over bool
}

func (u *untilLine) Read(p []byte) (int, error) {
	if u.over {
		return 0, io.EOF
	}
	n, err := u.r.Read(p)
	u.over = bytes.IndexByte(p[:n], '\n') >= 0
	return n, err
}

// Done is closed when the child has ended, whatever ended it.
func (s *Server) Done() <-chan struct{} { return s.done }

// PID is the child's process id.
func (s *Server) PID() int { return s.command.Process.Pid }

// Close ends the child and waits for it: it is asked first, and killed when it has not left after two seconds. All
// connections break. Close may be called twice.
func (s *Server) Close() error {
	s.control.Close()
	select {
	case <-s.done:
	case <-time.After(leaveWait):
		_ = s.command.Process.Kill()
		<-s.done
		return errors.New("stop server of shared folder: it did not leave, and was killed")
	}
	if s.err != nil {
		return fmt.Errorf("stop server of shared folder: %w", s.err)
	}
	return nil
}
