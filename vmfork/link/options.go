package link

import (
	"net"
	"time"
)

// An Option changes what [Listen] or [Dial] do.
type Option func(*options)

type options struct {
	silence   time.Duration
	handshake time.Duration
	host      string
	purpose   string
	protocol  int // another than Protocol only in tests
	most      int // handshakes at once
	refused   func(net.Addr, error)
}

func optionsOf(given []Option) options {
	o := options{
		silence:   10 * time.Second,
		handshake: 10 * time.Second,
		purpose:   "mpirun-sf",
		protocol:  Protocol,
		most:      maxHandshakes,
		refused:   func(net.Addr, error) {},
	}
	for _, set := range given {
		set(&o)
	}
	return o
}

// Silence is how long nothing may come from a peer that lives, 10 s unless told. Both ends should be told the same, for
// an end asks the other a few times in its own.
func Silence(d time.Duration) Option {
	return func(o *options) { o.silence = max(d, 50*time.Millisecond) }
}

// HandshakeLimit is how long a connection may take to become a link, 10 s unless told.
func HandshakeLimit(d time.Duration) Option { return func(o *options) { o.handshake = d } }

// Host names the peer of [Dial], for errors. Without it, it is known by its address.
func Host(name string) Option { return func(o *options) { o.host = name } }

// Purpose names what the link is for, in the handshake: ends with different purposes do not come together. It is
// "mpirun-sf", the daemons of a job, unless told.
func Purpose(name string) Option { return func(o *options) { o.purpose = name } }

// Refused is told of each connection that a [Listener] closed instead of making it a link, and why. It may be called from
// many goroutines.
func Refused(tell func(from net.Addr, why error)) Option {
	return func(o *options) { o.refused = tell }
}
