package share

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// A client speaks 9P with a server, as a kernel would. Its methods may be called from many goroutines.
type client struct {
	t    testing.TB
	conn net.Conn

	mu      sync.Mutex
	nextTag uint16
	nextFID uint32
	replies map[uint16]chan ninep.Message
}

// root is the fid that dial attaches.
const root = 0

// newClient is a client on a connection, before Tversion.
func newClient(t testing.TB, conn net.Conn) *client {
	c := &client{t: t, conn: conn, nextFID: root, replies: make(map[uint16]chan ninep.Message)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.read()
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return c
}

// read gives replies to those who wait for them, and nil to all when the connection ends.
func (c *client) read() {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, reply := range c.replies {
			close(reply)
		}
		c.replies = nil
	}()
	for {
		tag, m, err := readMessage(c.conn)
		if err != nil {
			return
		}
		c.mu.Lock()
		reply := c.replies[tag]
		delete(c.replies, tag)
		c.mu.Unlock()
		if reply == nil {
			c.t.Errorf("an answer that nobody asked for: %d %+v", tag, m)
			return
		}
		reply <- m
	}
}

func readMessage(r io.Reader) (uint16, ninep.Message, error) {
	var raw [ninep.HeaderSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return 0, nil, err
	}
	header := ninep.ParseHeader(raw)
	body := make([]byte, header.Size-ninep.HeaderSize)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	m, err := ninep.Decode(header.Type, body)
	return header.Tag, m, err
}

func encode(tag uint16, m ninep.Message) []byte {
	head, data := ninep.Encode(nil, tag, m)
	return append(head, data...)
}

// send sends a request and does not wait. The channel has the reply then, or is closed without.
func (c *client) send(m ninep.Message) (uint16, <-chan ninep.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reply := make(chan ninep.Message, 1)
	if c.replies == nil {
		close(reply)
		return 0, reply
	}
	for c.replies[c.nextTag] != nil || c.nextTag == ninep.NoTag {
		c.nextTag++
	}
	tag := c.nextTag
	c.nextTag++
	c.replies[tag] = reply
	_, _ = c.conn.Write(encode(tag, m))
	return tag, reply
}

var errEnded = errors.New("the connection ended")

// call sends a request and waits for the reply. Rlerror is a unix.Errno.
func (c *client) call(m ninep.Message) (ninep.Message, error) {
	_, reply := c.send(m)
	return await(reply)
}

func await(reply <-chan ninep.Message) (ninep.Message, error) {
	select {
	case m := <-reply:
		switch m := m.(type) {
		case nil:
			return nil, errEnded
		case *ninep.Rlerror:
			return nil, unix.Errno(m.Errno)
		}
		return m, nil
	case <-time.After(20 * time.Second):
		return nil, errors.New("no answer in 20 seconds")
	}
}

// must is call where nothing may go wrong. R is the reply that belongs to m.
func must[R ninep.Message](c *client, m ninep.Message) R {
	c.t.Helper()
	reply, err := c.call(m)
	if err != nil {
		c.t.Fatalf("%v %+v: %v", m.Type(), m, err)
	}
	r, ok := reply.(R)
	if !ok || r.Type() != m.Type()+1 {
		c.t.Fatalf("%v was answered with %v", m.Type(), reply.Type())
	}
	return r
}

// fails is call where one error is right.
func (c *client) fails(want error, m ninep.Message) {
	c.t.Helper()
	if reply, err := c.call(m); !errors.Is(err, want) {
		c.t.Errorf("%v %+v: %+v, %v; want %v", m.Type(), m, reply, err, want)
	}
}

// fid is a number not yet used.
func (c *client) fid() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextFID++
	return c.nextFID
}

func (c *client) tryWalk(from uint32, names ...string) (uint32, *ninep.Rwalk, error) {
	to := c.fid()
	reply, err := c.call(&ninep.Twalk{FID: from, NewFID: to, Names: names})
	if err != nil {
		return 0, nil, err
	}
	return to, reply.(*ninep.Rwalk), nil
}

