package memtap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// A mount must not be mapped by the process that serves it, so the tests start themselves again as children that do
// what a hypervisor does, one command a line:
//
//	open PATH            open with O_RDWR and map privately
//	get OFF              byte of the mapping, or "fault"
//	put OFF BYTE         write to the mapping
//	walk OFF STEP COUNT  touch COUNT bytes of the mapping, STEP apart; says the time taken
//	read OFF LEN         first byte and length by pread, or the error
//	reads LEN COUNT      COUNT times pread, one after the other; says the time taken
//	runs LEN STEP COUNT  COUNT times pread of LEN bytes, STEP apart; says the time taken
//	burst OFF STEP COUNT COUNT times pread of a byte, STEP apart, all at once; says the bytes or an error
//	write OFF LEN BYTE   pwrite
//	truncate LEN, punch OFF LEN
//	die OFF              touch without a handler
//	where                address of the mapping
//	cpu                  processor time so far, in ns
//	fds                  how many descriptors are of /dev/fuse
//	serve DIR            be the memtap instead, with one image "memory" of DIR
const childEnv = "MEMTAP_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		runChild()
		return
	}
	os.Exit(m.Run())
}

// child is a running child process.
type child struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	err   strings.Builder
	ended bool
}

func startChild(t testing.TB) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), childEnv+"=1", "GORACE=atexit_sleep_ms=0")
	c.cmd.Stderr = &c.err
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	return c
}

// opened starts a child that has a file open and mapped.
func opened(t testing.TB, path string) *child {
	t.Helper()
	c := startChild(t)
	c.want("ok", "open %s", path)
	return c
}

// do sends a command and returns the answer.
func (c *child) do(format string, args ...any) string {
	c.t.Helper()
	c.ask(format, args...)
	return c.answer()
}

// ask sends a command.
func (c *child) ask(format string, args ...any) { fmt.Fprintf(c.in, format+"\n", args...) }

// answer waits for the answer. A child that hangs is the failure that these tests look for.
func (c *child) answer() string {
	c.t.Helper()
	timeout := time.AfterFunc(20*time.Second, func() { c.cmd.Process.Kill() })
	defer timeout.Stop()
	line, err := c.out.ReadString('\n')
	if err != nil {
		return "died: " + c.wait()
	}
	return strings.TrimSpace(line)
}

func (c *child) want(answer, format string, args ...any) {
	c.t.Helper()
	if got := c.do(format, args...); got != answer {
		c.t.Fatalf("%s: child says %q, want %q", fmt.Sprintf(format, args...), got, answer)
	}
}

// wait waits for the end of the child and returns what it wrote to stderr.
func (c *child) wait() string {
	if !c.ended {
		c.ended = true
		c.in.Close()
		c.cmd.Wait()
	}
	return c.err.String()
}

func (c *child) stop() {
	if !c.ended {
		c.cmd.Process.Kill()
		c.wait()
	}
}

func runChild() {
	debug.SetPanicOnFault(true)
	var file *os.File
	var mem []byte
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var verb, path string
		var a, b, n int64
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		if verb == "open" || verb == "serve" {
			path = rest
		} else {
			fmt.Sscan(rest, &a, &b, &n)
		}
		fmt.Println(childCommand(&file, &mem, verb, path, a, b, n))
	}
}

func childCommand(file **os.File, mem *[]byte, verb, path string, a, b, n int64) (answer string) {
	defer func() {
		if recover() != nil {
			answer = "fault"
		}
	}()
	result := func(err error) string {
		var errno unix.Errno
		if errors.As(err, &errno) {
			return unix.ErrnoName(errno)
		}
		if err != nil {
			return err.Error()
		}
		return "ok"
	}
	switch verb {
	case "open":
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return result(err)
		}
		st, err := f.Stat()
		if err != nil {
			return result(err)
		}
		*file = f
		*mem, err = unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		return result(err)
	case "get":
		return string((*mem)[a])
	case "put":
		(*mem)[a] = byte(b)
		return "ok"
	case "walk":
		start := time.Now()
		for i := range n {
			sink += (*mem)[a+i*b]
		}
		return time.Since(start).String()
	case "read":
		buf := make([]byte, b)
		got, err := (*file).ReadAt(buf, a)
		if err != nil && err != io.EOF {
			return result(err)
		}
		return fmt.Sprintf("%c %d", buf[0], got)
	case "reads":
		buf := make([]byte, a)
		start := time.Now()
		for i := range b {
			if _, err := (*file).ReadAt(buf, i*a); err != nil {
				return result(err)
			}
		}
		return time.Since(start).String()
	case "runs":
		buf := make([]byte, a)
		start := time.Now()
		for i := range n {
			if _, err := (*file).ReadAt(buf, i*b); err != nil {
				return result(err)
			}
		}
		return time.Since(start).String()
	case "burst":
		said := make([]byte, n)
		var failed atomic.Pointer[error]
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if _, err := (*file).ReadAt(said[i:i+1], a+i*b); err != nil {
					failed.Store(&err)
				}
			})
		}
		wg.Wait()
		if err := failed.Load(); err != nil {
			return result(*err)
		}
		return string(said)
	case "write":
		buf := make([]byte, b)
		for i := range buf {
			buf[i] = byte(n)
		}
		_, err := (*file).WriteAt(buf, a)
		return result(err)
	case "truncate":
		return result((*file).Truncate(a))
	case "punch":
		return result(unix.Fallocate(int((*file).Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, a, b))
	case "sync":
		return result((*file).Sync())
	case "die":
		debug.SetPanicOnFault(false)
		return string((*mem)[a])
	case "where":
		return fmt.Sprint(uintptr(unsafe.Pointer(&(*mem)[0])))
	case "cpu":
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			return result(err)
		}
		return fmt.Sprint(u.Utime.Nano() + u.Stime.Nano())
	case "fds":
		count := 0
		links, _ := filepath.Glob("/proc/self/fd/*")
		for _, l := range links {
			if to, _ := os.Readlink(l); to == "/dev/fuse" {
				count++
			}
		}
		return fmt.Sprint(count)
	case "serve":
		s, err := slice.Open(filepath.Join(path, "ram"), filepath.Join(path, "ram.map"))
		if err != nil {
			return result(err)
		}
		im, err := slice.NewImage(s)
		if err != nil {
			return result(err)
		}
		tap, err := Mount(context.Background(), filepath.Join(path, "mnt"), Options{})
		if err != nil {
			return result(err)
		}
		_, err = tap.AddMemory("memory", im)
		return result(err)
	}
	return "no such command"
}

var sink byte
