package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

const usage = `mpirun-sf runs an MPI program with every rank in its own clone of a virtual machine.

Usage:
    mpirun-sf [options] PROGRAM [ARGUMENTS]
    mpirun-sf vm run                a virtual machine with a shell, in which mpirun-sf
                                    forks it; mpirun-sf vm --help
    mpirun-sf ps, mpirun-sf top     what jobs do, on all of their hosts
    mpirun-sf image ls|rm|build     the cache of guest images
    mpirun-sf doctor                checks that this machine has what it takes
    mpirun-sf clean                 removes what killed launchers left behind

Example:
    $ mpicc.mpich -o hello hello.c
    $ sudo mpirun-sf -np 4 ./hello

Options:
    -np, -n N            ranks (default 1)
    -ppn K               ranks on one clone, which gets K virtual CPUs (default 1)
    --memory SIZE        RAM for each rank: 512M, 2G (default 512M)
    --share DIR[:ro]     a folder to share with the clones, beside the working
                         directory; may be repeated; DIR may be the working directory
    -wdir DIR            run in DIR instead of the working directory
    -env NAME VALUE      set a variable for the ranks; may be repeated
    -l                   begin every line of output with its rank
    --image FILE         a disk image of your own, raw or qcow2, instead of a
                         guest made from this machine
    --mpi mpich|openmpi|none
                         what a script or another program that does not tell by
                         itself is launched as
    --with PATH          a program, file or folder to have in the clones beside what
                         the program is seen to need; may be repeated
    --oversubscribe      let ranks share clones when memory does not allow one each
    --strict             refuse more virtual CPUs than this machine has cores
    --start-timeout T    how long clones and ranks may take to start (default 2m)
    --window SIZE        read around a page fault: 4K to 128K (default 32K)
` + hypervisorUsage + `    --accel kvm|tcg      take this instead of what the probe of KVM says
    --hosts H[:N],...    hosts that carry the clones, with N ranks each at most,
                         reached by SSH; the first ones are filled first
    --hostfile FILE      the same from a file, in MPICH's or Open MPI's format
    --service            reached by the cluster's service, not by SSH
    --slurm              hosts from Slurm; inside an allocation of Slurm, or a parallel
    --slurm-options O    environment of Grid Engine, nothing has to be said
    --distribution MODE  how hosts get memory: auto, multicast, unicast or tree
    --nat                let clones reach what this machine reaches, by NAT;
    --allow DEST         only these, such as 10.0.0.0/8 or 192.0.2.7:443/tcp,
    --rate RATE          at most so fast, all together: 100mbit
    --parent-ranks       inside a virtual machine: it runs the first ranks itself
    --no-clone           without virtual machines: ranks run on the hosts themselves
    --via pmix|orted     how a program of Open MPI is launched: without its own
                         launcher (default for Open MPI 4), or by it
    -q                   no lines of mpirun-sf's own but errors
    -v                   a timeline, and bytes fetched by path
    --trace FILE         what took how long on which host, for chrome://tracing
                         and Perfetto
    --log-format json    mpirun-sf's own lines as JSON
    --version, --help

The working directory appears in every clone at the same path. Everything else
of this machine's files does not. Rank 0 reads standard input. The exit status is
that of the first rank that failed, 128+N if signal N killed it.

Inside a virtual machine of mpirun-sf vm run the same command forks that machine:
each rank finds its files, its page cache, all that was built up before.
`

// options are a launcher's command line.
type options struct {
	np, ppn       int
	memory        int64 // bytes a rank
	shares        []shareOption
	dir           string
	env           []string
	label         bool
	image         string
	mpi           guest.MPI
	with          []string // absolute paths
	oversubscribe bool
	strict        bool
	startLimit    time.Duration
	window        int
	hypervisor    string // a kind's name
	accel         string
	parentRanks   bool
	noClone       bool
	via           string // how an Open MPI program is launched
	hostOptions
	trace string       // a file for a trace, "" for none
	way   *network.Way // out of the private network, nil for none
	argv  []string
	given []string // the names of the options that were given
}

// shareOption is a folder to share.
type shareOption struct {
	dir      string // absolute; symbolic links are kept, for ranks see this path
	readOnly bool
}

