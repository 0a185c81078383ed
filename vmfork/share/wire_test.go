package share

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestWireWakesWhoWaits(t *testing.T) {
	for name, end := range map[string]func(*wire){
		"close":   func(w *wire) { w.Close(); w.Close() },
		"abandon": func(w *wire) { w.abandon(); w.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			conn, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			peer, err := listener.Accept() // who neither reads nor writes
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			w, err := newWire(conn)
			if err != nil {
				t.Fatal(err)
			}
			over := make(chan error, 2)
			go func() {
				_, err := w.Read(make([]byte, 1))
				over <- err
			}()
			go func() {
				_, err := w.Write(make([]byte, 64<<20))
				over <- err
			}()
			time.Sleep(3 * writePatience / 2)
			select {
			case err := <-over:
				t.Fatalf("nobody ended it: %v", err)
			default:
			}
			end(w)
			for range 2 {
				select {
				case err := <-over:
					if err == nil {
						t.Error("a connection that was ended carried everything")
					}
				case <-time.After(20 * time.Second):
					t.Fatal("whoever waits still does")
				}
			}
			if _, err := w.Write([]byte{1}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a write afterwards: %v", err)
			}
			if name == "close" {
				_ = peer.SetReadDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.Copy(io.Discard, peer); err != nil && !errors.Is(err, io.EOF) {
					t.Logf("the peer sees %v", err) // a reset, if it had not read all
				}
			}
		})
	}
}

func TestWireNeedsASocket(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	if _, err := newWire(a); err == nil {
		t.Error("a pipe in memory was taken for a socket")
	}
}
