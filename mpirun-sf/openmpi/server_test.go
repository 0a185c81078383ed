package openmpi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// fakeClone is a clone at an address of loopback, which takes SSH clients and
// keeps what it was asked.
type fakeClone struct {
	asked chan agent.SSH
	conns chan net.Conn
	err   error
}

func (f *fakeClone) ssh(_ context.Context, c agent.SSH) (net.Conn, error) {
	if f.err != nil {
		return nil, f.err
	}
	f.asked <- c
	mine, theirs := net.Pipe()
	f.conns <- mine
	return theirs, nil
}

// testServer serves clones at 127.0.0.2 and 127.0.0.3.
func testServer(t *testing.T) (*Server, []*fakeClone) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var fakes []*fakeClone
	job := Job{
		Network: netip.MustParsePrefix("127.0.0.0/16"), Listener: l, Limit: time.Minute,
		Login: agent.Login{User: agent.User{UID: uint32(os.Getuid())}, Env: []string{"HOME=/home/ada"}, Dir: "/"},
	}
	for i, name := range []string{"clone-1", "clone-2"} {
		f := &fakeClone{asked: make(chan agent.SSH, 10), conns: make(chan net.Conn, 10)}
		fakes = append(fakes, f)
		job.Clones = append(job.Clones, Clone{Name: name, IP: netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 2)}), Slots: 1, SSH: f.ssh})
	}
	s, err := job.Serve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, fakes
}

// asAgent says hello and returns the answer, and what follows it.
func asAgent(t *testing.T, s *Server, h hello) (a answer, in *bufio.Reader, conn net.Conn, err error) {
	t.Helper()
	conn, err = net.Dial("unix", "@"+s.Secret().Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if err := writeLine(conn, h); err != nil {
		t.Fatal(err)
	}
	in = bufio.NewReader(conn)
	return a, in, conn, readLine(in, &a)
}

// commandFor is orted's for a launcher at an address.
func commandFor(at string) commandLine {
	return commandLine{" orted", "-mca", "orte_hnp_uri", `"1.0;tcp://` + at + `"`, "-mca", "plm", `"rsh"`}
}

// orterunAt listens as a launcher does.
func orterunAt(t *testing.T) (net.Listener, string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().String()
}

// dialFrom connects to the server as the clone with an address.
func dialFrom(t *testing.T, s *Server, ip string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: 10 * time.Second}
	conn, err := d.Dial("tcp4", s.job.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

func TestServeAgent(t *testing.T) {
	s, fakes := testServer(t)
	_, at := orterunAt(t)
	a, in, conn, err := asAgent(t, s, hello{s.Secret().Token, "clone-2", commandFor(at)})
	if err != nil || a.Error != "" {
		t.Fatal(err, a.Error)
	}
	asked := <-fakes[1].asked
	if asked.Login == nil || asked.Login.Env[0] != "HOME=/home/ada" || !slices.Equal(asked.AuthorizedKeys, []string{s.keys.userPublic}) {
		t.Errorf("the clone was asked for %+v", asked)
	}
	if string(asked.HostKey) == string(a.Key) || a.HostKey != s.keys.hostPublic || !strings.Contains(string(a.Key), "PRIVATE KEY") {
		t.Error("an agent gets the user's private key and the host's public one, and no other")
	}
	want := `orted -mca orte_hnp_uri "1.0;tcp://` + s.job.Listener.Addr().String() + `" -mca oob_tcp_if_include "127.0.0.0/16" -mca orte_tmpdir_base "/tmp" -mca btl_tcp_if_include "127.0.0.0/16"`
	if a.Command != want {
		t.Errorf("the clone is to run\n%s, want\n%s", a.Command, want)
	}
	// From then on bytes pass, and an end is one for both.
	guest := <-fakes[1].conns
	go guest.Write([]byte("SSH-2.0"))
	got := make([]byte, 7)
	if _, err := io.ReadFull(in, got); err != nil || string(got) != "SSH-2.0" {
		t.Errorf("%q, %v", got, err)
	}
	conn.Close()
	guest.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := guest.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("the clone sees %v when the agent goes", err)
	}
}

func TestServeAgentErrors(t *testing.T) {
	s, fakes := testServer(t)
	token := s.Secret().Token
	for name, h := range map[string]hello{
		"another token": {"x" + token, "clone-1", commandFor("127.0.0.1:1")},
		"no token":      {"", "clone-1", commandFor("127.0.0.1:1")},
		"no host":       {token, "", commandFor("127.0.0.1:1")},
		"no command":    {token, "clone-1", nil},
	} {
		if a, _, _, err := asAgent(t, s, h); !errors.Is(err, io.EOF) {
			t.Errorf("%s was answered: %+v, %v", name, a, err)
		}
	}
	if conn, err := net.Dial("unix", "@"+s.Secret().Name); err == nil {
		conn.Write([]byte("not JSON\n"))
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("nonsense was answered with %d bytes", n)
		}
		conn.Close()
	}
	fakes[0].err = errors.New("the clone is gone")
	for name, c := range map[string]struct {
		hello
		want string
	}{
		"another host":      {hello{token, "elsewhere", commandFor("127.0.0.1:1")}, "elsewhere is no clone of this job"},
		"another command":   {hello{token, "clone-1", commandLine{"rm", "-rf", "/"}}, "starts none of Open MPI's daemons"},
		"another machine's": {hello{token, "clone-1", commandFor("192.0.2.7:80")}, "no addresses of this machine"},
		"a lost clone":      {hello{token, "clone-1", commandFor("127.0.0.1:1")}, "clone-1: the clone is gone"},
	} {
		if a, _, _, err := asAgent(t, s, c.hello); err != nil || !strings.Contains(a.Error, c.want) || a.Key != nil {
			t.Errorf("%s: %q, %v", name, a.Error, err)
		}
	}
	if a, _, _, _ := asAgent(t, s, hello{token, "clone-2", commandFor("127.0.0.1:2")}); !strings.Contains(a.Error, "and not of that at 127.0.0.1:2") {
		t.Errorf("a second launcher: %q", a.Error)
	}
}

