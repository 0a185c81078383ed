package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/cluster"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/gridengine"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/hostlist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/slurm"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/ssh"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
)

// hostOptions say which hosts carry clones, and how these reach each other.
type hostOptions struct {
	hosts, hostfile string
	service         bool   // of the cluster's own starts daemons there, not SSH
	clusterKey      string // by this key
	allocator       string // "" to find out
	slurmOptions    string
	distribution    mcdist.Mode
}

// hostFlags are the options of a command that can use many hosts.
func hostFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "hosts", Aliases: []string{"host"}},
		&cli.StringFlag{Name: "hostfile", Aliases: []string{"machinefile", "f"}},
		&cli.BoolFlag{Name: "service"},
		&cli.StringFlag{Name: "cluster-key", Value: defaultKeyFile},
		&cli.StringFlag{Name: "allocator"},
		&cli.BoolFlag{Name: "slurm"},
		&cli.StringFlag{Name: "slurm-options"},
		&cli.StringFlag{Name: "distribution", Value: "auto"},
	}
}

func parseHosts(c *cli.Context) (o hostOptions, err error) {
	o = hostOptions{
		hosts: c.String("hosts"), hostfile: c.String("hostfile"),
		service: c.Bool("service"), clusterKey: c.String("cluster-key"),
		allocator: c.String("allocator"), slurmOptions: c.String("slurm-options"),
	}
	if c.Bool("slurm") || o.slurmOptions != "" {
		if o.allocator != "" && o.allocator != "slurm" {
			return o, fmt.Errorf("--slurm, and --allocator %s: give one of them", o.allocator)
		}
		o.allocator = "slurm"
	}
	switch {
	case !slices.Contains([]string{"", "local", "slurm", "gridengine"}, o.allocator):
		return o, fmt.Errorf("--allocator %s: it is local, slurm or gridengine", o.allocator)
	case o.service && o.hosts == "" && o.hostfile == "":
		return o, errors.New("--service: name the hosts with --hosts or --hostfile")
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
func (j *job) allocate(ctx context.Context) (allocator.Allocation, error) {
	var named []hostlist.Host
	var err error
	switch {
	case j.hosts != "":
		if named, err = hostlist.Parse(j.hosts); err != nil {
			return nil, fmt.Errorf("--hosts: %w", err)
		}
	case j.hostfile != "":
		if named, err = hostlist.Read(j.hostfile); err != nil {
			return nil, fmt.Errorf("--hostfile: %w", err)
		}
	default:
		return j.detect(ctx)
	}
	if j.service {
		return serviceHosts(named, j.clusterKey)
	}
	return ssh.New(ssh.Config{
		Hosts: named, Ask: asker(), AsUser: j.noClone,
		Notice: func(line string) { tui.Notice("%s", line) },
		Stderr: func(host, line string) { tui.Notice("%s: %s", host, line) },
	})
}

// asker asks the user at the terminal, where no step is shown meanwhile.
func asker() ssh.Asker {
	ask := ssh.Terminal()
	if ask == nil {
		return nil
	}
	return func(ctx context.Context, question string, secret bool) (string, error) {
		tui.EndStep()
		return ask(ctx, question, secret)
	}
}

// detect finds what a resource manager has given to this process, or asks one
// for hosts if the user wants that.
func (j *job) detect(ctx context.Context) (allocator.Allocation, error) {
	if j.allocator == "local" {
		return nil, nil
	}
	if j.allocator != "gridengine" {
		a, found, err := slurm.Detect(os.Getenv)
		if found || err != nil {
			return a, err
		}
	}
	if j.allocator != "slurm" {
		a, found, err := gridengine.Detect(os.Getenv)
		if found || err != nil {
			return a, err
		}
	}
	switch j.allocator {
	case "gridengine":
		return nil, errors.New("--allocator gridengine: this is not inside of a parallel environment: submit the job with qsub -pe NAME SLOTS")
	case "slurm":
		options, err := slurm.Words(j.slurmOptions)
		if err != nil {
			return nil, fmt.Errorf("--slurm-options: %w", err)
		}
		tui.Step("asking Slurm for hosts")
		return slurm.Allocate(ctx, slurm.Request{Ranks: j.np, Options: options, Progress: func(line string) { tui.Step("Slurm: " + line) }})
	}
	return nil, nil
}

// serviceHosts are hosts where the cluster's service starts daemons.
func serviceHosts(named []hostlist.Host, keyFile string) (allocator.Allocation, error) {
	key, err := cluster.ReadKey(keyFile)
	if err != nil {
		return nil, fmt.Errorf("--service: %w", err)
	}
	c := cluster.Config{Key: key}
	for _, h := range named {
		c.Hosts = append(c.Hosts, h.Host)
	}
	return cluster.New(c)
}

// join has other hosts carry the job too. The result ends their daemons, and is
// never nil.
func (j *job) join(ctx context.Context, daemon *sfld.Client) (leave func(), err error) {
	leave = func() {}
	a, err := j.allocate(ctx)
	if err != nil || a == nil {
		return leave, err
	}
	self := ""
	if m, ok := a.(interface{ Self() string }); ok {
		self = m.Self() // a manager may have names of its own
	}
	here, others := split(ctx, a.Hosts(), self)
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
			hello, err := sfld.Meet(ctx, p, version, j.id, h.Name, j.hypervisor, key, ways(ctx, a, h))
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
		tui.Detail("  %s: %d cores, %d MB free, %s", h.Name, hello.CPUs, hello.MemoryFree>>20, hello.HypervisorVersion)
	}
	return joined, nil
}

// ways are this machine's addresses, that by which it reaches a host first, so
// that the host's daemon knows which of its own networks is meant.
func ways(ctx context.Context, a allocator.Allocation, h allocator.Host) []netip.AddrPort {
	host := h.Name
	if named, ok := a.(interface {
		Address(allocator.Host) (string, error)
	}); ok {
		if address, err := named.Address(h); err == nil {
			host = address // an alias is not in DNS
		}
	}
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
// others. self is its name among them, if that is known.
func split(ctx context.Context, hosts []allocator.Host, self string) (here *allocator.Host, others []allocator.Host) {
	for _, h := range hosts {
		if here == nil && (h.Name == self || allocator.Here(ctx, h.Name)) {
			here = &h
		} else {
			others = append(others, h)
		}
	}
	return here, others
}
