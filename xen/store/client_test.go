package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/store/storetest"
)

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, s *storetest.Server) *Client {
	c := New(s.Connect())
	t.Cleanup(func() { c.Close() })
	return c
}

func TestValues(t *testing.T) { values(t, connect(t, storetest.New()), "/test") }

// values is what must hold of the real one, too.
func values(t *testing.T, c *Client, root string) {
	ctx := limit(t)
	at := root + "/device"
	if _, err := c.Read(ctx, at); !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "read "+at+" in XenStore: ") {
		t.Errorf("a value that is not there: %v", err)
	}
	if err := c.Write(ctx, at+"/console/1/state", "4"); err != nil {
		t.Fatal(err)
	}
	if err := c.Mkdir(ctx, at+"/vif"); err != nil {
		t.Fatal(err)
	}
	if v, err := c.Read(ctx, at+"/console/1/state"); v != "4" || err != nil {
		t.Errorf("the value is %q (%v)", v, err)
	}
	if names, err := c.List(ctx, at); !slices.Equal(names, []string{"console", "vif"}) || err != nil {
		t.Errorf("there are %v (%v)", names, err)
	}
	if names, err := c.List(ctx, at+"/vif"); len(names) != 0 || err != nil {
		t.Errorf("in an empty place there are %v (%v)", names, err)
	}
	if err := c.SetPermissions(ctx, at, Permission{None, 0}, Permission{ReadOnly, 3}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := c.Remove(ctx, at); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Read(ctx, at+"/console/1/state"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a value that was removed: %v", err)
	}
	for _, path := range []string{"", "a\x00b", strings.Repeat("/a", 2000)} {
		if _, err := c.Read(ctx, path); err == nil || !strings.HasSuffix(err.Error(), "that is no path") {
			t.Errorf("path %.20q: %v", path, err)
		}
	}
	if err := c.Write(ctx, root+"/big", strings.Repeat("x", 5000)); err == nil || !strings.Contains(err.Error(), "longer than 4096") {
		t.Errorf("a value that is too long: %v", err)
	}
}

