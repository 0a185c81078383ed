package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What testdata/net puts into the frames that it sends.
var (
	forgedFrame   = []byte("FORGED-FRAME")
	plainDatagram = []byte("PLAIN-DATAGRAM")
)

// TestHostileClone: root of a clone sends what it likes, and nobody hears of it: no
// machine of its job, on its host and on others, no host, and no machine of another
// job on the same hosts. What it may send arrives.
func TestHostileClone(t *testing.T) {
	f := hosts.begin(t)
	own := f.startVM(t, "hostile", "--hosts", "host1,host2")
	own.run.beside = true // the other machine ends after it
	other := f.startVM(t, "other", "--hosts", "host1")

	// All machines watch their network, and serve. The first clone is the hostile one.
	const forking = `forkJob() { fork $1
	[ $id = 0 ] || { $DIR/net watch $DIR/seen.$id & $DIR/net answer 7000 "clone $id" $DIR/heard.$id & forever; }
	$DIR/net watch $DIR/seen.0 & $DIR/net answer 7000 "the parent" $DIR/heard.0 &
	sf ticket $t; echo ticketed; cat >/dev/null; }
`
	ours := own.begin(t, "", forking+"forkJob 4")
	ours.awaitOutput("ticketed", 1)
	theirs := other.begin(t, "", forking+"forkJob 1")
	theirs.awaitOutput("ticketed", 1)
	on := map[string]string{} // by IP address
	var clones, hostsOf []string
	for line := range strings.Lines(ours.stdout.String()) {
		if ip := field(line, fieldIP); ip != "" {
			clones, hostsOf = append(clones, ip), append(hostsOf, field(line, fieldHost))
			on[ip] = field(line, fieldHost)
		}
	}
	if len(clones) != 4 || !slices.Contains(hostsOf[1:], "host1") || !slices.Contains(hostsOf[1:], "host2") {
		t.Fatalf("it is four clones, of which the last three are on two hosts: %v", on)
	}
	foreign := field(theirs.stdout.String(), fieldIP)
	for _, n := range []string{"0", "1", "2", "3", "4"} {
		own.awaitFile(t, "seen."+n, "ready")
		own.awaitFile(t, "heard."+n, "ready")
	}
	for _, n := range []string{"0", "1"} {
		other.awaitFile(t, "seen."+n, "ready")
		other.awaitFile(t, "heard."+n, "ready")
	}
	var ears []*ear
	var underlay []string
	for n, h := range f.Hosts() {
		ears = append(ears, f.hears(t, n))
		underlay = append(underlay, h.Address.String())
	}

	me := netip.MustParseAddr(clones[0])
	base := me.As4()
	parent := netip.AddrFrom4([4]byte{base[0], base[1], 0, 1}).String()
	gateway := netip.AddrFrom4([4]byte{base[0], base[1], 255, 254}).String()
	name := field(ours.stdout.String(), 1)
	attack := func(victim, peer string) {
		t.Helper()
		t.Logf("%s on %s attacks %s on %s", me, on[clones[0]], victim, on[victim])
		if got := own.printsIn(t, name, strings.Join(append([]string{"$DIR/net attack", me.String(), peer, victim, gateway}, underlay...), " ")); !strings.Contains(got, "sent ") {
			t.Errorf("got %q", got)
		}
	}
	for _, victim := range clones[1:] {
		attack(victim, parent)
	}
	attack(parent, clones[1])
	attack(foreign, clones[1])

	// By its own addresses: with the members of its job it may speak, with nobody else.
	var members, strangers []string
	for _, ip := range append(clones[1:], parent) {
		members = append(members, ip+":7000")
	}
	for _, h := range underlay {
		for _, port := range append(f.listening(t), "22", "4789", "17472", "7500") {
			strangers = append(strangers, h+":"+port)
		}
	}
	// Two jobs may have the same addresses, each on a network of its own.
	if ip, err := netip.ParseAddr(foreign); err != nil || !netip.PrefixFrom(me, 16).Masked().Contains(ip) {
		strangers = append(strangers, foreign+":7000")
	}
	got := own.printsIn(t, name, "$DIR/net insist "+strings.Join(members, " ")+"; $DIR/net tell "+strings.Join(members, " "))
	if strings.Count(got, "clone ") != 6 || strings.Count(got, "the parent") != 2 {
		t.Errorf("the other machines of its job answered:\n%s", got)
	}
	got = own.printsIn(t, name, "$DIR/net route "+gateway+"; $DIR/net ask "+strings.Join(strangers, " ")+"; $DIR/net tell "+strings.Join(strangers, " "))
	if strings.Count(got, ": error: ") != 2*len(strangers) {
		t.Errorf("somebody who is no member of its job answered:\n%s", got)
	}

	for n, e := range ears {
		e.close()
		if len(e.bad) > 0 {
			t.Errorf("host%d heard, for example, %s", n, e.bad[0])
		}
		if n == 2 && !e.plain {
			t.Errorf("host2 has not heard what is sent to its clone, so it hears nothing")
		}
	}
	for _, n := range []int{0, 2, 3, 4} {
		own.checkWatch(t, n, true)
	}
	for n := range 2 {
		other.checkWatch(t, n, false)
	}
	own.end(t)
	<-ours.done
	other.end(t)
	<-theirs.done
}

