package link

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func identity(t testing.TB) *Identity {
	t.Helper()
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// guarded is a listener that tells whom it refused.
func guarded(t *testing.T, id *Identity, opts ...Option) (*Listener, <-chan error) {
	t.Helper()
	refused := make(chan error, 1000)
	l, err := Listen(t.Context(), id, "127.0.0.1:0", append(opts, Refused(func(_ net.Addr, why error) { refused <- why }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, refused
}

func next(t *testing.T, refused <-chan error) string {
	t.Helper()
	select {
	case err := <-refused:
		return err.Error()
	case <-time.After(time.Minute):
		t.Fatal("nobody was refused")
		return ""
	}
}

// meets checks that a dialler is accepted.
func meets(t *testing.T, l *Listener, id *Identity, opts ...Option) *Link {
	t.Helper()
	a, err := Dial(t.Context(), id, l.Addr().String(), l.id.fp, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	b, err := l.AcceptLink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if b.Peer() != id.fp || a.Peer() != l.id.fp {
		t.Error("they know each other by other keys")
	}
	return a
}

func TestOnlyAllowedKeys(t *testing.T) {
	id, friend, stranger := identity(t), identity(t), identity(t)
	l, refused := guarded(t, id)
	_, err := Dial(t.Context(), friend, l.Addr().String(), id.fp, Host("h1"))
	if err == nil || !strings.Contains(err.Error(), "it does not expect this end's key "+friend.fp.String()) {
		t.Errorf("before Allow: %v", err)
	}
	if why := next(t, refused); !strings.Contains(why, friend.fp.String()+" is not one of this job's") {
		t.Errorf("the listener says: %s", why)
	}
	l.Allow(friend.fp)
	meets(t, l, friend)
	if _, err := Dial(t.Context(), stranger, l.Addr().String(), id.fp); err == nil {
		t.Error("a stranger was let in")
	}
	l.Forbid(friend.fp)
	if _, err := Dial(t.Context(), friend, l.Addr().String(), id.fp); err == nil {
		t.Error("a forbidden one was let in")
	}
}

func TestOnlyThePinnedKey(t *testing.T) {
	id, friend, impostor := identity(t), identity(t), identity(t)
	l, refused := guarded(t, impostor)
	l.Allow(friend.fp)
	_, err := Dial(t.Context(), friend, l.Addr().String(), id.fp, Host("h1"))
	if err == nil || !strings.Contains(err.Error(), "it has the key "+impostor.fp.String()+", and not "+id.fp.String()) {
		t.Errorf("%v", err)
	}
	next(t, refused)
}

func TestOtherPurpose(t *testing.T) {
	id := identity(t)
	l, refused := guarded(t, id)
	l.Allow(id.fp)
	if _, err := Dial(t.Context(), id, l.Addr().String(), id.fp, Purpose("other")); err == nil {
		t.Error("they came together")
	}
	next(t, refused)
}

func TestOtherVersion(t *testing.T) {
	id, friend := identity(t), identity(t)
	l, refused := guarded(t, id, func(o *options) { o.protocol = 7 })
	l.AllowHost("h9", friend.fp)
	_, err := Dial(t.Context(), friend, l.Addr().String(), id.fp, Host("h1"))
	if err == nil || !strings.HasSuffix(err.Error(), "host h1 speaks protocol 7 of mpirun-sf's daemons, and this one protocol 1: install the same version of mpirun-sf on all hosts") {
		t.Errorf("the dialler: %v", err)
	}
	if why := next(t, refused); !strings.HasPrefix(why, "host h9 speaks protocol 1 of mpirun-sf's daemons, and this one protocol 7: ") {
		t.Errorf("the listener: %s", why)
	}
	// Who is not allowed does not learn even that.
	if _, err := Dial(t.Context(), identity(t), l.Addr().String(), id.fp); err == nil || strings.Contains(err.Error(), "protocol 7") {
		t.Errorf("a stranger: %v", err)
	}
}

// rejected checks that a connection is closed without a byte of ours on it but TLS's own.
func rejected(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	if got, err := io.ReadAll(conn); errors.Is(err, net.ErrClosed) || err != nil && strings.Contains(err.Error(), "i/o timeout") {
		t.Errorf("%d bytes, and %v", len(got), err)
	}
}

func TestStrangersOfAllKinds(t *testing.T) {
	id, friend := identity(t), identity(t)
	l, refused := guarded(t, id)
	l.Allow(friend.fp)
	alpn := optionsOf(nil).alpn()
	for _, test := range []struct {
		name   string
		config *tls.Config
	}{
		{"no certificate", &tls.Config{NextProtos: alpn}},
		{"TLS 1.2", &tls.Config{NextProtos: alpn, Certificates: []tls.Certificate{friend.cert}, MaxVersion: tls.VersionTLS12}},
		{"no protocol", &tls.Config{Certificates: []tls.Certificate{friend.cert}}},
		{"another protocol", &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{friend.cert}}},
		{"somebody's certificate", &tls.Config{NextProtos: alpn, Certificates: []tls.Certificate{identity(t).cert}}},
		{"a friend's certificate with another key", &tls.Config{NextProtos: alpn, Certificates: []tls.Certificate{forged(t, friend)}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			test.config.InsecureSkipVerify = true
			conn := tls.Client(raw, test.config)
			if conn.Handshake() == nil {
				if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
					t.Error("it was answered")
				}
			}
			if why := next(t, refused); !strings.HasPrefix(why, "it did not prove who it is") {
				t.Errorf("refused: %s", why)
			}
		})
	}
	for name, text := range map[string]string{
		"HTTP":     "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"SSH":      "SSH-2.0-OpenSSH_9.2\r\n",
		"zeros":    strings.Repeat("\x00", 4096),
		"a header": "\x16\x03\x01\x00\x05hello",
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			io.WriteString(raw, text)
			rejected(t, raw)
			next(t, refused)
		})
	}
	meets(t, l, friend)
}

// forged is a certificate that its holder has no key of.
func forged(t *testing.T, of *Identity) tls.Certificate {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: of.cert.Certificate, PrivateKey: forger{key, of.cert.PrivateKey.(ed25519.PrivateKey)}}
}

