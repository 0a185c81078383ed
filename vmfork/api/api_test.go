package api

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

func line(t *testing.T, l interface{ Line() ([]byte, error) }) string {
	t.Helper()
	b, err := l.Line()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestValuesAreEncoded(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{"", ""},
		{"a=b:c", "a=b:c"},
		{"two words", "two%20words"},
		{"100%\n\x00\x7f", "100%25%0A%00%7F"},
		{"grün", "grün"},
		{"\xff\xc3", "%FF%C3"},
	} {
		if got := line(t, OK("k", c.value)); got != "ok k="+c.want+"\n" {
			t.Errorf("%q is written %q, want %q", c.value, got, c.want)
		}
	}
	r, err := ParseReply([]byte("ok k=%4a%4A%25 l=a=b k="))
	if want := (Args{{"k", "JJ%"}, {"l", "a=b"}, {"k", ""}}); err != nil || !reflect.DeepEqual(r.Args, want) {
		t.Errorf("read %v, %v", r.Args, err)
	}
}

func TestMalformedLines(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"", "begins with"},
		{"Clone ticket=t", "begins with"},
		{"9 a=b", "begins with"},
		{"clone ", "space too many"},
		{"clone  ticket=t", "space too many"},
		{"clone ticket=t ", "space too many"},
		{"clone ticket", "has no ="},
		{"clone =t", "key"},
		{"clone T=t", "key"},
		{"clone ticket=t\r", "control character (0x0d)"},
		{"clone ticket=\x7f", "control character"},
		{"clone ticket=\xff", "UTF-8"},
		{"clone ticket=%4", "within a %XX"},
		{"clone ticket=%", "within a %XX"},
		{"clone ticket=%zz", "hexadecimal"},
		{"clone ticket=" + strings.Repeat("x", MaxLine), "longer"},
	} {
		if _, err := ParseRequest([]byte(c.line)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("request %.40q: %v, want %q", c.line, err, c.want)
		}
		if _, err := ParseReply([]byte(c.line)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("reply %.40q: %v, want %q", c.line, err, c.want)
		}
	}
	for _, bad := range []string{"yes", "error", "error kind=lost", "error text=x kind=lost", "error kind=Lost text=x",
		"error kind=lost text=x text=y", "error kind=lost text=x kind=lost"} {
		if r, err := ParseReply([]byte(bad)); err == nil {
			t.Errorf("reply %q is read as %+v", bad, r)
		}
	}
	for _, bad := range []Request{{Call: "a b"}, NewRequest("clone", "a b", "c"), NewRequest("clone", "a", strings.Repeat(" ", MaxLine/2))} {
		if _, err := bad.Line(); err == nil {
			t.Errorf("request %.60q is written", fmt.Sprint(bad))
		}
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"whoami", ""},
		{"whoami vm=clone-3", ""},
		{"request-ticket clones=4 hierarchical=1 vcpus=2", ""},
		{"request-ticket", "wants clones="},
		{"request-ticket clones=0", "a number from 1"},
		{"request-ticket clones=-1", "a number from 1"},
		{"request-ticket clones=4 hierarchical=yes", "from 0 to 1"},
		{"ticket ticket=t7", ""},
		{"clone", "wants ticket="},
		{"clone ticket=", "letters"},
		{"clone ticket=a:b", "letters"},
		{"clone ticket=t ticket=t", "not two"},
		{"clone ticket=t color=red", `takes no "color"`},
		{"checkpoint-parent", ""},
		{"create-clones checkpoint=c", "wants ticket="},
		{"create-clones", "wants checkpoint="},
		{"create-clones checkpoint=c ticket=t vm=parent", ""},
		{"discard checkpoint=c", ""},
		{"exit", ""},
		{"exit status=255", ""},
		{"exit status=256", "from 0 to 255"},
		{"join ticket=t timeout=0.5", ""},
		{"join ticket=t timeout=0", ""},
		{"join ticket=t timeout=1.", "seconds"},
		{"join ticket=t timeout=-1", "seconds"},
		{"join ticket=t timeout=1e9", "seconds"},
		{"kill ticket=t clone=2", ""},
		{"kill ticket=t clone=0", "from 1"},
		{"await-fork", ""},
		{"await-fork vm=clone-1", "takes no"},
		{"list", ""},
		{"fork ticket=t", "there is no call"},
	} {
		r, err := ParseRequest([]byte(c.line))
		if err != nil {
			t.Fatal(err)
		}
		err = r.Check()
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
		}
	}
	r := NewRequest(Join, "ticket", "t").With("timeout", "1.25")
	if d, ok := r.Timeout(); !ok || d != 1250*time.Millisecond {
		t.Errorf("timeout %v %v", d, ok)
	}
	if n := NewRequest(Exit).Int("status", 7); n != 7 {
		t.Errorf("status %d", n)
	}
}