// checkWatch checks what a machine of a job saw and heard, with or without what the
// hostile clone may send.
func (v *farmVM) checkWatch(t *testing.T, n int, member bool) {
	t.Helper()
	plain := false
	for line := range strings.Lines(v.file(t, fmt.Sprintf("seen.%d", n))) {
		frame, err := hex.DecodeString(strings.TrimSpace(line))
		switch {
		case line == "ready\n":
		case err != nil:
			t.Errorf("%d wrote %q", n, line)
		case bytes.Contains(frame, forgedFrame):
			t.Errorf("%s: machine %d saw a frame that was forged: %x", v.name, n, frame)
			return
		case bytes.Contains(frame, plainDatagram):
			plain = true
		}
	}
	heard := v.file(t, fmt.Sprintf("heard.%d", n))
	if strings.Contains(heard, string(forgedFrame)) {
		t.Errorf("%s: machine %d heard\n%s", v.name, n, heard)
	}
	if plain != member || strings.Contains(heard, "udp ") != member || strings.Contains(heard, "tcp ") != member {
		t.Errorf("%s: machine %d saw honest datagrams: %v; it heard\n%s", v.name, n, plain, heard)
	}
}

// listening are the TCP ports that anybody listens on, on any host.
func (f *farm) listening(t *testing.T) (ports []string) {
	t.Helper()
	for n := range f.Hosts() {
		out, err := f.Host(n).Command(t.Context(), "sh", "-c", "cat /proc/net/tcp /proc/net/tcp6").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			var port int
			if at, state := field(line, 1), field(line, 3); state == "0A" {
				if _, err := fmt.Sscanf(at[strings.LastIndexByte(at, ':')+1:], "%X", &port); err == nil {
					ports = append(ports, fmt.Sprint(port))
				}
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// ear is what a host hears: of its network all frames, and by itself who comes to
// port 7500.
type ear struct {
	socket int
	tcp    net.Listener
	udp    net.PacketConn
	done   sync.WaitGroup
	mu     sync.Mutex // guards all below
	bad    []string
	plain  bool
}

func (f *farm) hears(t *testing.T, host int) *ear {
	t.Helper()
	e := &ear{}
	at := f.Host(host).Address.String() + ":7500"
	err := f.Host(host).Do(func() (err error) {
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		if e.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if err := unix.Bind(e.socket, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}); err != nil {
			return err
		}
		if e.tcp, err = net.Listen("tcp4", at); err != nil {
			return err
		}
		e.udp, err = net.ListenPacket("udp4", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// So that close ends it.
	if err := unix.SetsockoptTimeval(e.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	e.done.Go(func() {
		p := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(e.socket, p, 0)
			e.mu.Lock()
			closed := e.tcp == nil
			if err == nil {
				e.frame(p[:n])
			}
			e.mu.Unlock()
			if closed && err != nil {
				return
			}
		}
	})
	l, u := e.tcp, e.udp
	e.done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			e.note("a connection of " + conn.RemoteAddr().String())
			conn.Close()
		}
	})
	e.done.Go(func() {
		p := make([]byte, 2048)
		for {
			n, from, err := u.ReadFrom(p)
			if err != nil {
				return
			}
			e.note(fmt.Sprintf("a datagram of %v: %q", from, p[:n]))
		}
	})
	return e
}

func (e *ear) note(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bad = append(e.bad, what)
}

// frame takes one, with mu. Those of jobs' networks, 10.0.0.0/8, are not to be seen but
// in others.
func (e *ear) frame(p []byte) {
	e.plain = e.plain || bytes.Contains(p, plainDatagram)
	job := len(p) >= 34 && p[12] == 8 && p[13] == 0 && (p[26] == 10 || p[30] == 10)
	if bytes.Contains(p, forgedFrame) || job {
		e.bad = append(e.bad, fmt.Sprintf("frame %x", p[:min(len(p), 256)]))
	}
}

func (e *ear) close() {
	e.mu.Lock()
	tcp := e.tcp
	e.tcp = nil
	e.mu.Unlock()
	if tcp == nil {
		return
	}
	tcp.Close()
	e.udp.Close()
	e.done.Wait()
	unix.Close(e.socket)
}
