package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dialler is what connections to a peer are made with: the link's, and those that are made for it later.
type dialler struct {
	options
	id      *Identity
	address string
	peer    Fingerprint
}

// Dial makes a link to the daemon that listens at address, host:port, and has the key peer. It returns when the listener
// has accepted this end's key, after HandshakeLimit at most.
func Dial(ctx context.Context, id *Identity, address string, peer Fingerprint, opts ...Option) (*Link, error) {
	d := &dialler{optionsOf(opts), id, address, peer}
	if d.host == "" {
		d.host = address
	}
	raw, err := d.connect(ctx)
	if err != nil {
		return nil, d.failed(err)
	}
	l, err := d.link(ctx, raw)
	if err != nil {
		return nil, d.failed(err)
	}
	return l, nil
}

func (d *dialler) failed(err error) error { return &DialError{d.host, d.address, err} }

// stagger is how long an address has before the next is tried beside it.
const stagger = 300 * time.Millisecond

// DialAny is Dial for a daemon that may be reached at any of some addresses, best first. It takes the first where it finds
// the key peer, for at some of them there may be somebody else: private addresses are used more than once. The error wraps a
// [*DialError] for each address.
func DialAny(ctx context.Context, id *Identity, addresses []netip.AddrPort, peer Fingerprint, opts ...Option) (*Link, error) {
	o := optionsOf(opts)
	if len(addresses) == 0 {
		return nil, fmt.Errorf("connect to host %s: it named no address where it can be reached", o.host)
	}
	if o.host == "" {
		o.host = addresses[0].String()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		d   *dialler
		raw *net.TCPConn
		err error
	}
	// TCP connections are tried side by side, but become links one at a time: the listener must not see two.
	outcomes := make(chan outcome)
	for i, address := range addresses {
		d := &dialler{o, id, address.String(), peer}
		go func() {
			var raw *net.TCPConn
			err := sleep(ctx, time.Duration(i)*stagger)
			if err == nil {
				raw, err = d.connect(ctx)
			}
			select {
			case outcomes <- outcome{d, raw, err}:
			case <-ctx.Done():
				if raw != nil {
					raw.Close()
				}
			}
		}()
	}
	var failures []error
	for range addresses {
		var got outcome
		select {
		case got = <-outcomes:
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to host %s: %w", o.host, context.Cause(ctx))
		}
		err := got.err
		if err == nil {
			var l *Link
			if l, err = got.d.link(ctx, got.raw); err == nil {
				return l, nil
			}
		}
		failures = append(failures, got.d.failed(err))
	}
	return nil, &joined{failures}
}

// joined is errors on one line.
type joined struct{ all []error }

func (j *joined) Error() string {
	var texts []string
	for _, err := range j.all {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

func (j *joined) Unwrap() []error { return j.all }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// connect opens a TCP connection.
func (d *dialler) connect(ctx context.Context) (*net.TCPConn, error) {
	tcp := net.Dialer{Timeout: d.handshake, KeepAliveConfig: keepAlive(d.silence)}
	conn, err := tcp.DialContext(ctx, "tcp", d.address)
	if err != nil {
		return nil, d.explain(ctx, err)
	}
	return conn.(*net.TCPConn), nil
}

// link makes a link of a TCP connection.
func (d *dialler) link(ctx context.Context, raw *net.TCPConn) (*Link, error) {
	secured, t, err := d.begin(ctx, raw, preface{role: asLink})
	if err != nil {
		return nil, err
	}
	l, err := newLink(raw, secured, d.options, t, d, nil)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return l, nil
}

// again opens another connection to the same peer.
func (d *dialler) again(ctx context.Context, p preface) (*net.TCPConn, *tls.Conn, error) {
	raw, err := d.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	secured, _, err := d.begin(ctx, raw, p)
	if err != nil {
		return nil, nil, err
	}
	return raw, secured, nil
}

// begin proves the keys on a TCP connection and has it accepted as what p says. It closes one that fails.
func (d *dialler) begin(ctx context.Context, raw *net.TCPConn, p preface) (*tls.Conn, token, error) {
	ctx, cancel := context.WithTimeout(ctx, d.handshake)
	defer cancel()
	secured := tls.Client(raw, d.secure(d.id, func(f Fingerprint) error {
		if f != d.peer {
			return &gone{fmt.Sprintf("it has the key %s, and not %s: it is not the daemon that was started for this job", f, d.peer), ErrKey}
		}
		return nil
	}))
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	t, err := d.introduce(ctx, secured, p)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		raw.Close()
		return nil, t, d.explain(ctx, err)
	}
	return secured, t, nil
}

func (d *dialler) introduce(ctx context.Context, c *tls.Conn, p preface) (token, error) {
	if err := c.HandshakeContext(ctx); err != nil {
		return token{}, err
	}
	sameVersion := c.ConnectionState().NegotiatedProtocol == d.alpn()[0]
	if sameVersion {
		if err := p.write(c); err != nil {
			return token{}, err
		}
	}
	verdict, t, err := readVerdict(c)
	switch {
	case err != nil:
		return t, err
	case verdict == otherVersion && !sameVersion:
		return t, d.errVersion(d.host, fmt.Sprintf("protocol %d", t.protocol()))
	case verdict == accepted && sameVersion:
		return t, nil
	case verdict == unknown:
		return t, errors.New("it has ended what this connection was for")
	}
	return t, fmt.Errorf("it answered %d, which is no answer", verdict)
}

// explain says what the common failures of a beginning mean.
func (d *dialler) explain(ctx context.Context, err error) error {
	var op *net.OpError
	var garbage tls.RecordHeaderError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return context.Cause(ctx)
	case ctx.Err() != nil, errors.Is(err, unix.ETIMEDOUT), errors.As(err, &op) && op.Timeout():
		return fmt.Errorf("no answer in %v: see whether the host is up and a firewall is between (%w)", d.handshake, err)
	case errors.As(err, &garbage):
		return fmt.Errorf("something else than mpirun-sf listens there: %w", err)
	case errors.As(err, &op) && op.Op == "remote error" && strings.Contains(err.Error(), "certificate"):
		return &gone{fmt.Sprintf("it does not expect this end's key %s: it belongs to another job, or was not told of this one (%v)", d.id.fp, err), ErrKey}
	case errors.As(err, &op) && op.Op == "remote error":
		return fmt.Errorf("it is not a daemon of mpirun-sf's, or of a version that shares nothing with this one (%w)", err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("it closed the connection before it had accepted it (%w)", err)
	}
	return err
}
