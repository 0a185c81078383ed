package share

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

func mustAddr(t testing.TB, addr string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTokenIsAsked(t *testing.T) {
	s := newService(t, false)
	conn, err := Dial(t.Context(), mustAddr(t, s.addr), s.token)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := Dial(t.Context(), mustAddr(t, s.addr), NewToken()); err == nil || !strings.Contains(err.Error(), "refused the token") {
		t.Errorf("another token: %v", err)
	}

	// Somebody who speaks 9P at once has not shown it.
	rude, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer rude.Close()
	_, _ = rude.Write(append(encode(ninep.NoTag, &ninep.Tversion{MaxSize: 8192, Version: ninep.Version}), make([]byte, 32)...))
	if answer, err := io.ReadAll(rude); len(answer) != 0 {
		t.Errorf("without token: %q, %v", answer, err)
	}
}

func TestTokenIsNotPrinted(t *testing.T) {
	token := NewToken()
	text, err := token.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		for _, v := range []any{token, &token, Config{Token: token}, Mounting{Token: token}} {
			got := fmt.Sprintf(format, v)
			if strings.Contains(got, string(text[:6])) || strings.Contains(got, fmt.Sprint(token[0], " ", token[1])) {
				t.Errorf("%s of %T is %s", format, v, got)
			}
		}
	}
	var back Token
	if err := back.UnmarshalText(text); err != nil || back != token {
		t.Errorf("it does not come back: %v", err)
	}
	for _, bad := range []string{"", "00", strings.Repeat("g", 64), strings.Repeat("0", 66)} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is a token", bad)
		}
	}
}

func TestVersion(t *testing.T) {
	s := newService(t, false)
	c := s.connect()
	for _, test := range []struct {
		size    uint32
		version string
		want    ninep.Rversion
	}{
		{8192, ninep.Version, ninep.Rversion{MaxSize: 8192, Version: ninep.Version}},
		{1 << 30, ninep.Version, ninep.Rversion{MaxSize: MaxMessage, Version: ninep.Version}},
		{8192, "9P2000.u", ninep.Rversion{MaxSize: 8192, Version: "unknown"}},
		{8192, "9P2000", ninep.Rversion{MaxSize: 8192, Version: "unknown"}},
	} {
		if got := must[*ninep.Rversion](c, &ninep.Tversion{MaxSize: test.size, Version: test.version}); *got != test.want {
			t.Errorf("%d %s: %+v", test.size, test.version, *got)
		}
	}
	c.fails(unix.EMSGSIZE, &ninep.Tversion{MaxSize: 100, Version: ninep.Version})

	// It begins anew: fids are gone.
	c.hello(8192)
	c.stat(root)
	must[*ninep.Rversion](c, &ninep.Tversion{MaxSize: 8192, Version: ninep.Version})
	c.fails(unix.EBADF, &ninep.Tgetattr{FID: root})
}