func launcherApp() *cli.App {
	app := baseApp()
	app.HideVersion = false
	app.CustomAppHelpTemplate = usage
	app.Flags = launcherFlags()
	// -v is verbose here, as it is for mpiexec; the library wants it for the version.
	app.HideVersion = true
	app.Flags = append(app.Flags, &cli.BoolFlag{Name: "version", Aliases: []string{"V"}})
	app.Action = func(c *cli.Context) error {
		if c.Bool("version") {
			fmt.Println("mpirun-sf", version)
			return nil
		}
		o, err := parseOptions(c)
		if err != nil {
			return err
		}
		return launchJob(c.Context, o)
	}
	return app
}

// launcherFlags are the options of a job.
func launcherFlags() []cli.Flag {
	flags := []cli.Flag{
		&cli.IntFlag{Name: "np", Aliases: []string{"n"}, Value: 1},
		&cli.IntFlag{Name: "ppn", Value: 1},
		&cli.StringFlag{Name: "memory", Value: "512M"},
		&cli.StringSliceFlag{Name: "share", KeepSpace: true},
		&cli.StringFlag{Name: "wdir"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"genv"}, KeepSpace: true},
		&cli.BoolFlag{Name: "l", Aliases: []string{"prepend-rank"}},
		&cli.StringFlag{Name: "image"},
		&cli.StringFlag{Name: "mpi"},
		&cli.StringSliceFlag{Name: "with", KeepSpace: true},
		&cli.BoolFlag{Name: "oversubscribe"},
		&cli.BoolFlag{Name: "strict"},
		&cli.DurationFlag{Name: "start-timeout", Value: 2 * time.Minute},
		&cli.StringFlag{Name: "window", Value: "32K"},
		hypervisorFlag(),
		&cli.StringFlag{Name: "accel"},
		&cli.BoolFlag{Name: "parent-ranks"},
		&cli.BoolFlag{Name: "no-clone"},
		&cli.BoolFlag{Name: "q", Aliases: []string{"quiet"}},
		&cli.BoolFlag{Name: "v", Aliases: []string{"verbose"}},
		&cli.StringFlag{Name: "log-format", Value: "text"},
		&cli.StringFlag{Name: "trace"},
		&cli.StringFlag{Name: "via"},
	}
	return append(append(flags, hostFlags()...), wayFlags()...)
}

// normalise turns "-env NAME VALUE", which has two words as in every mpiexec,
// into one word for the library, and ends the options at the program. Of an
// option with several names it leaves one, for the library wants one of them.
func normalise(flags []cli.Flag, args []string) []string {
	takesValue, first := map[string]bool{}, map[string]string{}
	for _, f := range flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, n := range f.Names() {
			takesValue[n] = !isBool
			first[n] = f.Names()[0]
		}
	}
	out := args[:1:1]
	for i := 1; i < len(args); i++ {
		a := args[i]
		name, _, joined := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-"), "=")
		if to := first[name]; to != "" && strings.HasPrefix(a, "-") {
			a = "-" + to + strings.TrimPrefix(strings.TrimLeft(a, "-"), name)
			name = to
		}
		switch {
		case a == "--" || !strings.HasPrefix(a, "-"):
			if a != "--" {
				out = append(out, "--")
			}
			return append(out, args[i:]...)
		case name == "env" && !joined && i+2 < len(args) && !strings.Contains(args[i+1], "="):
			out = append(out, a, args[i+1]+"="+args[i+2])
			i += 2
		case takesValue[name] && !joined && i+1 < len(args):
			out = append(out, a, args[i+1])
			i++
		default:
			out = append(out, a)
		}
	}
	return out
}

func parseOptions(c *cli.Context) (options, error) {
	o := options{
		np: c.Int("np"), ppn: c.Int("ppn"),
		label: c.Bool("l"), image: c.String("image"), accel: c.String("accel"),
		oversubscribe: c.Bool("oversubscribe"), strict: c.Bool("strict"),
		startLimit: c.Duration("start-timeout"), env: c.StringSlice("env"),
		parentRanks: c.Bool("parent-ranks"), noClone: c.Bool("no-clone"), via: c.String("via"),
		argv: c.Args().Slice(), given: c.LocalFlagNames(),
	}
	if err := takeOutputOptions(c); err != nil {
		return o, err
	}
	if len(o.argv) == 0 {
		return o, fmt.Errorf("no program was given; for example: mpirun-sf -np 4 ./hello (--help shows the options)")
	}
	if o.np < 1 || o.np > network.MaxID {
		return o, fmt.Errorf("-np %d: the number of ranks is from 1 to %d", o.np, network.MaxID)
	}
	if o.ppn < 1 || o.ppn > 255 {
		return o, fmt.Errorf("-ppn %d: a clone has from 1 to 255 ranks", o.ppn)
	}
	if o.via != "" && o.via != viaOrted && o.via != viaPMIx {
		return o, fmt.Errorf("--via %s: it is %s or %s", o.via, viaOrted, viaPMIx)
	}
	o.ppn = min(o.ppn, o.np)
	var err error
	if o.mpi, err = guest.ParseMPI(c.String("mpi")); err != nil {
		return o, err
	}
	if o.with, err = existing("--with", c.StringSlice("with")); err != nil {
		return o, err
	}
	if len(o.with) > 0 && o.image != "" {
		return o, errors.New("--with: a disk image of your own has what it has: put it there")
	}
	return o, parseCommon(c, &o)
}

