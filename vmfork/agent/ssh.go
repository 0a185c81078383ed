package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/mpirun-sf/mpirun-sf/vmfork/sshd"
)

// SSH asks for an SSH server: the stream then carries one client's connection.
// It is a secret: HostKey is a private key.
type SSH struct {
	HostKey        []byte   `json:"host_key"`        // in PEM
	AuthorizedKeys []string `json:"authorized_keys"` // public keys, one in each line, as in authorized_keys
	Login          *Login   `json:"login,omitempty"`
}

// Login is as whom and with what programs run that an SSH client asks for,
// whatever user it names: as the ranks of a job, of whose user the guest's files
// may know nothing.
type Login struct {
	User User     `json:"user"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
	// Progress preloads [guest.Progress].
	Progress bool `json:"progress,omitempty"`
}

// parse reads the keys.
func (r SSH) parse() (c sshd.Config, err error) {
	if c.HostKey, err = ssh.ParsePrivateKey(r.HostKey); err != nil {
		return c, fmt.Errorf("read the host key: %w", err)
	}
	for i, line := range r.AuthorizedKeys {
		key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return c, fmt.Errorf("read authorized key %d: %w", i+1, err)
		}
		// Options restrict a key, and none of them is understood here.
		if len(options) > 0 {
			return c, fmt.Errorf("read authorized key %d: it has options, which are not supported: %s", i+1, options[0])
		}
		c.AuthorizedKeys = append(c.AuthorizedKeys, key)
	}
	if len(c.AuthorizedKeys) == 0 {
		return c, errors.New("no key would be let in")
	}
	return c, nil
}

// ssh answers the host, and serves an SSH client on the stream until it leaves.
// On an error nothing has been answered.
func (c *clone) ssh(st *stream, r SSH) error {
	config, err := r.parse()
	if err != nil {
		return err
	}
	config.Start = startSSH
	if r.Login != nil {
		config.Start = r.Login.start
	}
	writeLine(st, answer{})
	sshd.Serve(context.Background(), st, config)
	return nil
}

// startSSH starts what an SSH client asks for, with the guest's own shell for
// the user.
func startSSH(p sshd.Program) (sshd.Process, error) {
	a, err := lookupAccount("/etc", p.User)
	if err != nil {
		return nil, err
	}
	return spawnSSH(a.command(p), p)
}

// start starts what an SSH client asks for with a login of the host's.
func (l Login) start(p sshd.Program) (sshd.Process, error) {
	a := account{shell: "/bin/sh", home: l.Dir, User: l.User}
	c := a.command(p)
	c.Env, c.Dir = append(l.Env[:len(l.Env):len(l.Env)], p.Env...), l.Dir
	if l.Progress {
		c.Env = preload(c.Env)
	}
	return spawnSSH(c, p)
}

func spawnSSH(c Command, p sshd.Program) (sshd.Process, error) {
	streams := [3]io.ReadWriteCloser{sshStream{p.Stdin, p.Stdout}}
	if p.Terminal == nil {
		streams = [3]io.ReadWriteCloser{sshStream{p.Stdin, nil}, sshStream{nil, p.Stdout}, sshStream{nil, p.Stderr}}
	}
	started, err := spawn(c, streams, nil)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Argv[0], err)
	}
	return sshProcess{started}, nil
}

// account is a user of the guest: passwd(5), and the groups that name it.
type account struct {
	User
	name, home, shell string
}

// loginPath is PATH for who comes by SSH. The agent's own programs are first.
const loginPath = stateDir + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is p's, run as this user.
func (a account) command(p sshd.Program) Command {
	c := Command{
		Argv: []string{a.shell, "-l"}, Dir: a.home, User: a.User,
		Env: append([]string{
			"PATH=" + loginPath, "HOME=" + a.home, "SHELL=" + a.shell, "USER=" + a.name, "LOGNAME=" + a.name,
		}, p.Env...),
	}
	if p.Command != "" {
		c.Argv = []string{a.shell, "-c", p.Command}
	}
	if _, err := os.Stat(a.home); err != nil {
		c.Dir = "/"
	}
	if t := p.Terminal; t != nil {
		c.TTY = &TTY{t.Rows, t.Cols, t.Term}
	}
	return c
}

// lookupAccount finds a user in the guest's files. The agent is linked without
// a C library, so it knows no other services (nsswitch.conf(5)).
func lookupAccount(etc, name string) (account, error) {
	passwd, err := os.ReadFile(filepath.Join(etc, "passwd"))
	if err != nil {
		return account{}, fmt.Errorf("look user %q up: %w", name, err)
	}
	for line := range strings.Lines(string(passwd)) {
		// name:password:uid:gid:comment:home:shell
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if f[0] != name || len(f) != 7 || name == "" {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return account{}, fmt.Errorf("look user %q up: %w", name, err)
		}
		a := account{name: name, home: f[5], shell: f[6], User: User{UID: uint32(uid), GID: uint32(gid)}}
		if a.shell == "" {
			a.shell = "/bin/sh"
		}
		a.Groups = groupsOf(etc, name, a.GID)
		return a, nil
	}
	return account{}, fmt.Errorf("there is no user %q in this virtual machine", name)
}

// groupsOf are a user's groups, its own first.
func groupsOf(etc, name string, gid uint32) []uint32 {
	groups := []uint32{gid}
	b, _ := os.ReadFile(filepath.Join(etc, "group"))
	for line := range strings.Lines(string(b)) {
		// name:password:gid:members
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) != 4 || !slices.Contains(strings.Split(f[3], ","), name) {
			continue
		}
		if n, err := strconv.ParseUint(f[2], 10, 32); err == nil && uint32(n) != gid {
			groups = append(groups, uint32(n))
		}
	}
	return groups
}

// sshStream is one or both directions of a program's streams.
type sshStream struct {
	io.Reader
	out io.WriteCloser // nil for its input alone
}

func (s sshStream) Write(p []byte) (int, error) { return s.out.Write(p) }

func (s sshStream) Close() error {
	if s.out == nil {
		return nil
	}
	return s.out.Close()
}

// sshProcess is a process for sshd.
type sshProcess struct{ p *process }

func (s sshProcess) Signal(n int)             { s.p.signal(n) }
func (s sshProcess) Resize(rows, cols uint16) { s.p.resize(Size{rows, cols}) }
func (s sshProcess) HangUp()                  { s.p.hangUp() }

func (s sshProcess) Wait() sshd.Exit {
	e := s.p.wait()
	return sshd.Exit{Status: e.Status, Signal: e.Signal, Core: e.Core}
}
