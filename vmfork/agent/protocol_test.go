package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

func stopped(t *testing.T, p *os.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

func TestMessages(t *testing.T) {
	var b bytes.Buffer
	want := Identity{Clone: 3, Name: "clone-3", Seed: []byte{1, 2, 3}}
	if err := writeMessage(&b, want); err != nil {
		t.Fatal(err)
	}
	b.WriteString("what follows")
	var got Identity
	if err := readMessage(&b, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v (%v), want %+v", got, err, want)
	}
	if b.String() != "what follows" {
		t.Errorf("after the message comes %q", b.String())
	}
}

func TestMessageErrors(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"nothing":       {"", "EOF"},
		"half a length": {"\x00\x00", "unexpected EOF"},
		"too long":      {"\xff\xff\xff\xff", "too many"},
		"cut off":       {"\x00\x00\x00\x05{}", "unexpected EOF"},
		"not JSON":      {"\x00\x00\x00\x02{]", "read a message"},
	} {
		err := readMessage(strings.NewReader(c.in), new(Identity))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", 100_000) // more than a reader's buffer
	var b bytes.Buffer
	writeLine(&b, answer{Error: long})
	b.WriteString("what follows")
	r := bufio.NewReader(&b)
	var got answer
	if err := readLine(r, &got); err != nil || got.Error != long {
		t.Errorf("read %d bytes (%v), want %d", len(got.Error), err, len(long))
	}
	if rest, _ := io.ReadAll(r); string(rest) != "what follows" {
		t.Errorf("after the line comes %q", rest)
	}
	for name, c := range map[string]struct{ in, want string }{
		"nothing":  {"", "EOF"},
		"cut off":  {"{}", "unexpected EOF"},
		"not JSON": {"{]\n", "read a message"},
		"too long": {strings.Repeat(" ", maxLine+1) + "\n", "longer than"},
	} {
		err := readLine(bufio.NewReader(strings.NewReader(c.in)), new(answer))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

func TestAwaitReady(t *testing.T) {
	for name, c := range map[string]struct{ said, want string }{
		"ready":    {ready, ""},
		"another":  {strings.Replace(ready, "1", "9", 1), "another protocol"},
		"the end":  {ready[:5], "unexpected EOF"},
		"nothing":  {"", "EOF"},
		"too late": {"wait", "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			defer host.Close()
			defer guest.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			go func() {
				if c.said == "wait" {
					return
				}
				io.WriteString(guest, c.said)
				guest.Close()
			}()
			err := AwaitReady(ctx, host)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestGreet(t *testing.T) {
	for name, c := range map[string]struct {
		answer any
		want   string
	}{
		"it is":       {answer{}, ""},
		"it cannot":   {answer{Error: "set the clock: no"}, "clone-2 could not take its identity: set the clock: no"},
		"it is gone":  {nil, "wait for clone-2 to take its identity: EOF"},
		"it is still": {"wait", "wait for clone-2 to take its identity: context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			defer host.Close()
			defer guest.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			go func() {
				var id Identity
				if err := readMessage(guest, &id); err != nil || id.Name != "clone-2" {
					t.Errorf("the guest read %+v (%v)", id, err)
				}
				switch c.answer {
				case "wait":
				case nil:
					guest.Close()
				default:
					writeMessage(guest, c.answer)
				}
			}()
			err := Greet(ctx, host, Identity{Clone: 2, Name: "clone-2"})
			if err == nil && c.want != "" || err != nil && err.Error() != c.want {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// A stream that asks for nothing is answered, and one of garbage closed; the
// session goes on.
func TestBadRequests(t *testing.T) {
	s := dialAgent(t)
	if _, err := s.ask(soon(t), request{}); err == nil || !strings.Contains(err.Error(), "nothing that it knows") {
		t.Errorf("an empty request: %v", err)
	}
	// No answer is not a good one.
	host, guest := net.Pipe()
	silent, err := Dial(host)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	go func() {
		io.ReadFull(guest, make([]byte, 12))
		guest.Close()
	}()
	if _, err := silent.Stdio(soon(t), 0, 1); err == nil {
		t.Error("a clone that hung up opened a stream")
	}
	conn, err := s.mux.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "\x00{]\n")
	if got := readAll(t, conn); got != "" {
		t.Errorf("garbage was answered with %q", got)
	}
	if e := exit(t, start(t, s, shell(0, "exit 4"))); e.Status != 4 {
		t.Errorf("after it a process ended with %+v", e)
	}
}

func FuzzReadMessage(f *testing.F) {
	for _, v := range []any{Identity{Clone: 1, Seed: make([]byte, 64)}, answer{Error: "no"}} {
		var b bytes.Buffer
		writeMessage(&b, v)
		f.Add(b.Bytes())
	}
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var id Identity
		if readMessage(r, &id) != nil {
			return
		}
		// Exactly one message was taken, and it survives a second trip.
		n := int(in[0])<<24 | int(in[1])<<16 | int(in[2])<<8 | int(in[3])
		if took := len(in) - r.Len(); took != 4+n {
			t.Errorf("took %d bytes for a message of %d", took, n)
		}
		var b bytes.Buffer
		if err := writeMessage(&b, id); err != nil {
			return // a time that JSON cannot write
		}
		var again Identity
		if err := readMessage(&b, &again); err != nil {
			t.Error(err)
		}
	})
}

func FuzzReadRequest(f *testing.F) {
	for _, v := range []any{
		request{Run: &Command{Argv: []string{"a"}}}, request{Stdio: &Stdio{1, 2}},
		request{PMI: &PMI{Ranks: []int{0, 1}}}, request{Place: &Place{"a", "b"}}, control{Signal: 9}, Exit{Signal: 9},
	} {
		line, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(line, '\n'))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(in), 16)
		var q request
		err := readLine(r, &q)
		end := bytes.IndexByte(in, '\n')
		if end < 0 {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("half a line was read: %v", err)
			}
			return
		}
		if rest, _ := io.ReadAll(r); !bytes.Equal(rest, in[end+1:]) {
			t.Errorf("after the line comes %q, want %q", rest, in[end+1:])
		}
		// A process's signals are lines of the same kind.
		var c control
		readLine(bufio.NewReader(bytes.NewReader(in)), &c)
	})
}
