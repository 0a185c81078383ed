package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func stopped(t *testing.T, p *os.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
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