// forger has one public key and signs with another.
type forger struct {
	ed25519.PrivateKey
	of ed25519.PrivateKey
}

func (f forger) Public() any { return f.of.Public() }

func TestHandshakesThatDoNotGoOn(t *testing.T) {
	id, friend := identity(t), identity(t)
	l, refused := guarded(t, id, HandshakeLimit(200*time.Millisecond))
	l.Allow(friend.fp)
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	rejected(t, raw)
	next(t, refused)

	// The handshake is done, and then nothing comes.
	secured, err := tls.Dial("tcp", l.Addr().String(), optionsOf(nil).secure(friend, func(Fingerprint) error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer secured.Close()
	rejected(t, secured)
	if why := next(t, refused); !strings.HasPrefix(why, "read what it wants") {
		t.Errorf("refused: %s", why)
	}
}

func TestManyHandshakesDoNotKeepFriendsOut(t *testing.T) {
	id, friend := identity(t), identity(t)
	l, refused := guarded(t, id, HandshakeLimit(time.Hour), func(o *options) { o.most = 8 })
	l.Allow(friend.fp)
	for range 40 {
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
	}
	for range 32 {
		if why := next(t, refused); !strings.HasPrefix(why, "too many came at once") {
			t.Errorf("refused: %s", why)
		}
	}
	meets(t, l, friend)
}

func TestWhoHasProvedItselfMakesNoRoom(t *testing.T) {
	id, friend := identity(t), identity(t)
	l, refused := guarded(t, id, HandshakeLimit(time.Hour), func(o *options) { o.most = 2 })
	l.Allow(friend.fp)
	a := meets(t, l, friend)
	var conns []net.Conn
	for range 3 { // which nobody accepts
		conn, err := a.Dial(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for range 4 {
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
	}
	next(t, refused)
	next(t, refused)
	for _, conn := range conns {
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection that nobody has accepted yet: %v", err)
		}
	}
}

func TestWhoHasMostMakesRoom(t *testing.T) {
	h := handshakes{most: 4}
	conns, entered := map[string]*fakeConn{}, map[string]*handshake{}
	for _, c := range []struct{ name, from string }{{"a1", "10.0.0.1"}, {"b1", "10.0.0.2"}, {"b2", "10.0.0.2"}, {"b3", "10.0.0.2"}, {"c1", "10.0.0.3"}, {"c2", "10.0.0.3"}} {
		conns[c.name] = &fakeConn{from: &net.TCPAddr{IP: net.ParseIP(c.from)}}
		entered[c.name], _ = h.begin(conns[c.name])
	}
	for name, want := range map[string]bool{"a1": false, "b1": true, "b2": true, "b3": false, "c1": false, "c2": false} {
		if conns[name].closed != want {
			t.Errorf("%s is closed: %v", name, conns[name].closed)
		}
		if h.end(entered[name]) == want {
			t.Errorf("%s is still there: %v", name, !want)
		}
	}
}

type fakeConn struct {
	net.Conn
	from   net.Addr
	closed bool
}

func (c *fakeConn) RemoteAddr() net.Addr { return c.from }
func (c *fakeConn) Close() error         { c.closed = true; return nil }

func TestConnectionsOfNoLink(t *testing.T) {
	id, friend, other := identity(t), identity(t), identity(t)
	l, refused := guarded(t, id)
	l.Allow(friend.fp, other.fp)
	own := meets(t, l, friend)
	const theEnd = "it has ended what this connection was for"
	for name, test := range map[string]struct {
		d    dialler
		p    preface
		want string
	}{
		"no such link":    {dialler{id: friend}, preface{asConnection, newToken(), 1}, theEnd},
		"another's link":  {dialler{id: other}, preface{asConnection, own.token, 1}, theEnd},
		"no such call":    {dialler{id: friend}, preface{asAnswer, own.token, 1}, theEnd},
		"no such role":    {dialler{id: friend}, preface{9, own.token, 1}, "it closed the connection"},
		"no token":        {dialler{id: friend}, preface{asConnection, token{}, 1}, "it closed the connection"},
		"kind 0":          {dialler{id: friend}, preface{asConnection, own.token, 0}, "it closed the connection"},
		"link of a kind":  {dialler{id: friend}, preface{asLink, token{}, 1}, "it closed the connection"},
		"link by a token": {dialler{id: friend}, preface{asLink, own.token, 0}, "it closed the connection"},
	} {
		t.Run(name, func(t *testing.T) {
			test.d.options, test.d.address, test.d.peer = optionsOf(nil), l.Addr().String(), id.fp
			if _, _, err := test.d.again(t.Context(), test.p); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
			next(t, refused)
		})
	}
	if own.Err() != nil {
		t.Errorf("the link ended: %v", own.Err())
	}
}
