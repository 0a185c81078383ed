// Package linktest makes links for the tests of those that use them.
package linktest

import (
	"context"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
)

// Pair is a link over this machine's loopback: the end that dialled, for which the peer is the host "listener", and the
// end that listened, for which it is the host "dialler". Both are closed with the test.
func Pair(t testing.TB, opts ...link.Option) (dialled, listened *link.Link) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	a, b := Identity(t), Identity(t)
	l, err := link.Listen(context.Background(), b, "127.0.0.1:0", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.AllowHost("dialler", a.Fingerprint())
	dialled, err = link.Dial(ctx, a, l.Addr().String(), b.Fingerprint(), append(opts, link.Host("listener"))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close() })
	listened, err = l.AcceptLink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listened.Close() })
	return dialled, listened
}

// Identity is a new one.
func Identity(t testing.TB) *link.Identity {
	t.Helper()
	id, err := link.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}