func TestProtocolViolationsEndTheConnection(t *testing.T) {
	s := newService(t, false)
	size := func(n uint32) []byte {
		b := encode(1, &ninep.Tclunk{})
		binary.LittleEndian.PutUint32(b, n)
		return b
	}
	for name, test := range map[string]struct {
		hello bool
		bytes []byte
	}{
		"no version":       {false, encode(1, &ninep.Tattach{})},
		"flush first":      {false, encode(1, &ninep.Tflush{})},
		"size 0":           {true, size(0)},
		"size 6":           {true, size(6)},
		"size 2^32-1":      {true, size(1<<32 - 1)},
		"more than agreed": {true, size(8193)},
		"large before version": {false, func() []byte {
			b := encode(1, &ninep.Tversion{MaxSize: 8192, Version: strings.Repeat("x", 8000)})
			return b
		}()},
	} {
		c := s.connect()
		if test.hello {
			c.hello(8192)
		}
		c.mu.Lock()
		reply := make(chan ninep.Message)
		c.replies[1] = reply
		_, _ = c.conn.Write(test.bytes)
		c.mu.Unlock()
		if _, err := await(reply); !errors.Is(err, errEnded) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTagUsedTwiceEndsTheConnection(t *testing.T) {
	s := newService(t, false)
	holder, c := s.dial(), s.dial()
	f := holder.create("f", ninep.OpenReadWrite)
	must[*ninep.Rlock](holder, &ninep.Tlock{FID: f, Kind: ninep.LockWrite})
	waiter := c.open(ninep.OpenReadWrite, "f")
	tag, reply := c.send(&ninep.Tlock{FID: waiter, Kind: ninep.LockWrite, Flags: ninep.LockBlock})
	_, _ = c.conn.Write(encode(tag, &ninep.Tgetattr{FID: root}))
	if _, err := await(reply); !errors.Is(err, errEnded) {
		t.Error(err)
	}
}

func TestMalformedRequestsAreAnswered(t *testing.T) {
	c := newService(t, false).dial()
	raw := func(kind byte, body ...byte) error {
		c.mu.Lock()
		tag := uint16(7)
		reply := make(chan ninep.Message, 1)
		c.replies[tag] = reply
		b := binary.LittleEndian.AppendUint32(nil, uint32(ninep.HeaderSize+len(body)))
		b = binary.LittleEndian.AppendUint16(append(b, kind), tag)
		_, _ = c.conn.Write(append(b, body...))
		c.mu.Unlock()
		_, err := await(reply)
		return err
	}
	for name, test := range map[string]struct {
		kind byte
		body []byte
		want error
	}{
		"unknown type":     {200, nil, unix.EINVAL},
		"type 0":           {0, nil, unix.EINVAL},
		"a reply":          {121, nil, unix.EOPNOTSUPP},
		"cut short":        {24, []byte{0, 0}, unix.EINVAL},
		"too long":         {120, make([]byte, 5), unix.EINVAL},
		"lying data count": {118, append(make([]byte, 12), 255, 255, 255, 255), unix.EINVAL},
	} {
		if err := raw(test.kind, test.body...); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	c.stat(root) // and it goes on
}

func TestUnsupported(t *testing.T) {
	c := newService(t, false).dial()
	c.fails(unix.EOPNOTSUPP, &ninep.Tauth{})
	c.fails(unix.EOPNOTSUPP, &ninep.Txattrwalk{FID: root, NewFID: 5, Name: "user.x"})
	c.fails(unix.EOPNOTSUPP, &ninep.Txattrcreate{FID: root, Name: "user.x"})
	c.fails(unix.EINVAL, &ninep.Tattach{FID: 5, AuthFID: 6})
}

func TestFIDs(t *testing.T) {
	s := newService(t, false)
	c := s.dial()
	c.fails(unix.EINVAL, &ninep.Tattach{FID: root, AuthFID: ninep.NoFID})
	c.fails(unix.EINVAL, &ninep.Twalk{FID: root, NewFID: root + 1000, Names: []string{""}})
	f := c.walk(root)
	c.fails(unix.EINVAL, &ninep.Twalk{FID: root, NewFID: f})
	c.clunk(f)
	c.fails(unix.EBADF, &ninep.Tclunk{FID: f})
	c.fails(unix.EBADF, &ninep.Tgetattr{FID: f})
	c.fails(unix.EBADF, &ninep.Tread{FID: root})
	c.fails(unix.EBADF, &ninep.Twrite{FID: root})

	// A fid may walk itself, unless it is open.
	must[*ninep.Rmkdir](c, &ninep.Tmkdir{DirFID: root, Name: "d", Mode: 0o755})
	f = c.walk(root)
	must[*ninep.Rwalk](c, &ninep.Twalk{FID: f, NewFID: f, Names: []string{"d"}})
	if got, want := c.stat(f).QID, c.stat(c.walk(root, "d")).QID; got != want {
		t.Errorf("walked to %v, not %v", got, want)
	}
	must[*ninep.Rlopen](c, &ninep.Tlopen{FID: f})
	c.fails(unix.EBUSY, &ninep.Twalk{FID: f, NewFID: f})
	c.fails(unix.EBUSY, &ninep.Tlopen{FID: f})
	c.fails(unix.EBUSY, &ninep.Tlcreate{FID: f, Name: "new"})
}

func TestFIDLimit(t *testing.T) {
	s := newService(t, false)
	session := &session{export: s.export, fids: make(map[uint32]*fid)}
	for i := range uint32(maxFIDs) {
		if err := session.insert(i, newFID(s.export.root.hold(), unix.S_IFDIR, "", nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := session.insert(maxFIDs, newFID(s.export.root.hold(), unix.S_IFDIR, "", nil)); err != unix.ENFILE {
		t.Errorf("one more: %v", err)
	}
	session.removeAll()
	if refs := s.export.root.refs.Load(); refs != 1 {
		t.Errorf("%d references to the root are left", refs)
	}
}

func TestRequestsRunBesideEachOther(t *testing.T) {
	s := newService(t, false)
	holder, c := s.dial(), s.dial()
	f := holder.create("f", ninep.OpenReadWrite)
	must[*ninep.Rlock](holder, &ninep.Tlock{FID: f, Kind: ninep.LockWrite})

	// More waiting locks than there are slots, and the connection is as lively as before.
	var waiting []<-chan ninep.Message
	for range 3 * maxActive {
		w := c.open(ninep.OpenReadWrite, "f")
		_, reply := c.send(&ninep.Tlock{FID: w, Kind: ninep.LockRead, Flags: ninep.LockBlock})
		waiting = append(waiting, reply)
	}
	c.stat(root)
	select {
	case m := <-waiting[0]:
		t.Errorf("a lock was granted that is taken: %+v", m)
	default:
	}
	must[*ninep.Rlock](holder, &ninep.Tlock{FID: f, Kind: ninep.LockUnlock})
	for _, reply := range waiting {
		if m, err := await(reply); err != nil || m.(*ninep.Rlock).Status != ninep.LockSuccess {
			t.Errorf("a lock that was free: %+v, %v", m, err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	s := newService(t, false)
	var all sync.WaitGroup
	for i := range 4 {
		c := s.dial()
		for j := range 8 {
			all.Go(func() {
				name := fmt.Sprintf("f%d.%d", i, j)
				for k := range 20 {
					f := c.walk(root)
					if _, err := c.call(&ninep.Tlcreate{FID: f, Name: name, Flags: ninep.OpenReadWrite | ninep.OpenTruncate, Mode: 0o600}); err != nil {
						t.Errorf("create %s: %v", name, err)
						return
					}
					text := strings.Repeat(fmt.Sprint(name, k), 5000)
					c.write(f, 0, text)
					if got := c.read1(f, 0, len(text)+1); got != text {
						t.Errorf("%s: read something else than was written", name)
					}
					c.clunk(f)
				}
			})
		}
	}
	all.Wait()
}

func TestFlush(t *testing.T) {
	s := newService(t, false)
	holder, c := s.dial(), s.dial()
	f := holder.create("f", ninep.OpenReadWrite)
	must[*ninep.Rlock](holder, &ninep.Tlock{FID: f, Kind: ninep.LockWrite})
	w := c.open(ninep.OpenReadWrite, "f")

	// A raw connection's worth of order: the lock's reply comes before that of its flush.
	var order []string
	var mu sync.Mutex
	note := func(what string, reply <-chan ninep.Message) func() {
		done := make(chan struct{})
		go func() {
			defer close(done)
			m, err := await(reply)
			mu.Lock()
			defer mu.Unlock()
			order = append(order, fmt.Sprintf("%s %T %v", what, m, err))
		}()
		return func() { <-done }
	}
	tag, locked := c.send(&ninep.Tlock{FID: w, Kind: ninep.LockWrite, Flags: ninep.LockBlock})
	waitLock := note("lock", locked)
	time.Sleep(20 * time.Millisecond)
	_, flushed := c.send(&ninep.Tflush{OldTag: tag})
	waitLock()
	note("flush", flushed)()
	if want := fmt.Sprintf("[lock <nil> %v flush *ninep.Rflush <nil>]", unix.EINTR); fmt.Sprint(order) != want {
		t.Errorf("%v, want %s", order, want)
	}

	must[*ninep.Rflush](c, &ninep.Tflush{OldTag: 12345}) // nothing has this tag
	// The flushed lock was not taken.
	must[*ninep.Rlock](holder, &ninep.Tlock{FID: f, Kind: ninep.LockUnlock})
	if got := must[*ninep.Rlock](holder, &ninep.Tlock{FID: f, Kind: ninep.LockWrite}); got.Status != ninep.LockSuccess {
		t.Error("somebody has the lock")
	}
}

// The reply to a flush never overtakes that of the flushed request.
func TestFlushOrder(t *testing.T) {
	s := newService(t, false)
	conn, err := Dial(t.Context(), mustAddr(t, s.addr), s.token)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(tag uint16, m ninep.Message) {
		if _, err := conn.Write(encode(tag, m)); err != nil {
			t.Fatal(err)
		}
	}
	answer := func() (uint16, ninep.Message) {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		tag, m, err := readMessage(conn)
		if err != nil {
			t.Fatal(err)
		}
		return tag, m
	}
	ask(ninep.NoTag, &ninep.Tversion{MaxSize: 8192, Version: ninep.Version})
	answer()
	ask(1, &ninep.Tattach{FID: root, AuthFID: ninep.NoFID})
	answer()
	for range 500 {
		_, _ = conn.Write(append(encode(1, &ninep.Tgetattr{FID: root}), encode(2, &ninep.Tflush{OldTag: 1})...))
		if tag, m := answer(); tag != 1 {
			t.Fatalf("first came %d %T", tag, m)
		}
		if tag, m := answer(); tag != 2 {
			t.Fatalf("then came %d %T", tag, m)
		}
	}
}

func TestDisconnectReleasesEverything(t *testing.T) {
	s := newService(t, false)
	c := s.dial()
	f := c.create("f", ninep.OpenReadWrite)
	must[*ninep.Rlock](c, &ninep.Tlock{FID: f, Kind: ninep.LockWrite})
	other := s.dial()
	g := other.open(ninep.OpenReadWrite, "f")
	_, reply := other.send(&ninep.Tlock{FID: g, Kind: ninep.LockWrite, Flags: ninep.LockBlock})
	c.conn.Close()
	if m, err := await(reply); err != nil || m.(*ninep.Rlock).Status != ninep.LockSuccess {
		t.Errorf("the lock of a client that is gone: %+v, %v", m, err)
	}
	other.conn.Close()
	for range 500 {
		if s.export.root.refs.Load() == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("fids are left")
}
