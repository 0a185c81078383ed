package launch

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

var first = member{"t1", 1}

// meet lets both sides talk, and returns what each makes of it.
func meet(clone, parent key, who member) (admitted member, parentErr, cloneErr error) {
	a, b := net.Pipe()
	met := make(chan error, 1)
	go func() { met <- clone.introduce(a, who) }()
	admitted, parentErr = parent.admit(b)
	return admitted, parentErr, <-met
}

func TestHandshake(t *testing.T) {
	k := newKey()
	for _, who := range []member{{"t", 1}, {"job-t77", 77}, {strings.Repeat("t", api.MaxName), 65000}} {
		if got, err, cloneErr := meet(k, k, who); got != who || err != nil || cloneErr != nil {
			t.Errorf("clone %v was admitted as %v (%v, %v)", who, got, err, cloneErr)
		}
	}
}

func TestHandshakeWithAnotherKey(t *testing.T) {
	k := newKey()
	for i := range k {
		other := k
		other[i] ^= 0x80
		if _, err, cloneErr := meet(k, other, first); err == nil || !errors.Is(cloneErr, errStranger) {
			t.Fatalf("keys that differ in byte %d: %v, %v", i, err, cloneErr)
		}
	}
}

// tap keeps what a clone says.
type tap struct {
	net.Conn
	said bytes.Buffer
}

func (t *tap) Write(p []byte) (int, error) { t.said.Write(p); return t.Conn.Write(p) }

// What a clone said once opens no second connection.
func TestHandshakeReplayed(t *testing.T) {
	k := newKey()
	a, b := net.Pipe()
	heard := &tap{Conn: a}
	met := make(chan error, 1)
	go func() { met <- k.introduce(heard, first) }()
	if _, err := k.admit(b); err != nil || <-met != nil {
		t.Fatal(err)
	}
	a, b = net.Pipe()
	go io.Copy(io.Discard, a)
	go a.Write(heard.said.Bytes())
	if id, err := k.admit(b); !errors.Is(err, errStranger) {
		t.Errorf("a replay was admitted as %v (%v)", id, err)
	}
	// Nor can the parent's answer be sent back as the clone's.
	a, b = net.Pipe()
	go func() {
		a.Write(hello{member: first}.bytes())
		answer := make([]byte, 64)
		io.ReadFull(a, answer)
		a.Write(answer[32:])
	}()
	if id, err := k.admit(b); !errors.Is(err, errStranger) {
		t.Errorf("a reflection was admitted as %v (%v)", id, err)
	}
}

func TestHandshakeTruncated(t *testing.T) {
	k := newKey()
	for n := range helloSize {
		a, b := net.Pipe()
		go func() { a.Write(hello{member: first}.bytes()[:n]); a.Close() }()
		if _, err := k.admit(b); err == nil {
			t.Fatalf("%d bytes were enough", n)
		}
	}
	for _, n := range []int{0, 1, 32, 63} {
		a, b := net.Pipe()
		go func() {
			io.ReadFull(b, make([]byte, helloSize))
			b.Write(make([]byte, n))
			b.Close()
		}()
		if err := k.introduce(a, first); err == nil {
			t.Fatalf("%d bytes of the parent's were enough", n)
		}
	}
}

// Who is silent is not waited for longer than the limit, on either side.
func TestHandshakeSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKey()
		begin := time.Now()
		a, b := net.Pipe()
		defer a.Close()
		if _, err := k.admit(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the parent ended with %v", err)
		}
		c, d := net.Pipe()
		defer d.Close()
		go io.ReadFull(d, make([]byte, helloSize))
		if err := k.introduce(c, first); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the clone ended with %v", err)
		}
		if took := time.Since(begin); took != 2*handshakeLimit {
			t.Errorf("both together took %v", took)
		}
	})
}

func FuzzParseHello(f *testing.F) {
	f.Add(hello{member: first}.bytes())
	f.Add(hello{member: member{"t-2", 65000}}.bytes())
	f.Add(hello{}.bytes())
	f.Add([]byte(helloMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err == nil && !bytes.Equal(h.bytes(), b) {
			t.Errorf("%x is %+v", b, h)
		}
	})
}

// Whatever somebody without the key sends, it is not admitted.
func FuzzAdmit(f *testing.F) {
	f.Add(hello{member: first}.bytes())
	f.Add(append(hello{member: first}.bytes(), make([]byte, 32)...))
	f.Add(bytes.Repeat([]byte("x"), 200))
	k := newKey()
	f.Fuzz(func(t *testing.T, b []byte) {
		a, c := net.Pipe()
		go io.Copy(io.Discard, a)
		go func() { a.Write(b); a.Close() }()
		if id, err := k.admit(c); err == nil {
			t.Errorf("%x was admitted as %v", b, id)
		}
	})
}