func (c *client) walk(from uint32, names ...string) uint32 {
	c.t.Helper()
	to, reply, err := c.tryWalk(from, names...)
	if err != nil || len(reply.QIDs) != len(names) {
		c.t.Fatalf("walk %q: %+v, %v", names, reply, err)
	}
	return to
}

func (c *client) open(flags uint32, names ...string) uint32 {
	c.t.Helper()
	f := c.walk(root, names...)
	must[*ninep.Rlopen](c, &ninep.Tlopen{FID: f, Flags: flags})
	return f
}

func (c *client) create(name string, flags uint32) uint32 {
	c.t.Helper()
	f := c.walk(root)
	must[*ninep.Rlcreate](c, &ninep.Tlcreate{FID: f, Name: name, Flags: flags, Mode: 0o644})
	return f
}

func (c *client) write(f uint32, offset int, data string) {
	c.t.Helper()
	if got := must[*ninep.Rwrite](c, &ninep.Twrite{FID: f, Offset: uint64(offset), Data: []byte(data)}); int(got.Count) != len(data) {
		c.t.Fatalf("wrote %d bytes of %d", got.Count, len(data))
	}
}

func (c *client) read1(f uint32, offset, count int) string {
	c.t.Helper()
	return string(must[*ninep.Rread](c, &ninep.Tread{FID: f, Offset: uint64(offset), Count: uint32(count)}).Data)
}

func (c *client) clunk(f uint32) {
	c.t.Helper()
	must[*ninep.Rclunk](c, &ninep.Tclunk{FID: f})
}

func (c *client) stat(f uint32) *ninep.Rgetattr {
	c.t.Helper()
	return must[*ninep.Rgetattr](c, &ninep.Tgetattr{FID: f, Mask: ninep.GetattrBasic})
}

// A service is a folder that is served by this process.
type service struct {
	t      testing.TB
	folder string
	export *export
	addr   string
	token  Token
}

func newService(t testing.TB, readOnly bool) *service {
	t.Helper()
	// The folder has neighbours that nobody may reach.
	parent := t.TempDir()
	s := &service{t: t, folder: filepath.Join(parent, "shared"), token: NewToken()}
	if err := os.Mkdir(s.folder, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(parent, "secret"), "secret")
	descriptors, err := openDescriptors()
	if err != nil {
		t.Fatal(err)
	}
	if s.export, err = newExport(s.folder, descriptors, readOnly); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = listener.Addr().String()
	done := make(chan error)
	go func() { done <- s.export.accept(t.Context(), listener, s.token, zerolog.Nop()) }()
	t.Cleanup(func() {
		// t.Context ended before.
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.export.close()
	})
	return s
}

// connect is a client that has shown its token.
func (s *service) connect() *client {
	s.t.Helper()
	conn, err := Dial(s.t.Context(), mustAddr(s.t, s.addr), s.token)
	if err != nil {
		s.t.Fatal(err)
	}
	return newClient(s.t, conn)
}

// dial is a client that has the root as fid 0.
func (s *service) dial() *client {
	s.t.Helper()
	c := s.connect()
	c.hello(MaxMessage)
	return c
}

func (c *client) hello(size uint32) {
	c.t.Helper()
	must[*ninep.Rversion](c, &ninep.Tversion{MaxSize: size, Version: ninep.Version})
	must[*ninep.Rattach](c, &ninep.Tattach{FID: root, AuthFID: ninep.NoFID})
}

func (s *service) path(name string) string { return filepath.Join(s.folder, name) }

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func check(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		if len(got) > 100 {
			got = fmt.Appendf(nil, "%d bytes", len(got))
		}
		t.Errorf("%s holds %q, %v; want %.100q", filepath.Base(path), got, err, want)
	}
}