func TestErrorsHaveKinds(t *testing.T) {
	r := Fail(KindLost, "clone 2 died")
	if got := line(t, r); got != "error kind=lost text=clone%202%20died\n" {
		t.Errorf("written %q", got)
	}
	err := fmt.Errorf("join: %w", r.Err)
	if !errors.Is(err, ErrLost) || errors.Is(err, ErrKilled) || KindOf(err) != KindLost {
		t.Errorf("%v is not lost", err)
	}
	if got := FailWith(err); got.Err.Kind != KindLost || !strings.Contains(got.Err.Text, "clone 2 died") {
		t.Errorf("replied %+v", got.Err)
	}
	if got := FailWith(r.Err); *got.Err != *r.Err {
		t.Errorf("replied %+v, want %+v", got.Err, r.Err)
	}
	if got := FailWith(errors.New("disk full")); got.Err.Kind != KindFailed || got.Err.Text != "disk full" {
		t.Errorf("replied %+v", got.Err)
	}
}

func TestEveryCallIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for call, spec := range calls {
		for _, want := range []string{"\n## " + call + "\n", "(#" + call + ")", "\n| `" + call} {
			if !strings.Contains(string(doc), want) {
				t.Errorf("docs/api.md has no %q", want)
			}
		}
		row, _, _ := strings.Cut(string(doc)[strings.Index(string(doc), "\n| `"+call)+1:], "|\n")
		for _, keys := range []keys{spec.required, spec.optional} {
			for key := range keys {
				if key != "vm" && !strings.Contains(row, key+"=") {
					t.Errorf("the protocol's %s lacks %s=: %s", call, key, row)
				}
			}
		}
	}
}

