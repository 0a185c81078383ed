package share

import (
	"context"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// FuzzRelay gives a relay whatever bytes from the kernel, from the server, and
// from the server of the clone. It must neither panic nor hang.
func FuzzRelay(f *testing.F) {
	hello := encode(0, &ninep.Tversion{MaxSize: minMessage, Version: ninep.Version})
	agreed := encode(0, &ninep.Rversion{MaxSize: minMessage, Version: ninep.Version})
	attach := encode(1, &ninep.Tattach{FID: 1, AuthFID: ninep.NoFID})
	attached := encode(1, &ninep.Rattach{})
	walk := encode(2, &ninep.Twalk{FID: 1, NewFID: 2, Names: []string{"a", "..", "b"}})
	walked := encode(2, &ninep.Rwalk{QIDs: make([]ninep.QID, 3)})
	all := func(messages ...[]byte) (b []byte) {
		for _, m := range messages {
			b = append(b, m...)
		}
		return b
	}
	f.Add(all(hello, attach, walk), all(agreed, attached, walked), all(agreed, encode(0, &ninep.Rattach{}), encode(0, &ninep.Rwalk{})))
	f.Add(all(hello, attach), all(agreed), all(agreed, attached))
	f.Add(all(hello, encode(9, &ninep.Tflush{OldTag: 9})), all(agreed, encode(9, &ninep.Rflush{})), []byte{})
	f.Add([]byte{7, 0, 0, 0, 120, 0, 0}, []byte{7, 0, 0, 0, 121, 0, 0}, []byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, kernel, server, clone []byte) {
		near, far := sockets(t)
		link, theirs := sockets(t)
		again, theirsAgain := sockets(t)
		for _, c := range []net.Conn{near, theirs, theirsAgain} {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			go func() { _, _ = io.Copy(io.Discard, c) }()
		}
		r := begin(t, far, link)
		if _, err := near.Write(kernel); err == nil {
			_, _ = theirs.Write(server)
		}
		_, _ = theirsAgain.Write(clone)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_ = r.reconnect(ctx, func(context.Context) (net.Conn, error) { return again, nil })
		near.Close()
		theirs.Close()
		theirsAgain.Close()
		select {
		case <-r.ended:
		case <-time.After(20 * time.Second):
			t.Fatal("the relay does not end")
		}
	})
}

// FuzzBook has a client do whatever it likes, and then be copied. Each fid is
// the file afterwards that it was before, or stale.
func FuzzBook(f *testing.F) {
	f.Add([]byte{1, 0, 1, 1, 0, 3, 1, 2, 6, 1, 0, 2, 18, 1})
	f.Add([]byte{4, 0, 0, 66, 2, 255, 1, 0, 19, 0, 1, 1, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 2, 2, 4, 9, 3, 2, 0, 0, 5, 2, 0, 200})
	f.Add([]byte{15, 0, 0, 0, 16, 0, 2, 0, 5, 17, 0, 3, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newService(t, false)
		if err := os.Mkdir(s.path("dir"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, s.path("a"), "text")
		c, r := s.relayed()
		for _, m := range script(in) {
			if m.Type()%2 == 1 {
				continue // the server would hang up
			}
			_, _ = c.call(m)
		}
		before := map[uint32]uint64{}
		r.mu.Lock()
		known := r.book.hello != nil
		for fid := range r.book.fids {
			before[fid] = 0
		}
		r.mu.Unlock()
		if !known {
			return
		}
		for fid := range before {
			if m, err := c.call(&ninep.Tgetattr{FID: fid}); err == nil {
				before[fid] = m.(*ninep.Rgetattr).QID.Path
			} else {
				t.Errorf("the book has fid %d, the server says: %v", fid, err)
			}
		}
		fork(t, s, r)
		for fid, file := range before {
			m, err := c.call(&ninep.Tgetattr{FID: fid})
			r.mu.Lock()
			dead := r.book.isDead(fid)
			r.mu.Unlock()
			if (err == nil) == dead || err == nil && m.(*ninep.Rgetattr).QID.Path != file {
				t.Errorf("fid %d was file %d, and is %+v, %v", fid, file, m, err)
			}
		}
	})
}
