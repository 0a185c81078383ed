package e2e

import (
	"context"
	"fmt"
	"net"

	"regexp"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// wayBytes is what one fetch brings, and wayRate the bits per second that may come.
const (
	wayBytes = 2_000_000
	wayRate  = 8_000_000
)

// TestWay: machines on all hosts reach by NAT what the user allows, and nothing
// without it. host2 is no host of the job's.
func TestWay(t *testing.T) {
	f := hosts.begin(t)
	for n, h := range f.Hosts() {
		for port, text := range map[int]string{7100: "hello from " + h.Name, 7200: "hidden on " + h.Name, 7300: strings.Repeat("x", wayBytes)} {
			f.says(t, n, port, text)
		}
	}
	f.resolves(t, 2, "server.test.", [4]byte{192, 0, 2, 99})
	outside := f.Host(2).Address.String()

	t.Run("closed", func(t *testing.T) {
		v := f.startVM(t, "closed", "--hosts", "host1")
		got := v.onBoth(t, fmt.Sprintf("$DIR/net ask %s:7100 %s:7100 %s:7100", f.Host(0).Address, f.Host(1).Address, outside)+
			// Also not by who is root and finds the way.
			fmt.Sprintf("; $DIR/net route $(sf whoami | cut -d ' ' -f 3 | cut -d . -f 1-2).255.254; $DIR/net ask %s:7100 %s:7100 %s:7100", f.Host(0).Address, f.Host(1).Address, outside))
		for who, said := range got {
			if strings.Contains(said, "hello") || strings.Count(said, ": error: ") != 6 {
				t.Errorf("without --nat %s reached:\n%s", who, said)
			}
		}
		v.end(t)
	})
	t.Run("open", func(t *testing.T) {
		f.resolver(t, 0, outside)
		// Of the job's own hosts one service is allowed.
		v := f.startVM(t, "open", "--hosts", "host1", "--nat", "--allow", outside+":7100/tcp", "--allow", outside+":7300",
			"--allow", f.Host(1).Address.String()+":7100", "--rate", "8mbit", "--forward", f.Host(0).Address.String()+":7400:7000")
		got := v.onBoth(t, fmt.Sprintf("$DIR/net ask %s:7100 %s:7200 %s:7100 %s:7100 %s:7200 %s:22; $DIR/net lookup server.test",
			outside, outside, f.Host(0).Address, f.Host(1).Address, f.Host(1).Address, outside))
		for who, said := range got {
			want := fmt.Sprintf(`^%s:7100: hello from host2
%s:7200: error: .*
%s:7100: error: .*
%s:7100: hello from host1
%s:7200: error: .*
%s:22: error: .*
server.test: 192.0.2.99
$`, outside, outside, f.Host(0).Address, f.Host(1).Address, f.Host(1).Address, outside)
			if !regexp.MustCompile(want).MatchString(said) {
				t.Errorf("%s reached\n%s\nwant\n%s", who, said, want)
			}
		}
		t.Run("rate", func(t *testing.T) {
			for who, said := range v.onBoth(t, "$DIR/net fetch "+outside+":7300") {
				var bytes, took int
				if _, err := fmt.Sscanf(said, "%d bytes in %d ms", &bytes, &took); err != nil || bytes != wayBytes+1 {
					t.Errorf("%s: %v: %q", who, err, said)
				}
				// A machine that is busy takes longer; at twice the rate it is too fast.
				if least := wayBytes * 8 * 1000 / wayRate / 2; took < least {
					t.Errorf("%s: %s, which at that rate take %d at least", who, said, 2*least)
				}
			}
		})
		t.Run("forward", func(t *testing.T) {
			serving := v.begin(t, "", `$DIR/net answer 7000 "the parent" $DIR/forwarded`)
			v.awaitFile(t, "forwarded", "ready")
			for _, host := range []int{1, 2} {
				if got := f.ask(t, host, f.Host(0).Address.String()+":7400"); got != "the parent\n" {
					t.Errorf("host%d got %q", host, got)
				}
			}
			v.prints(t, "pkill -x net || kill $(pidof net)")
			<-serving.done
		})
		v.end(t)
	})
}

// onBoth runs a script in the machine and in a clone of it, on another host, and
// is what each printed.
func (v *farmVM) onBoth(t *testing.T, script string) map[string]string {
	t.Helper()
	got := v.prints(t, `fork 1
if [ $id = 1 ]; then
	{ sf whoami; `+script+`; } >$DIR/clone.tmp 2>&1
	mv $DIR/clone.tmp $DIR/clone.said
	sf exit
fi
sf join -t 120 $t >/dev/null || exit
`+script)
	who, said, _ := strings.Cut(v.file(t, "clone.said"), "\n")
	if host := field(who, fieldHost); host != "host1" {
		t.Errorf("the clone is on %s: %s", host, who)
	}
	return map[string]string{"the parent": got, "the clone": said}
}

// says has a host say something to all who come to a port, until the test ends.
func (f *farm) says(t *testing.T, host, port int, text string) {
	t.Helper()
	var l net.Listener
	err := f.Host(host).Do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("%v:%d", f.Host(host).Address, port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprintln(conn, text)
			}()
		}
	}()
}

// ask is what a server says to a host.
func (f *farm) ask(t *testing.T, host int, to string) (said string) {
	t.Helper()
	err := f.Host(host).Do(func() error {
		conn, err := net.DialTimeout("tcp4", to, defaultLimit)
		if err != nil {
			return err
		}
		defer conn.Close()
		p := make([]byte, 100)
		n, err := conn.Read(p)
		said = string(p[:n])
		return err
	})
	if err != nil {
		t.Errorf("host%d asks %s: %v", host, to, err)
	}
	return said
}

// resolver has a host ask a name server, until the test ends.
func (f *farm) resolver(t *testing.T, host int, server string) {
	t.Helper()
	write := func(script string) {
		t.Helper()
		if out, err := f.Host(host).Command(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("change resolv.conf of host%d: %v: %s", host, err, out)
		}
	}
	write("cp /etc/resolv.conf /etc/resolv.conf.own; echo nameserver " + server + " >/etc/resolv.conf")
	t.Cleanup(func() {
		// The test's context has ended.
		cmd := f.Host(host).Command(context.Background(), "mv", "/etc/resolv.conf.own", "/etc/resolv.conf")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("restore resolv.conf of host%d: %v: %s", host, err, out)
		}
	})
}

// resolves has a host serve names, of which it knows one.
func (f *farm) resolves(t *testing.T, host int, name string, address [4]byte) {
	t.Helper()
	var conn net.PacketConn
	err := f.Host(host).Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", f.Host(host).Address.String()+":53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		p := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(p)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(p[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true}, Questions: m.Questions}
			switch {
			case q.Name.String() != name:
				answer.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				answer.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
					Body:   &dnsmessage.AResource{A: address},
				}}
			}
			if out, err := answer.Pack(); err == nil {
				conn.WriteTo(out, from)
			}
		}
	}()
}
