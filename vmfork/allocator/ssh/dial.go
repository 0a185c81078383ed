package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxHops is through how many hosts a connection may go.
const maxHops = 8

// connection is one to a host, on which somebody has logged in.
type connection struct {
	*ssh.Client
	s    *settings
	lost *reason       // why it ended, once it has
	gone chan struct{} // closed when it has
}

// way is how to get to a host: the hosts that the connection goes through, and
// the host itself.
type way []*settings

// wayTo works it out before anything is connected to, so that one that goes
// round in circles ends.
func (c configuration) wayTo(s *settings, hops int) (way, error) {
	var w way
	for i, hop := range s.jump {
		if hops++; hops > maxHops {
			return nil, fmt.Errorf("more than %d hosts on the way; does ProxyJump go round in circles?", maxHops)
		}
		user, host, port, err := splitHop(hop)
		if err != nil {
			return nil, err
		}
		next, err := c.resolve(host, user, port)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", host, err)
		}
		if i > 0 { // gets there from the one before, whatever its own way is
			next.jump, next.proxyCommand = nil, ""
		}
		before, err := c.wayTo(next, hops)
		if err != nil {
			return nil, err
		}
		w = append(w, before...)
	}
	return append(w, s), nil
}

// String names the hosts on the way.
func (w way) String() string {
	var names []string
	for _, s := range w[:len(w)-1] {
		names = append(names, s.name)
	}
	return strings.Join(names, ", ")
}

// connect makes a connection, and logs in.
func (a *Allocation) connect(ctx context.Context, w way) (*connection, error) {
	s := w[len(w)-1]
	raw, err := a.reach(ctx, w)
	if err != nil {
		return nil, err
	}
	c, err := a.logIn(ctx, s, raw)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// reach makes the stream that SSH is spoken on.
func (a *Allocation) reach(ctx context.Context, w way) (net.Conn, error) {
	s := w[len(w)-1]
	switch {
	case len(w) > 1:
		// Each host on the way has limits of its own.
		via, err := a.hop(ctx, w[:len(w)-1])
		if err != nil {
			return nil, fmt.Errorf("connect to %s through %v: %w", s.address(), w, err)
		}
		limited, cancel := context.WithTimeout(ctx, s.connectLimit)
		defer cancel()
		conn, err := dialThrough(limited, via, s.address())
		if err != nil {
			return nil, fmt.Errorf("connect to %s through %v: %w", s.address(), w, because(limited, err, s.connectLimit))
		}
		return conn, nil
	case s.proxyCommand != "":
		conn, err := startProxy(s.proxyCommand, a.account)
		if err != nil {
			return nil, fmt.Errorf("connect by ProxyCommand %q: %w", s.proxyCommand, err)
		}
		return conn, nil
	}
	limited, cancel := context.WithTimeout(ctx, s.connectLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(limited, s.family, s.address())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", s.address(), because(limited, dialError(err), s.connectLimit))
	}
	return conn, nil
}

// because says that a limit was over, and which.
func because(ctx context.Context, err error, limit time.Duration) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			return fmt.Errorf("no answer in %v: %w; is the host up, and does a firewall let ssh pass?", limit, os.ErrDeadlineExceeded)
		}
		return cause
	}
	return err
}

// dialError is without the address, and with what to do.
func dialError(err error) error {
	var name *net.DNSError
	if errors.As(err, &name) {
		if name.IsNotFound {
			return fmt.Errorf("no such host is known; is the name right? (%w)", err)
		}
		return err
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w; does sshd run there, and on this port?", syscall.ECONNREFUSED)
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return err
}

// dialThrough is Client.Dial that ends with the context.
func dialThrough(ctx context.Context, via *connection, address string) (net.Conn, error) {
	conn, err := via.DialContext(ctx, "tcp", address)
	var refused *ssh.OpenChannelError
	switch {
	case errors.As(err, &refused):
		return nil, fmt.Errorf("%s says: %s", via.s.host, strings.TrimSpace(refused.Message))
	case err != nil && via.lost.get() != nil:
		return nil, via.lost.get()
	}
	return conn, err
}

// hop is the connection to a host on the way. It is made once: a host that many
// go through has a limit for how many log in at once. Who makes it waits only for
// shorter ways.
func (a *Allocation) hop(ctx context.Context, w way) (*connection, error) {
	key := ""
	for _, s := range w {
		key += s.name + " " + s.String() + "\n"
	}
	a.mu.Lock()
	h := a.hops[key]
	if h == nil {
		h = &shared{turn: make(chan struct{}, 1)}
		a.hops[key] = h
	}
	a.mu.Unlock()
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if h.c != nil && h.c.lost.get() == nil {
		return h.c, nil
	}
	c, err := a.connect(ctx, w)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w[len(w)-1].name, err)
	}
	if err := a.keep(c); err != nil {
		return nil, err
	}
	h.c = c
	return c, nil
}