// again sends a reply through a line.
func again(t *testing.T, r Reply) Reply {
	t.Helper()
	got, err := ParseReply([]byte(strings.TrimSuffix(line(t, r), "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTypedReplies(t *testing.T) {
	ip := netip.MustParseAddr("10.7.0.2")
	tk := ticket.Ticket{ID: "t7", Asked: 3, Clones: []ticket.Clone{
		{ID: 1, Name: "clone-4", IP: ip, VCPUs: 2, Host: "a"}, {ID: 2, Name: "clone-5", IP: ip.Next(), VCPUs: 1, Host: "a"}}}
	if got, err := again(t, TicketReply(tk)).Ticket(); err != nil || !reflect.DeepEqual(got, tk) {
		t.Errorf("ticket %+v, %v", got, err)
	}
	who := Identity{ID: 2, Ticket: "t7", Member: 5, Name: "clone-5", IP: ip, VCPUs: 1, Host: "a"}
	if got, err := again(t, who.Reply()).Identity(); err != nil || got != who {
		t.Errorf("identity %+v, %v", got, err)
	}
	machines := []Machine{{Name: "parent", IP: ip, Parent: -1}, {Name: "clone-5", Member: 5, IP: ip.Next(), Ticket: "t7", ID: 2}}
	if got, err := again(t, ListReply(machines)).Machines(); err != nil || !reflect.DeepEqual(got, machines) {
		t.Errorf("list %+v, %v", got, err)
	}
	lost := again(t, LostReply([]int{2}, map[int]int{1: 0, 3: 9}, "clone %d died", 2))
	if got, err := lost.Lost(); err != nil || !reflect.DeepEqual(got, []int{2}) {
		t.Errorf("lost %v, %v", got, err)
	}
	if got, err := lost.Statuses(); err != nil || !reflect.DeepEqual(got, map[int]int{1: 0, 3: 9}) {
		t.Errorf("statuses %v, %v", got, err)
	}
	tk.Clones[0].Host = "fe80::1"
	if r := TicketReply(tk); r.Err == nil {
		t.Error("a host with colons is in a tuple")
	}
}

func TestWrongReplies(t *testing.T) {
	ticketOf := func(r Reply) error { _, err := r.Ticket(); return err }
	for _, c := range []struct {
		line, want string
		read       func(Reply) error
	}{
		{"ok", "ticket", ticketOf},
		{"ok ticket=t asked=1 granted=1", "1 clones are granted and 0 described", ticketOf},
		{"ok ticket=t asked=1 granted=1 clone=1:n:10.0.0.1:1", "4 parts", ticketOf},
		{"ok ticket=t asked=1 granted=1 clone=1:n:10.0.0:1:h", "is not ID:NAME", ticketOf},
		{"ok ticket=t asked=1 granted=1 clone=0:n:10.0.0.1:1:h", "clone id 0", ticketOf},
		{"ok id=x", "no number", func(r Reply) error { _, err := r.ID(); return err }},
		{"ok checkpoint=", "no name", func(r Reply) error { _, err := r.Name("checkpoint"); return err }},
		{"ok status=1:0 status=1:1", "once", func(r Reply) error { _, err := r.Statuses(); return err }},
		{"ok id=1", "member", func(r Reply) error { _, err := r.Identity(); return err }},
		{"ok vm=a:b:c:d:e:f", "NAME", func(r Reply) error { _, err := r.Machines(); return err }},
	} {
		r, err := ParseReply([]byte(c.line))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.read(r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{"whoami", "request-ticket clones=2 hierarchical=1", "join ticket=t7 timeout=0.5", "x a=%00%ff:= a=", "clone ticket=grün"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRequest(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v is not invalid", err)
			}
			return
		}
		_ = r.Check()
		l, err := r.Line()
		if err != nil {
			t.Fatal(err) // encoding never writes more than was read
		}
		back, err := ParseRequest(l[:len(l)-1])
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v came back as %+v, %v", r, back, err)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	for _, s := range []string{"ok", "ok ticket=t7 asked=2 granted=1 clone=1:clone-1:10.7.0.2:1:host", "ok status=1:0 status=2:9", "ok vm=parent:0:10.7.0.1:::0",
		"ok id=1 member=1 name=clone-1 ip=10.7.0.2 vcpus=1 host=h", "error kind=lost text=clone%202%20died clone=2 status=1:0"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseReply(data)
		if err != nil {
			return
		}
		_, _ = r.Ticket()
		_, _ = r.Identity()
		_, _ = r.Machines()
		_, _ = r.Statuses()
		_, _ = r.Lost()
		l, err := r.Line()
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseReply(l[:len(l)-1])
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v came back as %+v, %v", r, back, err)
		}
	})
}

func FuzzValue(f *testing.F) {
	f.Add("two words\n\x00%\xff=:")
	f.Fuzz(func(t *testing.T, value string) {
		l, err := OK("k", value).Line()
		if err != nil {
			return // too long
		}
		r, err := ParseReply(l[:len(l)-1])
		if got, _ := r.Args.Get("k"); err != nil || got != value {
			t.Fatalf("%q came back as %q, %v", value, got, err)
		}
	})
}
