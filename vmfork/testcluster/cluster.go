package testcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
)

// Options say what a cluster is like.
type Options struct {
	Hosts int          // how many
	Link  Link         // of each host
	Links map[int]Link // of these hosts instead

	// MTU of all links in bytes, 1500 if 0.
	MTU int
	// NoMulticast makes a switch that drops IP multicast; see [Cluster.SetMulticast].
	NoMulticast bool
	// Dir is for keys, logs, and the hosts' own files. If it is empty there is one in the temporary folder, until Close.
	Dir string
}

// A Link is the cable between a host and the switch, with both its ends. The zero value is as fast as the machine.
type Link struct {
	// Rate in bits per second, each way; 0 for no limit.
	Rate int64
	// Buffer is how many bytes wait at most at an end that sends at a rate, 1 MiB if 0. More are dropped at the switch's
	// end; at the host's, programs wait.
	Buffer int
	// Delay is what a frame takes through it, each way. Between two hosts it crosses two links.
	Delay time.Duration
	Loss  Loss
}

// Loss is what part of the frames gets lost, from 0 to 1.
type Loss struct {
	Sent     float64 // of those that the host sends
	Received float64 // of those that are sent to it; a multicast may be lost for one and arrive at another
}

// A Cluster is some hosts at one switch.
type Cluster struct {
	options   Options
	dir       string
	temporary bool // dir is ours
	hosts     []*Host

	mu    sync.Mutex // orders changes of the network
	rules rules
	whole bool // frames may be longer than the MTU

	rootKey  key
	hostKeys []key

	namespace *os.File // the switch's
	handle    *netlink.Handle
	bridge    netlink.Link
}

const (
	defaultMTU    = 1500
	defaultBuffer = 1 << 20
	maxHosts      = 1000
)

func (o *Options) check() error {
	if o.Hosts < 1 || o.Hosts > maxHosts {
		return fmt.Errorf("%d hosts are not between 1 and %d", o.Hosts, maxHosts)
	}
	if o.MTU == 0 {
		o.MTU = defaultMTU
	}
	if o.MTU < 576 || o.MTU > 65000 {
		return fmt.Errorf("an MTU of %d bytes is not between 576 and 65000", o.MTU)
	}
	for n := range o.Hosts {
		if err := o.link(n).check(); err != nil {
			return fmt.Errorf("the link of %s: %w", hostName(n), err)
		}
	}
	return nil
}

func (o *Options) link(host int) Link {
	if l, ok := o.Links[host]; ok {
		return l
	}
	return o.Link
}

func (l Link) check() error {
	if l.Rate < 0 || l.Buffer < 0 || l.Delay < 0 {
		return fmt.Errorf("rate %d, buffer %d or delay %v is negative", l.Rate, l.Buffer, l.Delay)
	}
	if l.Delay > maxDelay {
		return fmt.Errorf("a delay of %v is more than %v", l.Delay, maxDelay)
	}
	return l.Loss.check()
}

func (l Loss) check() error {
	for _, part := range []float64{l.Sent, l.Received} {
		if !(part >= 0 && part <= 1) {
			return fmt.Errorf("a loss of %v is not between 0 and 1", part)
		}
	}
	return nil
}

// New makes a cluster. It takes root. The context is for the making.
func New(ctx context.Context, options Options) (*Cluster, error) {
	if err := options.check(); err != nil {
		return nil, fmt.Errorf("make cluster: %w", err)
	}
	c := &Cluster{options: options, hosts: make([]*Host, options.Hosts), whole: true}
	if err := c.create(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("make cluster: %w", err)
	}
	return c, nil
}

// ForTest makes a cluster that is gone at the test's end, and fails the test if it cannot.
func ForTest(t testing.TB, options Options) *Cluster {
	t.Helper()
	if options.Dir == "" {
		options.Dir = t.TempDir()
	}
	begin := time.Now()
	c, err := New(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d hosts in %.2f s", options.Hosts, time.Since(begin).Seconds())
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *Cluster) create(ctx context.Context) (err error) {
	if c.dir = c.options.Dir; c.dir == "" {
		if c.dir, err = os.MkdirTemp("", "testcluster-"); err != nil {
			return err
		}
		c.temporary = true
	}
	// Not every path that works here does in a host, whose working directory is another.
	if c.dir, err = filepath.Abs(c.dir); err != nil {
		return err
	}
	if err := c.createKeys(); err != nil {
		return err
	}
	if err := c.createSwitch(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for n := range c.hosts {
		group.Go(func() (err error) {
			c.hosts[n], err = c.newHost(ctx, n)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, h := range c.hosts {
		if err := c.plugIn(h); err != nil {
			return fmt.Errorf("plug %s in: %w", h.Name, err)
		}
	}
	c.rules.noMulticast = c.options.NoMulticast
	return c.filter()
}

// Hosts are all of them, in order.
func (c *Cluster) Hosts() []*Host { return c.hosts }

// Host is the one of this number.
func (c *Cluster) Host(number int) *Host { return c.hosts[number] }

// Dir is where keys and logs are.
func (c *Cluster) Dir() string { return c.dir }

// Kill is what a failure of power does to a host: nothing that it has not sent yet is sent any more, no FIN and no RST,
// and nothing on it lives. Sockets that this process has made in it by [Host.Do] are cut off.
func (c *Cluster) Kill(host int) error {
	h := c.hosts[host]
	err := c.unplug(h)
	h.end()
	if err != nil {
		return fmt.Errorf("kill %s: %w", h.Name, err)
	}
	return nil
}

// Close ends all hosts and everything on them, and the network. Close may be called twice.
func (c *Cluster) Close() error {
	var group errgroup.Group
	for n, h := range c.hosts {
		if h != nil {
			group.Go(func() error { return c.Kill(n) })
		}
	}
	errs := []error{group.Wait(), c.closeSwitch()}
	if c.temporary {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close cluster: %w", err)
	}
	return nil
}
