package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

var sampleHello = Hello{
	Version: "v0.4.0", Host: "h3", Addresses: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.3:40000"), netip.MustParseAddrPort("[fd00::3]:40000")},
	Fingerprint: Fingerprint{1, 2, 3}, CPUs: 4, MemoryFree: 1 << 30, MemoryTotal: 2 << 30,
	Hypervisor: "qemu", HypervisorVersion: "7.2.11", Accelerator: "tcg", AcceleratorReason: "there is no /dev/kvm",
	Lacks: []string{"/dev/fuse: load the module (modprobe fuse)"},
}

var sampleWelcome = Welcome{
	Version: "v0.4.0", Job: "a1b2", Host: "node3", Allow: []Fingerprint{{9}, {8}},
	Head: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:40000")},
}

func TestHelloArrives(t *testing.T) {
	var stream bytes.Buffer
	// What login scripts and terminals make of it.
	stream.WriteString("Welcome to Debian!\r\n\x1b[31mmail\x1b[0m\n$ ")
	if err := WriteHello(&stream, sampleHello); err != nil {
		t.Fatal(err)
	}
	stream.WriteString("what follows")
	got, err := ReadHello(t.Context(), &stream, "h3")
	if err != nil || !reflect.DeepEqual(got, sampleHello) {
		t.Errorf("%+v, %v", got, err)
	}
	if rest := stream.String(); rest != "what follows" {
		t.Errorf("after it can be read: %q", rest)
	}
}

func TestWelcomeArrives(t *testing.T) {
	var stream bytes.Buffer
	if err := WriteWelcome(&stream, sampleWelcome); err != nil {
		t.Fatal(err)
	}
	crlf := strings.NewReader(strings.ReplaceAll(stream.String(), "\n", "\r\n"))
	got, err := ReadWelcome(t.Context(), crlf)
	if err != nil || !reflect.DeepEqual(got, sampleWelcome) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	var good bytes.Buffer
	WriteHello(&good, sampleHello)
	line := good.String()
	for name, test := range map[string]struct{ text, want string }{
		"nothing":        {"", "the daemon on host h3 to answer: it ended without one"},
		"only junk":      {"sudo: a password is required\nsorry", "it ended without one; before that came: sudo: a password is required | sorry"},
		"half":           {line[:len(line)/2], "it ended without one"},
		"newer":          {"MPIRUN-SF-HELLO 2 v9 {\"new\":1}\n", "the daemon on host h3 is mpirun-sf v9, which speaks protocol 2, and this one speaks protocol 1: install"},
		"no number":      {"MPIRUN-SF-HELLO x v9 {}\n", "which is no answer"},
		"no message":     {"MPIRUN-SF-HELLO 1 v9\n", "which is no answer"},
		"escape":         {"MPIRUN-SF-HELLO 1 \x1b[31m {}\n", "which is no answer"},
		"unknown field":  {strings.Replace(line, `"cpus"`, `"gpus"`, 1), "cannot be understood"},
		"two messages":   {strings.Replace(line, "}\n", "}{}\n", 1), "more than one message"},
		"no host":        {strings.Replace(line, `"h3"`, `""`, 1), "it names no host"},
		"terminal":       {strings.Replace(line, `"h3"`, `"\u001b[2J"`, 1), "not plain text"},
		"port 0":         {strings.Replace(line, "10.0.0.3:40000", "10.0.0.3:0", 1), "no address where"},
		"short key":      {strings.Replace(line, sampleHello.Fingerprint.String(), "AAAA", 1), "not the fingerprint"},
		"memory":         {strings.Replace(line, fmt.Sprint(1<<30), "-1", 1), "are not a host's"},
		"too long":       {"MPIRUN-SF-HELLO 1 v9 {" + strings.Repeat(" ", maxLine), "longer than"},
		"endless":        {strings.Repeat("x", 2*maxJunk), "and no such line"},
		"endless lines":  {strings.Repeat("x\n", maxJunk), "and no such line; before that came: ..."},
		"the other line": {strings.Replace(line, "HELLO", "WELCOME", 1), "it ended without one"},
	} {
		got, err := ReadHello(t.Context(), strings.NewReader(test.text), "h3")
		if err == nil || !strings.Contains(err.Error(), test.want) || !reflect.DeepEqual(got, Hello{}) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
		if err != nil && (len(err.Error()) > 2*maxTail || strings.ContainsAny(err.Error(), "\n\x1b")) {
			t.Errorf("%s: an error of %d bytes: %.100q", name, len(err.Error()), err)
		}
	}
	// Behind much else on the same line.
	if _, err := ReadHello(t.Context(), strings.NewReader(strings.Repeat("x", 3*maxLine-7)+line), "h3"); err != nil {
		t.Error(err)
	}
}

