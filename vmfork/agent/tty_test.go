package agent

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// terminal is a shell's command at a terminal.
func terminal(id int, script string) Command {
	c := shell(id, script)
	c.TTY = &TTY{Rows: 40, Cols: 132, Term: "vt100"}
	return c
}

func TestTerminal(t *testing.T) {
	s := dialAgent(t)
	for name, c := range map[string]struct{ script, in, want string }{
		"it is one":         {"tty | sed 's/[0-9]*$//'; tty <&1 >/dev/null && tty <&2 >/dev/null && echo all", "", "/dev/pts/\r\nall\r\n"},
		"its size":          {"stty size", "", "40 132\r\n"},
		"its kind":          {"echo $TERM", "", "vt100\r\n"},
		"it controls":       {"echo here >/dev/tty; ps -o tpgid=,pgid= -p $$ | { read a b; [ $a = $b ] && echo foreground; }", "", "here\r\nforeground\r\n"},
		"a line is echoed":  {"read x; echo got $x", "hello\n", "hello\r\ngot hello\r\n"},
		"without echo":      {"stty -echo; echo ready; read x; echo got $x", "hello\n", "ready\r\ngot hello\r\n"},
		"a key interrupts":  {"trap 'echo interrupted; exit 0' INT; echo ready; while :; do sleep 0.01; done", "\x03", "ready\r\n^Cinterrupted\r\n"},
		"its user's":        {"stat -L -c %u /dev/fd/0", "", "0\r\n"},
		"a lot of output":   {"stty -opost; head -c 300000 /dev/zero | tr '\\0' x", "", strings.Repeat("x", 300000)},
		"what is left read": {"(sleep 0.2; echo late) & wait", "", "late\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			st := open(t, s, 1, 0)
			defer st.Close()
			p := start(t, s, terminal(1, c.script))
			var got string
			if strings.HasPrefix(c.want, "ready\r\n") {
				got = readLineOf(t, st)
			}
			if _, err := st.Write([]byte(c.in)); err != nil {
				t.Fatal(err)
			}
			if got += readAll(t, st); got != c.want {
				t.Errorf("the terminal showed %.200q, want %.200q", got, c.want)
			}
			if e := exit(t, p); e != (Exit{}) {
				t.Errorf("it ended with %+v", e)
			}
		})
	}
}

func TestTerminalResize(t *testing.T) {
	s := dialAgent(t)
	st := open(t, s, 1, 0)
	p := start(t, s, terminal(1, "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.01; done"))
	readLineOf(t, st)
	if err := writeLine(p.st, control{Resize: &Size{Rows: 7, Cols: 9}}); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, st); got != "7 9\r\n" {
		t.Errorf("after it had another size the terminal showed %q", got)
	}
	if e := exit(t, p); e != (Exit{}) {
		t.Errorf("it ended with %+v", e)
	}
}

// The end of the stream ends the input of who reads lines, in the middle of one
// too, and nothing else.
func TestTerminalEnd(t *testing.T) {
	s := dialAgent(t)
	for in, want := range map[string]string{"": "", "one\n": "one\n", "one\ntwo": "one\ntwo"} {
		st := open(t, s, 1, 0)
		p := start(t, s, terminal(1, "stty -echo -opost; echo ready; cat; echo; echo over"))
		readLineOf(t, st)
		if _, err := st.Write([]byte(in)); err != nil {
			t.Fatal(err)
		}
		st.Close()
		if got := readAll(t, st); got != want+"\nover\n" {
			t.Errorf("%q: the terminal showed %q", in, got)
		}
		exit(t, p)
	}
}

// When the host is gone from a process at a terminal, that is hung up.
func TestTerminalHangUp(t *testing.T) {
	s := dialAgent(t)
	st := open(t, s, 1, 0)
	mark := t.TempDir() + "/mark"
	p := start(t, s, terminal(1, "trap 'echo hung up >"+mark+"; exit' HUP; echo ready; while :; do sleep 0.01; done"))
	readLineOf(t, st)
	p.st.Close()
	await(t, "the process's mark", func() bool { b, _ := os.ReadFile(mark); return string(b) == "hung up\n" })
}

func TestTerminalErrors(t *testing.T) {
	s := dialAgent(t)
	if _, err := s.Start(soon(t), terminal(1, "true")); err == nil || !strings.Contains(err.Error(), "number 0") {
		t.Errorf("a process at a terminal without a stream: %v", err)
	}
	open(t, s, 1, 0)
	open(t, s, 1, 1)
	if _, err := s.Start(soon(t), terminal(1, "true")); err == nil || !strings.Contains(err.Error(), "number 0") {
		t.Errorf("a process at a terminal with an output beside it: %v", err)
	}
	open(t, s, 1, 0)
	c := terminal(1, "")
	c.Argv = []string{"/no/such/program"}
	if _, err := s.Start(soon(t), c); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a program that is not there, at a terminal: %v", err)
	}
}

// Terminals leave no descriptor behind in the agent.
func TestManyTerminals(t *testing.T) {
	cmd, conn := startAgent(t)
	s, err := Dial(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	job := func() {
		st := open(t, s, 1, 0)
		p := start(t, s, terminal(1, "echo hello"))
		if got := readAll(t, st); got != "hello\r\n" {
			t.Errorf("the terminal showed %q", got)
		}
		exit(t, p)
		st.Close()
	}
	job()
	before := descriptors(t, cmd.Process.Pid)
	for range 10 {
		job()
	}
	await(t, "terminals to be closed", func() bool { return descriptors(t, cmd.Process.Pid) <= before })
}

// readLineOf reads one line, and no more.
func readLineOf(t *testing.T, r io.Reader) string {
	t.Helper()
	done := make(chan string, 1)
	go func() {
		var line []byte
		for b := make([]byte, 1); len(line) == 0 || b[0] != '\n'; line = append(line, b[0]) {
			if _, err := io.ReadFull(r, b); err != nil {
				break
			}
		}
		done <- string(line)
	}()
	select {
	case line := <-done:
		return line
	case <-time.After(20 * time.Second):
		t.Fatal("waited 20 s for a line")
		return ""
	}
}
