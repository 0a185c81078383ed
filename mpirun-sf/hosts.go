package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/hostlist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/ssh"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
)

// hostOptions say which hosts carry clones, and how these reach each other.
type hostOptions struct {
	hosts, hostfile string
	allocator       string // "" to find out
	distribution    mcdist.Mode
}

// hostFlags are the options of a command that can use many hosts.
func hostFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "hosts", Aliases: []string{"host"}},
		&cli.StringFlag{Name: "hostfile", Aliases: []string{"machinefile", "f"}},
		&cli.StringFlag{Name: "allocator"},
		&cli.StringFlag{Name: "distribution", Value: "auto"},
	}
}

func parseHosts(c *cli.Context) (o hostOptions, err error) {
	o = hostOptions{hosts: c.String("hosts"), hostfile: c.String("hostfile"), allocator: c.String("allocator")}
	switch {
	case o.hosts != "" && o.hostfile != "":
		return o, errors.New("--hosts and --hostfile: give one of them")
	case (o.hosts != "" || o.hostfile != "") && o.allocator != "":
		return o, fmt.Errorf("--allocator %s: the hosts are named already", o.allocator)
	}
	if err := o.distribution.UnmarshalText([]byte(c.String("distribution"))); err != nil {
		return o, fmt.Errorf("--distribution: %w", err)
	}
	return o, nil
}

// allocate finds the hosts of a job: those that the user names, or else those
// that a resource manager has given to what this process runs in. Without either
// the result is nil, and the job is this machine's.
func (o hostOptions) allocate() (allocator.Allocation, error) {
	var named []hostlist.Host
	var err error
	switch {
	case o.hosts != "":
		if named, err = hostlist.Parse(o.hosts); err != nil {
			return nil, fmt.Errorf("--hosts: %w", err)
		}
	case o.hostfile != "":
		if named, err = hostlist.Read(o.hostfile); err != nil {
			return nil, fmt.Errorf("--hostfile: %w", err)
		}
	default:
		return nil, nil
	}
	return ssh.New(ssh.Config{Hosts: named, Ask: ssh.Terminal(), Notice: func(line string) { tui.Notice("%s", line) }})
}

// join has other hosts carry the job too. The result ends their daemons, and is
// never nil.
func (j *job) join(ctx context.Context, daemon *sfld.Client) (leave func(), err error) {
	leave = func() {}
	a, err := j.allocate()
	if err != nil || a == nil {
		return leave, err
	}
	here, others := split(a.Hosts())
	leave = func() { a.Close() }
	args := sfld.JoinArgs{Mode: j.distribution}
	if here != nil {
		args.Here, args.Slots, args.First = true, here.Slots, a.Hosts()[0].Name == here.Name
	}
	if len(others) > 0 {
		tui.Step(fmt.Sprintf("starting daemons on %s", plural(len(others), "host")))
		key, err := daemon.Key(ctx)
		if err != nil {
			return leave, err
		}
		if args.Hosts, err = j.startHosts(ctx, a, others, key); err != nil {
			return leave, err
		}
	}
	if err := daemon.Join(ctx, args); err != nil {
		return leave, err
	}
	if len(others) > 0 {
		j.phase("%s joined", plural(len(others), "host"))
	}
	return leave, nil
}

// startHosts starts a daemon on each host and learns how it is reached.
func (j *job) startHosts(ctx context.Context, a allocator.Allocation, hosts []allocator.Host, key link.Fingerprint) ([]sfld.JoinHost, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's file: %w", err)
	}
	var mu sync.Mutex
	met := map[string]link.Hello{}
	_, err = allocator.StartAll(ctx, a, hosts, self, func(allocator.Host) []string { return []string{"sfld", "--host"} },
		func(ctx context.Context, h allocator.Host, p allocator.Process) error {
			hello, err := sfld.Meet(ctx, p, version, j.id, h.Name, key, ways(ctx, h.Name))
			if err != nil {
				return err
			}
			go io.Copy(io.Discard, p) // it says no more, and would wait if it did
			mu.Lock()
			defer mu.Unlock()
			met[h.Name] = hello
			return nil
		})
	if err != nil {
		return nil, err
	}
	var joined []sfld.JoinHost
	for _, h := range hosts {
		hello := met[h.Name]
		joined = append(joined, sfld.JoinHost{Name: h.Name, Addresses: hello.Addresses, Fingerprint: hello.Fingerprint, Slots: h.Slots})
		tui.Detail("  %s: %d cores, %d MB free, %s %s", h.Name, hello.CPUs, hello.MemoryFree>>20, hello.Hypervisor, hello.HypervisorVersion)
	}
	return joined, nil
}

// ways are this machine's addresses, that by which it reaches a host first, so
// that the host's daemon knows which of its own networks is meant.
func ways(ctx context.Context, host string) []netip.AddrPort {
	var peers []netip.AddrPort
	if found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host); err == nil {
		for _, a := range found {
			peers = append(peers, netip.AddrPortFrom(a.Unmap(), 22))
		}
	}
	all, err := link.Addresses(peers, 22) // no port matters
	if err != nil {
		return nil
	}
	return all
}

// split parts the hosts into this machine, nil if it is not among them, and the
// others.
func split(hosts []allocator.Host) (here *allocator.Host, others []allocator.Host) {
	for _, h := range hosts {
		if here == nil && isHere(h.Name) {
			here = &h
		} else {
			others = append(others, h)
		}
	}
	return here, others
}

// isHere says whether a name is this machine's.
func isHere(name string) bool {
	self, _ := os.Hostname()
	if _, at, ok := strings.Cut(name, "@"); ok {
		name = at
	}
	if name == "localhost" || strings.EqualFold(name, self) {
		return true
	}
	ip, err := netip.ParseAddr(name)
	if err != nil {
		return false
	}
	if ip.IsLoopback() {
		return true
	}
	own, _ := net.InterfaceAddrs()
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip.AsSlice()) {
			return true
		}
	}
	return false
}
