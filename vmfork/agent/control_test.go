package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

func TestOrders(t *testing.T) {
	var b bytes.Buffer
	orders := []struct {
		kind    byte
		payload []byte
	}{
		{orderFreeze, nil}, {orderThaw, []byte("12345678")}, {orderIdentity, bytes.Repeat([]byte("x"), maxOrder)}, {0, []byte{0}},
	}
	for _, o := range orders {
		if err := writeOrder(&b, o.kind, o.payload); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("what")
	for _, want := range orders {
		kind, payload, err := readOrder(&b)
		if err != nil || kind != want.kind || !bytes.Equal(payload, want.payload) {
			t.Errorf("read order %q of %d bytes (%v), want %q of %d", kind, len(payload), err, want.kind, len(want.payload))
		}
	}
	if b.String() != "what" {
		t.Errorf("after the orders comes %q", b.String())
	}
}

func TestOrderErrors(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want error // nil for any
		text string
	}{
		"nothing":       {"", io.EOF, ""},
		"half a head":   {"i\x00\x00", io.ErrUnexpectedEOF, ""},
		"no payload":    {"i\x00\x00\x00\x05", io.ErrUnexpectedEOF, "read an order"},
		"half of it":    {"i\x00\x00\x00\x05ab", io.ErrUnexpectedEOF, "read an order"},
		"one too large": {"i\x00\x40\x00\x01", nil, "4194305 bytes are too many"},
		"far too large": {"i\xff\xff\xff\xff", nil, "too many"},
	} {
		_, _, err := readOrder(strings.NewReader(c.in))
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: error %v, want %v with %q", name, err, c.want, c.text)
		}
	}
}

func TestAnswers(t *testing.T) {
	for _, text := range []string{"", "no", strings.Repeat("x", 1<<20)} {
		var b bytes.Buffer
		var said error
		if text != "" {
			said = errors.New(text)
		}
		if err := writeAnswer(&b, said); err != nil {
			t.Fatal(err)
		}
		b.WriteString("what follows")
		err := readAnswer(&b)
		var refused refusal
		if text == "" && err != nil || text != "" && (!errors.As(err, &refused) || err.Error() != text) {
			t.Errorf("the answer %.10q was read as %v", text, err)
		}
		if b.String() != "what follows" {
			t.Errorf("after the answer comes %.20q", b.String())
		}
	}
	for in, want := range map[string]string{
		"":                     "EOF",
		"\x00\x00":             "unexpected EOF",
		"\x00\x00\x00\x03ab":   "read an answer: unexpected EOF",
		"\x00\x00\x00\x03":     "read an answer: unexpected EOF",
		"\xff\xff\xff\xffabcd": "too many",
	} {
		var refused refusal
		if err := readAnswer(strings.NewReader(in)); err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("the answer %q was read as %v, want %q", in, err, want)
		}
	}
}

// controlPort is a control port, and the guest's end of it.
func controlPort(t *testing.T) (*Control, net.Conn) {
	t.Helper()
	host, guest := net.Pipe()
	t.Cleanup(func() { host.Close(); guest.Close() })
	return NewControl(host), guest
}

func TestAwaitReady(t *testing.T) {
	for name, c := range map[string]struct{ said, want string }{
		"ready":    {ready, ""},
		"another":  {strings.Replace(ready, fmt.Sprint(version), "9", 1), "another protocol"},
		"the end":  {ready[:5], "unexpected EOF"},
		"nothing":  {"", "the guest is gone"},
		"too late": {"wait", "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			control, guest := controlPort(t)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			go func() {
				if c.said == "wait" {
					return
				}
				io.WriteString(guest, c.said)
				guest.Close()
			}()
			err := control.AwaitReady(ctx)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "wait for the guest's agent: ")) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// What each method sends, and what it makes of the answer.
