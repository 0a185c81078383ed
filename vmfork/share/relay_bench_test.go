package share

import (
	"net"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// BenchmarkWay is the cost of a request on the two ways of a mount: to the
// server, and through the process of a relay. There is one request at a time,
// which is how a process reads or looks for files.
func BenchmarkWay(b *testing.B) {
	ways := map[string]func(*service) net.Conn{
		"direct": func(s *service) net.Conn {
			conn, err := Dial(b.Context(), mustAddr(b, s.addr), s.token)
			if err != nil {
				b.Fatal(err)
			}
			return conn
		},
		"relay": func(s *service) net.Conn {
			p, kernel, err := startRelay(b.Context(), Mounting{Server: mustAddr(b, s.addr), Token: s.token})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(p.end)
			defer kernel.Close()
			conn, err := net.FileConn(kernel)
			if err != nil {
				b.Fatal(err)
			}
			return conn
		},
	}
	for _, way := range []string{"direct", "relay"} {
		b.Run("way="+way, func(b *testing.B) {
			s := newService(b, false)
			write(b, s.path("file"), string(make([]byte, 64<<20)))
			c := newClient(b, ways[way](s))
			c.hello(mountMessage)
			f := c.open(ninep.OpenReadOnly, "file")
			b.Run("read=128K", func(b *testing.B) {
				b.SetBytes(preferredBlock)
				for i := range b.N {
					must[*ninep.Rread](c, &ninep.Tread{FID: f, Offset: uint64(i) % 512 * preferredBlock, Count: preferredBlock})
				}
			})
			b.Run("stat", func(b *testing.B) {
				for range b.N {
					c.stat(f)
				}
			})
		})
	}
}
