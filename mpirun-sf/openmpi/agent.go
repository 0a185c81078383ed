package openmpi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// loginLimit is how long an agent may wait for the launcher's answer and the
// clone's handshake. Clones that all start at once take their turns.
const loginLimit = 2 * time.Minute

// Agent is the remote shell agent: it runs a command line on a host, with this
// process's streams. args are the host and the words of the line. It returns the
// command's exit status, 128+N if signal N ended it.
func Agent(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	if len(args) < 2 {
		return 0, errors.New("remote shell agent: it takes a host and a command line")
	}
	host, parent := args[0], os.Getppid()
	secret, err := parseSecret(os.Getenv(SecretVariable))
	if err != nil {
		return 0, fmt.Errorf("remote shell agent: %w", err)
	}
	fail := func(err error) (int, error) {
		return 0, fmt.Errorf("start Open MPI's daemon in %s: %w", host, err)
	}
	dialer := net.Dialer{Timeout: helloLimit}
	conn, err := dialer.DialContext(ctx, "unix", "@"+secret.Name)
	if err != nil {
		return fail(errors.New("the mpirun-sf that made the clones is gone"))
	}
	defer conn.Close()
	maker := peer(conn)
	conn.SetDeadline(time.Now().Add(loginLimit))
	if err := writeLine(conn, hello{Token: secret.Token, Host: host, Command: args[1:]}); err != nil {
		return fail(err)
	}
	in := bufio.NewReader(conn)
	var a answer
	if err := readLine(in, &a); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("mpirun-sf does not take this for an agent of its job")
		}
		return fail(err)
	}
	if a.Error != "" {
		return fail(errors.New(a.Error))
	}
	client, err := login(&buffered{conn, in}, host, a)
	if err != nil {
		return fail(err)
	}
	defer client.Close()
	conn.SetDeadline(time.Time{})
	session, err := client.NewSession()
	if err != nil {
		return fail(err)
	}
	session.Stdin, session.Stdout, session.Stderr = stdin, stdout, stderr
	code, err := status(session.Run(a.Command), host)
	if err != nil && maker.gone() {
		outlast(parent)
	}
	if err != nil && os.Getppid() != parent {
		return code, nil // the launcher has ended, and with it the job: there is nobody to tell
	}
	return code, err
}

// process is one that may end before this one: a pidfd, or -1 for none.
type process int

// peer is the process that a connection leads to.
func peer(conn net.Conn) process {
	p := process(-1)
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return p
	}
	raw.Control(func(fd uintptr) {
		c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		if pidfd, err := unix.PidfdOpen(int(c.Pid), 0); err == nil {
			p = process(pidfd)
		}
	})
	return p
}

// gone tells if the process has ended, or does so now: it closes its connections a
// moment before.
func (p process) gone() bool {
	if p < 0 {
		return false
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}, 200)
	return err == nil && n > 0
}

// outlastLimit is how long a launcher whose job is gone may take to end.
const outlastLimit = 10 * time.Second

// outlast waits for the end of the launcher that has started this process, after
// the mpirun-sf that would have tidied up has been killed, and does it. A launcher
// that hears of its agents' end while it ends itself leaves its folder.
func outlast(launcher int) {
	for end := time.Now().Add(outlastLimit); os.Getppid() == launcher && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	if os.Getppid() != launcher {
		removeSession(os.Getenv("TMPDIR"), os.Getuid(), launcher)
	}
}

// login does SSH's handshake.
func login(conn net.Conn, host string, a answer) (*ssh.Client, error) {
	key, err := ssh.ParsePrivateKey(a.Key)
	if err != nil {
		return nil, fmt.Errorf("read the job's key: %w", err)
	}
	known, _, _, _, err := ssh.ParseAuthorizedKey([]byte(a.HostKey))
	if err != nil {
		return nil, fmt.Errorf("read the clone's key: %w", err)
	}
	c, channels, requests, err := ssh.NewClientConn(conn, host, &ssh.ClientConfig{
		// The user is whom the launcher has told the clone's agent.
		User: "mpirun-sf", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(known),
		HostKeyAlgorithms: []string{known.Type()},
	})
	if err != nil {
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}

// status is the exit status of a command that ended with err.
func status(err error, host string) (int, error) {
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit) && exit.Signal() == "":
		return exit.ExitStatus(), nil
	case errors.As(err, &exit):
		return 128 + int(unix.SignalNum("SIG"+exit.Signal())), nil
	}
	return 0, fmt.Errorf("%s is gone, and with it Open MPI's daemon", host)
}

// buffered is a connection of which the beginning has been read already.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// AgentCommand is the command of remote shell agents, which Open MPI splits at
// blanks, and takes for several at colons.
func AgentCommand(program string, args ...string) (string, error) {
	words := append([]string{program}, args...)
	if slices.ContainsFunc(words, func(w string) bool { return strings.ContainsAny(w, " \t\n:,\"") }) {
		return "", fmt.Errorf("the path %q cannot be told to Open MPI: put mpirun-sf where it has no blanks, colons, commas or quotes", program)
	}
	return strings.Join(words, " "), nil
}