func TestHelloThatIsNone(t *testing.T) {
	for name, spoil := range map[string]func(*Hello){
		"no host":    func(h *Hello) { h.Host = "" },
		"no address": func(h *Hello) { h.Addresses, h.Lacks = nil, nil },
		"any":        func(h *Hello) { h.Addresses = []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:1")} },
		"too much":   func(h *Hello) { h.Lacks = make([]string, maxLacks+1) },
		"two lines":  func(h *Hello) { h.Lacks = []string{"a\nb"} },
		"too long":   func(h *Hello) { h.Hypervisor = strings.Repeat("x", maxText+1) },
	} {
		h := sampleHello
		spoil(&h)
		if err := WriteHello(io.Discard, h); err == nil {
			t.Errorf("%s: was written", name)
		}
	}
	if err := WriteWelcome(io.Discard, Welcome{Job: "x"}); err == nil {
		t.Error("a welcome that nobody may follow was written")
	}
}

func TestNoAnswer(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("30s are over"))
	if _, err := ReadHello(ctx, r, "h3"); err == nil || err.Error() != "wait for the daemon on host h3 to answer: 30s are over" {
		t.Errorf("%v", err)
	}
}

func TestAddressesOfThisHost(t *testing.T) {
	got, err := Addresses([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.5:1")}, 77)
	if err != nil || len(got) == 0 || got[0] != netip.MustParseAddrPort("127.0.0.1:77") && got[0] != netip.MustParseAddrPort("127.0.0.5:77") {
		t.Errorf("%v, %v: the first is not the one towards the peer", got, err)
	}
	for i, a := range got {
		if a.Port() != 77 || i > 0 && a.Addr().IsLoopback() {
			t.Errorf("%v", a)
		}
	}
	if checkAddresses(got) != nil {
		t.Errorf("%v could not be told", got)
	}
}

func FuzzHello(f *testing.F) {
	var b bytes.Buffer
	WriteHello(&b, sampleHello)
	f.Add(b.Bytes())
	b.Reset()
	WriteWelcome(&b, sampleWelcome)
	f.Add(b.Bytes())
	f.Add([]byte("junk\nMPIRUN-SF-HELLO 1 v {}\n"))
	f.Add([]byte("MPIRUN-SF-HELLO 1 v {\"host\":\"h\",\"addresses\":[\"1.2.3.4:5\"]}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if h, err := ReadHello(context.Background(), bytes.NewReader(text), "h"); err == nil {
			var again bytes.Buffer
			if err := WriteHello(&again, h); err != nil {
				if strings.Contains(err.Error(), "are the most") {
					return // escapes make it longer
				}
				t.Fatalf("what was read cannot be written: %v", err)
			}
			if g, err := ReadHello(context.Background(), &again, "h"); err != nil || !reflect.DeepEqual(g, h) {
				t.Fatalf("%+v became %+v: %v", h, g, err)
			}
		}
		if w, err := ReadWelcome(context.Background(), bytes.NewReader(text)); err == nil && w.check() != nil {
			t.Fatal("a welcome that is none was read")
		}
	})
}

func FuzzPreface(f *testing.F) {
	var b bytes.Buffer
	preface{role: asLink}.write(&b)
	f.Add(b.Bytes())
	b.Reset()
	preface{asConnection, newToken(), 3}.write(&b)
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := readPreface(bytes.NewReader(text))
		if err != nil {
			return
		}
		var again bytes.Buffer
		p.write(&again)
		if !bytes.Equal(again.Bytes(), text[:again.Len()]) {
			t.Fatalf("%x became %x", text, again.Bytes())
		}
	})
}
