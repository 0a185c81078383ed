package link_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link/linktest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

// across is a link from the first to the second host of a cluster, with a network and a kernel's TCP between them.
func across(t *testing.T, opts ...link.Option) (c *testcluster.Cluster, dialled, listened *link.Link) {
	t.Helper()
	c = testcluster.ForTest(t, testcluster.Options{Hosts: 2})
	a, b := linktest.Identity(t), linktest.Identity(t)
	var l *link.Listener
	err := c.Host(1).Do(func() (err error) {
		l, err = link.Listen(t.Context(), b, netip.AddrPortFrom(c.Host(1).Address, 0).String(), opts...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.AllowHost("host0", a.Fingerprint())
	err = c.Host(0).Do(func() (err error) {
		dialled, err = link.Dial(within(t), a, l.Addr().String(), b.Fingerprint(), append(opts, link.Host("host1"))...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close() })
	if listened, err = l.AcceptLink(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listened.Close() })
	if dialled.LocalAddr().Addr() != c.Host(0).Address || dialled.RemoteAddr().Addr() != c.Host(1).Address {
		t.Errorf("the link is from %v to %v", dialled.LocalAddr(), dialled.RemoteAddr())
	}
	return c, dialled, listened
}

func TestHostThatIsCutOffForAMoment(t *testing.T) {
	c, a, b := across(t)
	go echo(b)
	for _, long := range []time.Duration{time.Second, 2 * time.Second} {
		if err := c.Cut(1); err != nil {
			t.Fatal(err)
		}
		s, err := a.Open(within(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		answer := make(chan error)
		go func() {
			_, err := exchange(s, strings.Repeat("across", 100_000))
			answer <- err
		}()
		select {
		case err := <-answer:
			t.Fatalf("an answer came through the cut: %v", err)
		case <-time.After(long):
		}
		if err := c.Heal(1); err != nil {
			t.Fatal(err)
		}
		if err := <-answer; err != nil {
			t.Errorf("after %v: %v", long, err)
		}
	}
	if a.Err() != nil || b.Err() != nil {
		t.Errorf("the link ended: %v, %v", a.Err(), b.Err())
	}
}

func TestHostThatIsGone(t *testing.T) {
	for name, lose := range map[string]func(*testcluster.Cluster) error{
		"cut off":       func(c *testcluster.Cluster) error { return c.Cut(1) },
		"cut off there": func(c *testcluster.Cluster) error { return c.Cut(0) },
	} {
		t.Run(name, func(t *testing.T) {
			c, a, b := across(t, link.Silence(2*time.Second))
			s, err := a.Open(within(t), 1)
			if err != nil {
				t.Fatal(err)
			}
			if err := lose(c); err != nil {
				t.Fatal(err)
			}
			wrote := make(chan error)
			go func() { // a write that waits for a host that is gone ends, too
				_, err := s.Write(make([]byte, 16<<20))
				wrote <- err
			}()
			if err := ended(t, a); !errors.Is(err, link.ErrSilent) || err.Error() != "host host1 has not answered for 2s" {
				t.Errorf("%v", err)
			}
			if err := ended(t, b); !errors.Is(err, link.ErrSilent) || err.Error() != "host host0 has not answered for 2s" {
				t.Errorf("%v", err)
			}
			if err := <-wrote; !errors.Is(err, link.ErrSilent) {
				t.Errorf("the write: %v", err)
			}
		})
	}
}
