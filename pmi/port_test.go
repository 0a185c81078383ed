package pmi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// door is a port with a group of two ranks behind it, whose IDs are 100 and 101.
type door struct {
	t       *testing.T
	addr    string
	server  *Server
	proxy   *Proxy
	run     chan error
	served  chan error
	reports chan string
	close   func()
}

func newDoor(t *testing.T) *door {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	d := &door{
		t: t, addr: l.Addr().String(), close: cancel,
		run: make(chan error, 1), served: make(chan error, 1), reports: make(chan string, 10),
	}
	g := Group{Size: 2, KVSName: "kvs_7"}
	d.server = NewServer(g, nil, Events{})
	launcher, agent := net.Pipe()
	d.proxy = NewProxy(g, agent, []int{0, 1})
	go func() { _ = d.server.Serve(ctx, launcher, []int{0, 1}) }()
	go func() { d.run <- d.proxy.Run(ctx) }()
	go func() {
		d.served <- ServePort(ctx, l, func(id int, conn net.Conn) (*Proxy, int, error) {
			if id < 100 {
				return nil, 0, errors.New("not one of ours")
			}
			return d.proxy, id - 100, nil
		}, func(err error) { d.reports <- err.Error() })
	}()
	return d
}

func (d *door) dial() *client {
	d.t.Helper()
	conn, err := net.Dial("tcp", d.addr)
	if err != nil {
		d.t.Fatal(err)
	}
	return &client{t: d.t, conn: conn, r: bufio.NewReader(conn)}
}

func (d *door) report(want string) {
	d.t.Helper()
	select {
	case got := <-d.reports:
		if !strings.Contains(got, want) {
			d.t.Errorf("reported %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		d.t.Errorf("no report of %q in 10 s", want)
	}
}

func TestPort(t *testing.T) {
	d := newDoor(t)
	for _, test := range []struct{ send, report string }{
		{"cmd=initack pmiid=7\n", "not one of ours"},
		{"cmd=initack pmiid=102\n", "not a rank of this clone"},
		{"cmd=initack\n", "initack without pmiid"},
		{"cmd=init pmi_version=1 pmi_subversion=1\n", "PMI_ID"},
		{"GET / HTTP/1.1\r\n", "who it is"},
		{"", "who it is"},
	} {
		c := d.dial()
		_, _ = io.WriteString(c.conn, test.send)
		if test.send == "" {
			c.conn.Close()
		} else if got := c.hear(); got != "EOF" && !strings.Contains(got, "reset") {
			t.Errorf("%q was answered %q", test.send, got)
		}
		d.report(test.report)
	}

	c := d.dial()
	for i, want := range []string{"cmd=initack", "cmd=set size=2", "cmd=set rank=1", "cmd=set debug=0"} {
		if i == 0 {
			c.send("cmd=initack pmiid=101")
		}
		if got := c.hear(); got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	c.init()
	again := d.dial()
	again.send("cmd=initack pmiid=101")
	d.report("already served")
	c.finalize()
	// The other rank was no MPI program.
	if err := d.proxy.Absent(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if err := d.proxy.Absent(t.Context(), 1); err != nil { // it did connect
		t.Error(err)
	}
	if err := within(t, d.run); err != nil {
		t.Error(err)
	}
	if s0, s1 := d.server.RankState(0), d.server.RankState(1); s0 != NotStarted || s1 != Finalized {
		t.Errorf("the ranks ended as %s and %s", s0, s1)
	}
	d.close()
	if err := within(t, d.served); err != nil {
		t.Error(err)
	}
}

// A client of PMI-2 says who it is in its second request.
func TestPortV2(t *testing.T) {
	d := newDoor(t)
	for i, id := range []string{"pmirank=100", "srcid=101"} {
		c := d.dial()
		c.expect("cmd=init pmi_version=2 pmi_subversion=0", "cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0")
		c.packet("cmd=fullinit;" + id + ";threaded=FALSE;")
		if got := c.hearPacket(); !strings.Contains(got, ";size=2;") || !strings.Contains(got, []string{";rank=0;", ";rank=1;"}[i]) {
			t.Errorf("heard %q", got)
		}
		c.expectPacket("cmd=finalize;", "cmd=finalize-response;rc=0;")
		c.conn.Close()
	}
	if err := within(t, d.run); err != nil {
		t.Error(err)
	}
}

// A connection that says nothing does not outlive the port.
func TestPortCloses(t *testing.T) {
	d := newDoor(t)
	c := d.dial()
	c.send("cmd=initack pmiid=100")
	_ = c.hear()
	d.dial()
	d.close()
	if err := within(t, d.served); err != nil {
		t.Error(err)
	}
}

func TestSingletonRefuses(t *testing.T) {
	for name, test := range map[string]struct{ send, want string }{
		"another version": {"cmd=singinit pmi_version=2 pmi_subversion=0 stdio=yes authtype=none\n", "another version"},
		"not singinit":    {"cmd=init pmi_version=1 pmi_subversion=1\n", "init instead of singinit"},
		"nonsense":        {"hello\n", "not key=value"},
		"the end":         {"", "closed the connection"},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			served := make(chan error, 1)
			go func() {
				served <- NewServer(Group{Size: 1, KVSName: "k"}, nil, Events{}).serveSingleton(t.Context(), theirs)
			}()
			c := &client{t: t, conn: ours, r: bufio.NewReader(ours)}
			if got := c.hear(); got != "cmd=singinit authtype=none" {
				t.Errorf("heard %q", got)
			}
			if test.send == "" {
				ours.Close()
			} else {
				_, _ = io.WriteString(ours, test.send)
				_ = c.hear()
			}
			if err := within(t, served); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("served: %v, want %q", err, test.want)
			}
		})
	}
	if err := NewServer(Group{Size: 2, KVSName: "k"}, nil, Events{}).serveSingleton(t.Context(), func() net.Conn { c, _ := net.Pipe(); return c }()); err == nil {
		t.Error("a group of two is a singleton")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	if err := Singleton(t.Context(), port, NewServer(Group{Size: 1, KVSName: "k"}, nil, Events{})); err == nil || !strings.Contains(err.Error(), "connect to the process") {
		t.Errorf("Singleton: %v", err)
	}
}