func TestPermissionsAreWrittenAsXenStoreReadsThem(t *testing.T) {
	s := storetest.New()
	c := connect(t, s)
	if err := c.Mkdir(limit(t), "/a"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetPermissions(limit(t), "/a", Permission{None, 7}, Permission{ReadWrite, 0}); err != nil {
		t.Fatal(err)
	}
	if got := s.Permissions("/a"); got != "n7\x00b0\x00" {
		t.Errorf("they are %q", got)
	}
}

func TestWatch(t *testing.T) {
	s := storetest.New()
	watches(t, connect(t, s), connect(t, s), "/test")
}

// watches is what must hold of the real one, too.
func watches(t *testing.T, c, other *Client, root string) {
	ctx := limit(t)
	w, err := c.Watch(ctx, root+"/a")
	if err != nil {
		t.Fatal(err)
	}
	heard := func() {
		t.Helper()
		select {
		case <-w.Changed():
		case <-ctx.Done():
			t.Fatal("waited for a change")
		}
	}
	heard() // the first, which always comes
	if err := other.Write(ctx, root+"/a/b", "1"); err != nil {
		t.Fatal(err)
	}
	heard()
	if err := w.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := other.Write(ctx, root+"/a/b", "2"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(ctx, root+"/a/b"); err != nil { // an event would have come before its answer
		t.Fatal(err)
	}
	select {
	case <-w.Changed():
		t.Error("a watch that was closed hears")
	default:
	}
	go func() {
		for i := range 4 {
			other.Write(ctx, root+"/state", fmt.Sprint(i+1))
		}
	}()
	if v, err := c.Await(ctx, root+"/state", "the other side", func(v string) bool { return v >= "3" }); err != nil || v < "3" {
		t.Errorf("waited for is %q (%v)", v, err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := c.Await(short, root+"/state", "the other side", func(string) bool { return false }); !errors.Is(err, context.DeadlineExceeded) ||
		!strings.HasPrefix(err.Error(), "wait for the other side: ") {
		t.Errorf("waited in vain: %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	c := connect(t, storetest.New())
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			path := fmt.Sprintf("/%d", i)
			if err := c.Write(limit(t), path, path); err != nil {
				t.Error(err)
			}
			if v, err := c.Read(limit(t), path); v != path || err != nil {
				t.Errorf("%s has %q (%v)", path, v, err)
			}
		})
	}
	wg.Wait()
}

// server answers each request as it is told to.
func server(t *testing.T, answer func(m message) []byte) *Client {
	mine, theirs := net.Pipe()
	go func() {
		defer mine.Close()
		for {
			m, err := readMessage(mine)
			if err != nil {
				return
			}
			b := answer(m)
			if b == nil {
				return
			}
			if _, err := mine.Write(b); err != nil {
				return
			}
		}
	}()
	c := New(theirs)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestBadAnswers(t *testing.T) {
	for name, answer := range map[string]func(m message) []byte{
		"it hangs up":            func(message) []byte { return nil },
		"half an answer":         func(m message) []byte { return m.append(nil)[:10] },
		"a huge body":            func(m message) []byte { return append(m.append(nil)[:12], 0xff, 0xff, 0, 0) },
		"another type":           func(m message) []byte { m.kind = kindWrite; return m.append(nil) },
		"an event without token": func(m message) []byte { return message{kindWatchEvent, 0, []byte("/a\x00")}.append(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			mine, theirs := net.Pipe()
			go func() {
				m, err := readMessage(mine)
				if err == nil {
					mine.Write(answer(m))
				}
				mine.Close()
			}()
			c := New(theirs)
			defer c.Close()
			_, err := c.Read(limit(t), "/a")
			if err == nil || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is %v", err)
			}
			if _, again := c.Read(limit(t), "/a"); again == nil {
				t.Error("it goes on")
			}
			select {
			case <-c.Ended():
			case <-limit(t).Done():
				t.Error("waited for the connection to end")
			}
		})
	}
}

func TestErrors(t *testing.T) {
	name := make(chan string, 1)
	c := server(t, func(m message) []byte { return message{kindError, m.number, []byte(<-name)}.append(nil) })
	for said, want := range map[string]error{"EACCES\x00": os.ErrPermission, "EAGAIN\x00": syscall.EAGAIN, "EEXIST\x00": os.ErrExist} {
		name <- said
		if err := c.Write(limit(t), "/a", ""); !errors.Is(err, want) {
			t.Errorf("%q is %v", said, err)
		}
	}
	name <- "EODD\x00"
	if err := c.Write(limit(t), "/a", ""); err == nil || !strings.HasSuffix(err.Error(), `XenStore's error "EODD"`) {
		t.Errorf("the error is %v", err)
	}
}

// Whoever leaves before the answer comes does not disturb others.
func TestContexts(t *testing.T) {
	late := make(chan struct{})
	c := server(t, func(m message) []byte {
		if string(m.body) == "/late\x00" {
			<-late
		}
		return m.append(nil)
	})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.Read(ctx, "/late"); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	close(late)
	if v, err := c.Read(limit(t), "/a"); v != "/a\x00" || err != nil {
		t.Errorf("the next one read %q (%v)", v, err)
	}
	if _, err := c.Read(ctx, "/a"); !errors.Is(err, context.Canceled) {
		t.Errorf("in a context that is over: %v", err)
	}
	c.Close()
	if _, err := c.Read(limit(t), "/a"); !errors.Is(err, ErrClosed) {
		t.Errorf("of a client that was closed: %v", err)
	}
}

func TestReal(t *testing.T) {
	c, err := Open(t.Context())
	if errors.Is(err, hypervisor.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	other, err := Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	root := fmt.Sprintf("/tool/mpirun-sf-test-%d", os.Getpid())
	defer c.Remove(t.Context(), root)
	values(t, c, root)
	watches(t, c, other, root)
}

func FuzzReadMessage(f *testing.F) {
	f.Add(message{kindRead, 7, []byte("/a\x00")}.append(nil))
	f.Add(message{kindWatchEvent, 0, []byte("/a\x00token\x00")}.append(nil))
	f.Add(message{kindError, 1, []byte("ENOENT\x00")}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again, err := readMessage(bytes.NewReader(m.append(nil))); err != nil || again.kind != m.kind || again.number != m.number || !bytes.Equal(again.body, m.body) {
			t.Errorf("%v came back as %v (%v)", m, again, err)
		}
		parseError(m.body)
		c := &Client{watches: map[string]*Watch{}}
		c.event(m.body)
	})
}