func TestControl(t *testing.T) {
	members := []network.Member{network.NewPlan("a job").Member(3)}
	id := Identity{Clone: 2, Name: "clone-2", Seed: []byte{1, 2, 3}, Fork: Fork{Call: "abc"}}
	for name, c := range map[string]struct {
		kind   byte
		call   func(context.Context, *Control) error
		check  func(payload []byte) error
		prefix string
	}{
		"freeze": {orderFreeze, func(ctx context.Context, c *Control) error { return c.Freeze(ctx, 1<<40) }, func(p []byte) error {
			if len(p) != 8 || binary.BigEndian.Uint64(p) != 1<<40 {
				return fmt.Errorf("%x", p)
			}
			return nil
		}, "freeze the guest's processes: "},
		"thaw": {orderThaw, func(ctx context.Context, c *Control) error { return c.Thaw(ctx) }, func(p []byte) error {
			if len(p) != 8 {
				return fmt.Errorf("%d bytes", len(p))
			}
			if at := time.Unix(0, int64(binary.BigEndian.Uint64(p))); time.Since(at) > 10*time.Second || time.Since(at) < 0 {
				return fmt.Errorf("the clock is %v", at)
			}
			return nil
		}, "thaw the guest's processes: "},
		"identify": {orderIdentity, func(ctx context.Context, c *Control) error { return c.Identify(ctx, id) }, func(p []byte) error {
			if !bytes.Contains(p, []byte("clone-2")) {
				return fmt.Errorf("%q", p)
			}
			return nil
		}, "clone-2 could not take its identity: "},
		"begin": {orderBegin, func(ctx context.Context, c *Control) error { return c.Begin(ctx) }, func(p []byte) error {
			if len(p) > 0 {
				return fmt.Errorf("%d bytes", len(p))
			}
			return nil
		}, ""},
		"members": {orderMembers, func(ctx context.Context, c *Control) error { return c.Members(ctx, members) }, func(p []byte) error {
			if !bytes.Contains(p, []byte("clone-3")) {
				return fmt.Errorf("%q", p)
			}
			return nil
		}, "tell a guest of new members: "},
	} {
		// A refusal leaves the port as good as before; what comes last does not.
		for _, answers := range [][]string{{"", "no room", ""}, {"hang up"}, {"half"}, {"wait"}} {
			t.Run(name+"/"+answers[len(answers)-1], func(t *testing.T) {
				control, guest := controlPort(t)
				go func() {
					for _, answer := range answers {
						kind, payload, err := readOrder(guest)
						if err != nil || kind != c.kind {
							t.Errorf("the guest read order %q (%v), want %q", kind, err, c.kind)
							return
						}
						if err := c.check(payload); err != nil {
							t.Errorf("with the order comes %v", err)
						}
						switch answer {
						case "hang up":
							guest.Close()
						case "half":
							guest.Write([]byte{0, 0})
							guest.Close()
						case "wait":
						case "":
							writeAnswer(guest, nil)
						default:
							writeAnswer(guest, errors.New(answer))
						}
					}
				}()
				limit := 20 * time.Second
				if answers[0] == "wait" {
					limit = 100 * time.Millisecond
				}
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				for _, answer := range answers {
					err := c.call(ctx, control)
					want := map[string]string{"": "", "hang up": "the guest is gone", "half": "unexpected EOF", "wait": "wait for its agent: context deadline exceeded"}
					text, special := want[answer]
					if !special {
						text = answer
					}
					switch {
					case answer == "" && err != nil, answer != "" && (err == nil || err.Error() != c.prefix+text):
						t.Errorf("the answer %q gave %v, want %q", answer, err, c.prefix+text)
					case answer == "wait" && !errors.Is(err, context.DeadlineExceeded):
						t.Errorf("a wait ended with %v", err)
					}
				}
			})
		}
	}
}

// What an agent answers to an order that was given up is not taken for the
// answer to the next one.
func TestControlGivenUp(t *testing.T) {
	control, guest := controlPort(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	told := make(chan bool)
	go func() {
		readOrder(guest)
		cancel(errors.New("changed my mind"))
		<-told
		writeAnswer(guest, nil)
	}()
	err := control.Freeze(ctx, 0)
	if err == nil || err.Error() != "freeze the guest's processes: wait for its agent: changed my mind" {
		t.Errorf("an order that was given up ended with %v", err)
	}
	close(told)
	err = control.Thaw(soon(t))
	if err == nil || !strings.Contains(err.Error(), "did not finish what it was told before") || !strings.Contains(err.Error(), "changed my mind") {
		t.Errorf("the order after it ended with %v", err)
	}
	// A context that is over before does no harm: nothing was said.
	other, guestOfOther := controlPort(t)
	if err := other.Freeze(ctx, 0); err == nil {
		t.Error("an order was given after its time")
	}
	go func() { readOrder(guestOfOther); writeAnswer(guestOfOther, nil) }()
	if err := other.Freeze(soon(t), 0); err != nil {
		t.Errorf("the order after it: %v", err)
	}
}

// A context that ends just when the answer comes does not spoil the port: the
// order was carried out, or the port knows that it was not.
func TestControlInTheNickOfTime(t *testing.T) {
	obedient := func() *Control {
		control, guest := controlPort(t)
		go func() {
			for {
				if _, _, err := readOrder(guest); err != nil {
					return
				}
				writeAnswer(guest, nil)
			}
		}()
		return control
	}
	control := obedient()
	for i := range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if err := control.Freeze(ctx, 0); err != nil {
			control = obedient()
			continue
		}
		if err := control.Thaw(soon(t)); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

func TestObey(t *testing.T) {
	a := &agent{}
	for name, c := range map[string]struct {
		kind    byte
		payload string
		want    string
	}{
		"unknown order":     {'?', "", "the agent knows no order '?'"},
		"no identity":       {orderIdentity, "{]", "read the identity: "},
		"no members":        {orderMembers, "{]", "read the members: "},
		"thaw, not frozen":  {orderThaw, "", ""},
		"a clock cut short": {orderThaw, "1234", ""},
	} {
		err := a.obey(c.kind, []byte(c.payload))
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzOrder(f *testing.F) {
	f.Add([]byte("f\x00\x00\x00\x00"))
	f.Add([]byte("t\x00\x00\x00\x0812345678rest"))
	f.Add([]byte("i\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		kind, payload, err := readOrder(r)
		if err != nil {
			if payload != nil {
				t.Errorf("an error came with %d bytes", len(payload))
			}
			return
		}
		took := in[:len(in)-r.Len()]
		var again bytes.Buffer
		if err := writeOrder(&again, kind, payload); err != nil || !bytes.Equal(again.Bytes(), took) {
			t.Errorf("%q was taken for order %q with %q (%v)", took, kind, payload, err)
		}
		// The same bytes may come the other way.
		readAnswer(bytes.NewReader(in))
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x02norest"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		err := readAnswer(r)
		var refused refusal
		if err != nil && !errors.As(err, &refused) {
			return
		}
		var again bytes.Buffer
		if err := writeAnswer(&again, err); err != nil || !bytes.Equal(again.Bytes(), in[:len(in)-r.Len()]) {
			t.Errorf("%q was read as %v", in, err)
		}
	})
}
