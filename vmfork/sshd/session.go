package sshd

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// session is one channel: one program and its streams (RFC 4254, section 6).
type session struct {
	config   Config
	user     string
	channel  ssh.Channel
	env      []string
	terminal *Terminal
	process  Process // once there is one
}

// maxEnv bounds how many variables a client may set.
const maxEnv = 64

// serve answers the client's requests until the channel is closed.
func (s *session) serve(requests <-chan *ssh.Request) {
	started := false
	for r := range requests {
		ok := false
		switch r.Type {
		case "pty-req":
			ok = !started && s.askTerminal(r.Payload)
		case "env":
			ok = !started && s.setEnv(r.Payload)
		case "shell", "exec":
			var command struct{ Text string }
			if started || r.Type == "exec" && ssh.Unmarshal(r.Payload, &command) != nil {
				break
			}
			started, ok = true, true
			// The answer goes before all output.
			r.Reply(true, nil)
			s.start(command.Text)
			continue
		case "window-change":
			var size struct{ Cols, Rows, Width, Height uint32 }
			if ok = s.process != nil && ssh.Unmarshal(r.Payload, &size) == nil; ok {
				s.process.Resize(uint16(size.Rows), uint16(size.Cols))
			}
		case "signal":
			var name struct{ Text string }
			if s.process != nil && ssh.Unmarshal(r.Payload, &name) == nil {
				n := unix.SignalNum("SIG" + name.Text)
				if ok = slices.Contains(signals, name.Text) && n != 0; ok {
					s.process.Signal(int(n))
				}
			}
		}
		// Among the others: the forwarding of agents and of X11, subsystems.
		if r.WantReply {
			r.Reply(ok, nil)
		}
	}
	// Without a program nothing else would end the channel.
	s.channel.Close()
	if s.process != nil {
		s.process.HangUp()
	}
}

// signals are those that have a name in SSH (RFC 4254, section 6.10).
var signals = []string{"ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"}

// askTerminal is for a terminal whose modes are Linux's own: the client has
// put its user's terminal into raw mode, and only some of its other modes
// would mean anything here.
func (s *session) askTerminal(payload []byte) bool {
	var t struct {
		Term                      string
		Cols, Rows, Width, Height uint32
		Modes                     string
	}
	if s.terminal != nil || ssh.Unmarshal(payload, &t) != nil || strings.ContainsRune(t.Term, 0) {
		return false
	}
	s.terminal = &Terminal{t.Term, uint16(t.Rows), uint16(t.Cols)}
	return true
}

// setEnv takes variables that say how to speak to the user, and none that
// change what a program does.
func (s *session) setEnv(payload []byte) bool {
	var v struct{ Name, Value string }
	if len(s.env) == maxEnv || ssh.Unmarshal(payload, &v) != nil || strings.ContainsRune(v.Value, 0) {
		return false
	}
	if v.Name != "LANG" && v.Name != "COLORTERM" && !isLocale(v.Name) {
		return false
	}
	s.env = append(s.env, v.Name+"="+v.Value)
	return true
}

func isLocale(name string) bool {
	rest, ok := strings.CutPrefix(name, "LC_")
	return ok && rest != "" && strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == ""
}

// start starts the program, and sees to it that its end ends the session.
func (s *session) start(command string) {
	var sent sync.WaitGroup // all output
	p := Program{
		User: s.user, Command: command, Env: s.env, Terminal: s.terminal,
		Stdin: s.channel, Stdout: newOutput(s.channel, &sent),
	}
	if s.terminal == nil {
		p.Stderr = newOutput(s.channel.Stderr(), &sent)
	}
	process, err := s.config.Start(p)
	if err != nil {
		fmt.Fprintf(s.channel.Stderr(), "mpirun-sf: %v\n", err)
		s.end(Exit{Status: failed})
		s.channel.Close()
		return
	}
	s.process = process
	go func() {
		s.end(process.Wait())
		sent.Wait()
		s.channel.CloseWrite()
		s.channel.Close()
	}()
}

// failed is the status of a program that did not start, as a shell's.
const failed = 126

// end tells the client how the program ended.
func (s *session) end(e Exit) {
	if e.Signal == 0 {
		s.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(e.Status)}))
		return
	}
	name := strings.TrimPrefix(unix.SignalName(unix.Signal(e.Signal)), "SIG")
	if !slices.Contains(signals, name) {
		name = fmt.Sprintf("%d@mpirun-sf", e.Signal)
	}
	s.channel.SendRequest("exit-signal", false, ssh.Marshal(struct {
		Name           string
		Core           bool
		Text, Language string
	}{name, e.Core, unix.Signal(e.Signal).String(), ""}))
}

// output is one of a program's output streams.
type output struct {
	io.Writer
	once sync.Once
	sent *sync.WaitGroup
}

func newOutput(w io.Writer, sent *sync.WaitGroup) *output {
	sent.Add(1)
	return &output{Writer: w, sent: sent}
}

func (o *output) Close() error {
	o.once.Do(o.sent.Done)
	return nil
}
