package bindings

import (
	"bufio"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A fake is a server that answers what its test says. It gives each call a
// connection of its own, as the bindings do, and closes it afterwards.
type fake struct {
	path   string
	answer func(request string) string // as it is sent, with its LF or without

	mu  sync.Mutex
	log []string // the requests
}

// serve answers until the test ends.
func serve(t *testing.T, answer func(request string) string) *fake {
	t.Helper()
	f := &fake{path: filepath.Join(t.TempDir(), "sf.sock"), answer: answer}
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.converse(conn)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return f
}

func (f *fake) converse(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return // the program died, and its exit status tells
	}
	request := strings.TrimSuffix(line, "\n")
	f.mu.Lock()
	f.log = append(f.log, request)
	f.mu.Unlock()
	conn.Write([]byte(f.answer(request)))
}

// requests are the calls that came, but for whoami: some bindings ask it
// before others, to know whose a ticket is.
func (f *fake) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var calls []string
	for _, r := range f.log {
		if r != "whoami" {
			calls = append(calls, r)
		}
	}
	return calls
}

// dialogue answers each request with its replies in turn, and again with the
// last. What it does not know is an error of the protocol's kind invalid.
func dialogue(replies map[string][]string) func(string) string {
	next := map[string]int{}
	return func(request string) string {
		of := replies[request]
		if len(of) == 0 {
			return "error kind=invalid text=" + strings.ReplaceAll(request, " ", "%20") + "\n"
		}
		i := min(next[request], len(of)-1)
		next[request]++
		return of[i] + "\n"
	}
}