// Daemons of clones reach their launcher, and nobody reaches anything else.
func TestServeDaemon(t *testing.T) {
	s, fakes := testServer(t)
	orterun, at := orterunAt(t)
	ends := func(conn net.Conn, why string) {
		t.Helper()
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: it reads %d bytes, %v", why, n, err)
		}
	}
	ends(dialFrom(t, s, "127.0.0.2"), "before there is a launcher")
	for _, host := range []string{"clone-1", "clone-2"} {
		if a, _, _, err := asAgent(t, s, hello{s.Secret().Token, host, commandFor(at)}); err != nil || a.Error != "" {
			t.Fatal(err, a.Error)
		}
	}
	<-fakes[0].conns
	ends(dialFrom(t, s, "127.0.0.9"), "who is no clone")
	if got := s.missing(); !slices.Equal(got, []string{"clone-1", "clone-2"}) {
		t.Errorf("missing are %v", got)
	}
	first := dialFrom(t, s, "127.0.0.2")
	there, err := orterun.Accept()
	if err != nil {
		t.Fatal(err)
	}
	first.Write([]byte("up"))
	got := make([]byte, 2)
	if _, err := io.ReadFull(there, got); err != nil || string(got) != "up" {
		t.Errorf("%q, %v", got, err)
	}
	if got := s.missing(); !slices.Equal(got, []string{"clone-2"}) {
		t.Errorf("missing are %v", got)
	}
	for range maxConnections - 1 {
		dialFrom(t, s, "127.0.0.2")
		if _, err := orterun.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	ends(dialFrom(t, s, "127.0.0.2"), "one too many")
	select {
	case <-s.All():
		t.Error("all are said to have connected")
	default:
	}
	dialFrom(t, s, "127.0.0.3")
	select {
	case <-s.All():
	case <-time.After(10 * time.Second):
		t.Error("waited 10 s for all to have connected")
	}
	s.Close()
	ends(first, "after the end")
	if _, err := there.Read(got); !errors.Is(err, io.EOF) && err == nil {
		t.Errorf("the launcher sees %v at the end", err)
	}
}

// A daemon that was started and does not connect is told of, by its clone's name.
func TestLate(t *testing.T) {
	s, _ := testServer(t)
	s.job.Limit = 10 * time.Millisecond
	_, at := orterunAt(t)
	if a, _, _, err := asAgent(t, s, hello{s.Secret().Token, "clone-2", commandFor(at)}); err != nil || a.Error != "" {
		t.Fatal(err, a.Error)
	}
	select {
	case err := <-s.Late():
		if !strings.HasPrefix(err.Error(), "clone-2: Open MPI's daemon did not connect in 10ms") {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("waited 10 s to be told of a late daemon")
	}
}

func TestParseSecret(t *testing.T) {
	s := Secret{Name: "a@b", Token: "c"}
	if got, err := parseSecret(s.Value()); err != nil || got != s {
		t.Error(got, err)
	}
	for _, v := range []string{"", "a", "@a", "a@", "a@b\x00"} {
		if _, err := parseSecret(v); err == nil || !strings.Contains(err.Error(), "not by hand") {
			t.Errorf("%q: %v", v, err)
		}
	}
}

func FuzzReadHello(f *testing.F) {
	f.Add([]byte(`{"token":"t","host":"clone-1","command":["orted","-mca","orte_hnp_uri","\"1.0;tcp://127.0.0.1:1\""]}` + "\n"))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(strings.NewReader(string(b)))
		if err == nil && (h.Host == "" || len(h.Command) == 0) {
			t.Errorf("%q is a hello without a host or a command", b)
		}
		daemonOf(h.Command)
	})
}