// shared is a connection that many use, once it is made. Who makes it has the
// turn.
type shared struct {
	turn chan struct{}
	c    *connection
}

// logIn speaks SSH on a stream, as far as having logged in.
func (a *Allocation) logIn(ctx context.Context, s *settings, raw net.Conn) (*connection, error) {
	k := s.known()
	l := &login{keyring: a.keys, s: s}
	defer l.close()
	w := watch(ctx, raw, s.connectLimit, "for its greeting")
	defer w.stop()
	offered := ssh.SupportedAlgorithms().HostKeys
	if s.algorithms != nil {
		// ssh may know more of them.
		can := slices.Concat(offered, ssh.InsecureAlgorithms().HostKeys)
		offered = slices.DeleteFunc(slices.Clone(s.algorithms), func(a string) bool { return !slices.Contains(can, a) })
		if len(offered) == 0 {
			return nil, fmt.Errorf("log in as %v: HostKeyAlgorithms %s has none that mpirun-sf can check", s, strings.Join(s.algorithms, ","))
		}
	}
	shown := false
	var refused error
	config := &ssh.ClientConfig{
		User:              s.user,
		ClientVersion:     "SSH-2.0-mpirun-sf",
		HostKeyAlgorithms: k.prefer(offered),
		Auth:              []ssh.AuthMethod{l.method(ctx, w.pause)},
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			shown = true
			w.next(loginLimit, "for the login")
			refused = a.trust(ctx, s, k, key, w.pause)
			return refused
		},
	}
	conn, channels, requests, err := ssh.NewClientConn(raw, s.address(), config)
	if err == nil && !w.stop() {
		conn.Close()
		err = io.ErrUnexpectedEOF
	}
	switch {
	case err == nil:
	case w.over() != nil:
		return nil, fmt.Errorf("log in as %v: %w", s, w.over())
	case refused != nil:
		return nil, fmt.Errorf("log in as %v: %w", s, refused)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return nil, l.refused()
	case !shown && s.proxyCommand != "":
		return nil, fmt.Errorf("log in as %v: %w; does its ProxyCommand work? try: %s", s, err, s.command())
	case !shown && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)):
		return nil, fmt.Errorf("log in as %v: it closed the connection before a login (%w); what does its sshd log? too many may be logging in at once (MaxStartups)", s, err)
	default:
		return nil, fmt.Errorf("log in as %v: %w", s, l.explain(err))
	}
	c := &connection{Client: ssh.NewClient(conn, channels, requests), s: s, lost: new(reason), gone: make(chan struct{})}
	go c.watchOver()
	return c, nil
}

// refused is that no key was good enough.
func (l *login) refused() error {
	what := "there are no keys to log in with"
	if len(l.offer) > 0 {
		what = "it takes none of the keys (" + strings.Join(l.offer, ", ") + ")"
	}
	err := fmt.Errorf("log in as %v: %s; does %s work without a password? if not: ssh-copy-id %s", l.s, what, l.s.command(), strings.TrimPrefix(l.s.command(), "ssh "))
	return l.explain(err)
}

// explain adds what was wrong with keys that were not used.
func (l *login) explain(err error) error {
	for _, one := range l.failed {
		err = fmt.Errorf("%w\n(not used: %v)", err, one)
	}
	return err
}
