// Package storetest is a XenStore for tests: a tree in memory, and connections to
// it. It knows values, lists, watches and permissions, which it keeps and does not
// enforce; no transactions, and no domains that come and go.
//
// Locking: Server.mu is held over each request and the events that it makes. Events
// are queued for a goroutine of each connection, so nothing waits under it.
package storetest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
)

// Server is the tree.
type Server struct {
	mu          sync.Mutex
	values      map[string]string
	permissions map[string]string
	watches     []watch
}

type watch struct {
	out         *queue
	path, token string
}

// New makes an empty one.
func New() *Server {
	return &Server{values: map[string]string{}, permissions: map[string]string{}}
}

// Connect makes a connection to it, as store.New takes one.
func (s *Server) Connect() net.Conn {
	mine, theirs := net.Pipe()
	q := &queue{more: make(chan struct{}, 1), end: make(chan struct{})}
	go q.send(mine)
	go func() {
		defer close(q.end)
		defer s.forget(q, "", "")
		in := bufio.NewReader(mine)
		for {
			var h [16]byte
			if _, err := io.ReadFull(in, h[:]); err != nil {
				return
			}
			body := make([]byte, binary.LittleEndian.Uint32(h[12:]))
			if _, err := io.ReadFull(in, body); err != nil {
				return
			}
			s.serve(q, binary.LittleEndian.Uint32(h[:]), binary.LittleEndian.Uint32(h[4:]), body)
		}
	}()
	return theirs
}

// Permissions are those that a path was given, as they were written.
func (s *Server) Permissions(path string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.permissions[path]
}

// The requests, as in Xen's public header io/xs_wire.h.
const (
	directory, read, watchPath, unwatch  = 1, 2, 4, 5
	write, mkdir, remove, setPermissions = 11, 12, 13, 14
	event, failure                       = 15, 16
)

func (s *Server) serve(q *queue, kind, number uint32, body []byte) {
	path, rest, _ := bytes.Cut(body, []byte{0})
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, name := s.answer(q, kind, string(path), string(rest))
	if name != "" {
		q.put(failure, number, name+"\x00")
		return
	}
	q.put(kind, number, answer)
	switch kind {
	case write, mkdir, remove:
		s.changed(string(path))
	case watchPath:
		token, _, _ := strings.Cut(string(rest), "\x00")
		q.put(event, 0, string(path)+"\x00"+token+"\x00")
	}
}

// answer does what a request asks for, and returns the answer, or an error's name.
func (s *Server) answer(q *queue, kind uint32, path, rest string) (answer, failed string) {
	_, there := s.values[path]
	switch kind {
	case read, directory, setPermissions:
		if !there {
			return "", "ENOENT"
		}
	case remove:
		if !there {
			return "", "ENOENT"
		}
	}
	switch kind {
	case read:
		return s.values[path], ""
	case directory:
		var names []string
		for p := range s.values {
			if below, ok := strings.CutPrefix(p, path+"/"); ok && !strings.Contains(below, "/") {
				names = append(names, below+"\x00")
			}
		}
		slices.Sort(names)
		return strings.Join(names, ""), ""
	case write, mkdir:
		for at := path; ; {
			i := strings.LastIndexByte(at, '/')
			if i <= 0 {
				break
			}
			if at = at[:i]; s.values[at] == "" {
				s.values[at] = ""
			}
		}
		if kind == write {
			s.values[path] = rest
		} else if !there {
			s.values[path] = ""
		}
		return "OK\x00", ""
	case remove:
		for p := range s.values {
			if p == path || strings.HasPrefix(p, path+"/") {
				delete(s.values, p)
			}
		}
		return "OK\x00", ""
	case setPermissions:
		s.permissions[path] = rest
		return "OK\x00", ""
	case watchPath, unwatch:
		token, _, _ := strings.Cut(rest, "\x00")
		s.drop(q, path, token)
		if kind == watchPath {
			s.watches = append(s.watches, watch{q, path, token})
		}
		return "OK\x00", ""
	}
	return "", "ENOSYS"
}

// changed tells those that watch a path, or what is above or, when it was removed,
// below it.
func (s *Server) changed(path string) {
	for _, w := range s.watches {
		if w.path == path || strings.HasPrefix(path, w.path+"/") || strings.HasPrefix(w.path, path+"/") {
			w.out.put(event, 0, path+"\x00"+w.token+"\x00")
		}
	}
}

func (s *Server) forget(q *queue, path, token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(q, path, token)
}

// drop drops a watch, or all of a connection's if path is "".
func (s *Server) drop(q *queue, path, token string) {
	s.watches = slices.DeleteFunc(s.watches, func(w watch) bool {
		return w.out == q && (path == "" || w.path == path && w.token == token)
	})
}

// queue is what is to be sent on a connection.
type queue struct {
	mu   sync.Mutex
	buf  []byte
	more chan struct{} // has room for one: there may be something in buf
	end  chan struct{}
}

func (q *queue) put(kind, number uint32, body string) {
	q.mu.Lock()
	for _, v := range []uint32{kind, number, 0, uint32(len(body))} {
		q.buf = binary.LittleEndian.AppendUint32(q.buf, v)
	}
	q.buf = append(q.buf, body...)
	q.mu.Unlock()
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *queue) send(conn net.Conn) {
	defer conn.Close()
	for {
		select {
		case <-q.more:
		case <-q.end:
			return
		}
		q.mu.Lock()
		b := q.buf
		q.buf = nil
		q.mu.Unlock()
		if _, err := conn.Write(b); err != nil {
			return
		}
	}
}