// takeOutputOptions says how mpirun-sf's own lines are to be.
func takeOutputOptions(c *cli.Context) error {
	switch f := c.String("log-format"); f {
	case "text":
	case "json":
		tui.asJSON()
	default:
		return fmt.Errorf("--log-format %s: it is text or json", f)
	}
	if c.Bool("v") {
		tui.level = verbose
	}
	if c.Bool("q") {
		tui.level = quiet
	}
	return nil
}

// parseCommon reads what jobs and virtual machines have in common.
func parseCommon(c *cli.Context, o *options) error {
	kind, err := hypervisor.Choose(c.String("hypervisor"))
	if err != nil {
		return fmt.Errorf("--hypervisor: %w", err)
	}
	if err := kind.CheckAccelerator(o.accel); err != nil {
		return fmt.Errorf("--accel %s: %w", o.accel, err)
	}
	o.hypervisor = kind.Name
	if o.startLimit <= 0 {
		return fmt.Errorf("--start-timeout %v: it is a time such as 90s or 5m", o.startLimit)
	}
	o.trace = c.String("trace")
	if o.hostOptions, err = parseHosts(c); err != nil {
		return err
	}
	if o.way, err = parseWay(c); err != nil {
		return err
	}
	if o.memory, err = parseSize(c.String("memory")); err != nil || o.memory < 128<<20 || o.memory > 1<<40 {
		return fmt.Errorf("--memory %s: it is a size from 128M, such as 512M or 2G", c.String("memory"))
	}
	o.memory = o.memory >> 20 << 20
	window, err := parseSize(c.String("window"))
	if err != nil || window < 4<<10 || window > 128<<10 {
		return fmt.Errorf("--window %s: it is a size from 4K to 128K", c.String("window"))
	}
	o.window = int(window)
	for _, e := range o.env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return fmt.Errorf("-env %s: it takes a name and a value: -env NAME VALUE", e)
		}
	}
	if o.dir = c.String("wdir"); o.dir == "" {
		o.dir, err = os.Getwd()
	} else {
		o.dir, err = filepath.Abs(o.dir)
	}
	if err != nil {
		return fmt.Errorf("find the working directory: %w", err)
	}
	for _, s := range c.StringSlice("share") {
		one, err := parseShare(s)
		if err != nil {
			return err
		}
		o.shares = append(o.shares, one)
	}
	return nil
}

// parseSize reads a size as QEMU's -m does: a number of megabytes, or with a
// suffix K, M, G or T, or KB, MB, GB or TB.
func parseSize(s string) (int64, error) {
	shift := 20
	digits := strings.ToUpper(s)
	if unit, ok := strings.CutSuffix(digits, "B"); ok && strings.TrimRight(unit, "KMGT") != unit {
		digits = unit
	}
	if i := strings.IndexAny(digits, "KMGT"); i >= 0 && i == len(digits)-1 {
		shift = 10 * (1 + strings.IndexByte("KMGT", digits[i]))
		digits = digits[:i]
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > 1<<60>>shift {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	return n << shift, nil
}

// parseShare reads DIR[:ro].
func parseShare(s string) (shareOption, error) {
	dir, readOnly := strings.CutSuffix(s, ":ro")
	if !readOnly {
		dir = strings.TrimSuffix(dir, ":rw")
	}
	if dir == "" {
		return shareOption{}, fmt.Errorf("--share %q: it takes a folder: --share DIR or --share DIR:ro", s)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return shareOption{}, fmt.Errorf("--share %s: %w", s, err)
	}
	if st, err := os.Stat(abs); err != nil || !st.IsDir() {
		return shareOption{}, fmt.Errorf("--share %s: there is no such folder", dir)
	}
	return shareOption{abs, readOnly}, nil
}
