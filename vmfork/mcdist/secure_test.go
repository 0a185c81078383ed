package mcdist

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link/linktest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// linked makes two nodes whose streams are as in a job: of a link, or connections beside it.
func linked(t testing.TB, open func(l *link.Link, ctx context.Context) (net.Conn, error)) (nodes [2]*Node) {
	t.Helper()
	a, b := linktest.Pair(t)
	links := [2]*link.Link{a, b}
	for i := range nodes {
		n, err := New(t.Context(), Config{Self: i, Hosts: make([]Host, 2), Mode: Unicast,
			Dial: func(ctx context.Context, _ int) (net.Conn, error) { return open(links[i], ctx) }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		nodes[i] = n
		go func() {
			for {
				_, conn, err := links[i].Accept()
				if err != nil {
					return
				}
				n.Accept(conn, 1-i)
			}
		}()
	}
	return nodes
}

// ways is how a stream can be had.
var ways = map[string]func(l *link.Link, ctx context.Context) (net.Conn, error){
	"streams":     func(l *link.Link, ctx context.Context) (net.Conn, error) { return l.Open(ctx, 'm') },
	"connections": func(l *link.Link, ctx context.Context) (net.Conn, error) { return l.Dial(ctx, 'm') },
}

func TestOverALink(t *testing.T) {
	for name, open := range ways {
		t.Run(name, func(t *testing.T) {
			nodes := linked(t, open)
			m := newMemory(3000)
			id := testID()
			if err := nodes[0].Serve(id, m); err != nil {
				t.Fatal(err)
			}
			s := newCopy(t, m)
			f, err := nodes[1].Open(0, id, m.Size(), s)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := f.Prefetch(within(t), blocksFrom(0, 2900)); err != nil {
					t.Error(err)
				}
			})
			for i := range int64(30) {
				wg.Go(func() {
					if err := f.Bring(within(t), i*99, 8); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Go(func() {
				if err := nodes[1].Publish(id, m.data[:10000], []int{0}); err != nil {
					t.Error(err)
				}
				if _, err := nodes[0].Receive(within(t), 1, id); err != nil {
					t.Error(err)
				}
			})
			wg.Wait()
			s.has(0, 2900)
		})
	}
}

// BenchmarkBringOverALink is BenchmarkBring with TLS.
func BenchmarkBringOverALink(b *testing.B) {
	for name, open := range ways {
		b.Run(name, func(b *testing.B) {
			nodes := linked(b, open)
			r := &repeated{newMemory(4096), 1 << 28}
			id := testID()
			if err := nodes[0].Serve(id, r); err != nil {
				b.Fatal(err)
			}
			f, err := nodes[1].Open(0, id, r.Size(), nowhere{})
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.SetBytes(slice.BlockSize)
			for i := int64(0); b.Loop(); i++ {
				if err := f.Bring(b.Context(), i, 1); err != nil {
					b.Fatal(err)
				}
			}
			report(b, nodes[1])
		})
	}
}
