package mpichshim

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// option is one of mpiexec's. Its names are equal; case does not matter.
type option struct {
	names   []string
	value   string // what it takes, "" for nothing
	text    string // what it does: one sentence, or two
	clones  string // why it has no effect on clones; "" where it has
	never   string // why it has no effect at all
	group   string // options of a group set the same; "" is a group of its own
	local   bool   // it is about one program
	repeats bool   // each time it adds something
	pair    bool   // it takes NAME VALUE, or NAME=VALUE
	set     func(p *parser, name, value string) error
}

func (o *option) first() string { return o.names[0] }

func (o *option) setting() string {
	if o.group != "" {
		return o.group
	}
	return o.first()
}

// use is how it is written.
func (o *option) use() string {
	if o.value == "" {
		return "-" + o.first()
	}
	return "-" + o.first() + " " + o.value
}

func findOption(name string) *option {
	i := slices.IndexFunc(options, func(o option) bool {
		return slices.ContainsFunc(o.names, func(n string) bool { return strings.EqualFold(n, name) })
	})
	if i < 0 {
		return nil
	}
	return &options[i]
}

// What Hydra can be built with, and what -info says.
var (
	launchers = []string{"ssh", "rsh", "fork", "slurm", "ll", "lsf", "sge", "manual", "persist"}
	managers  = []string{"user", "slurm", "ll", "lsf", "sge", "pbs", "cobalt"}
	demuxes   = []string{"poll", "select"}
)

// oneOf is an error for a name that is none of names. "" is not given.
func oneOf(name string, names []string) error {
	if name == "" || slices.Contains(names, name) {
		return nil
	}
	return fmt.Errorf("%q is not known; there are %s", name, strings.Join(names, ", "))
}

const (
	ownCores  = "a clone has virtual CPUs of its own, and only those"
	oneNIC    = "a clone has one network interface"
	inProcess = "no program is started to log in to a host"
)

// options are all, in the order of the help.
var options []option

func init() {
	options = []option{
		{names: []string{"h", "help"}, text: "Show the options.", set: func(p *parser, _, _ string) error { p.c.Show = usage(); return nil }},
		{names: []string{"n", "np"}, value: "N", local: true,
			text: "Start N ranks of the program that follows. Without it, or with 0 or less, one for each slot of the hosts.",
			set: func(p *parser, _, v string) (err error) {
				n, err := number(v)
				p.app().Ranks = n
				return err
			}},
		{names: []string{"hosts", "host", "hostlist", "machine", "machines", "machinelist"}, value: "H[:N],...", group: "hosts",
			text: "Run on these hosts, in turn N ranks on each (default 1). They carry the clones; with --no-clone, the ranks.",
			set:  func(p *parser, _, v string) (err error) { p.c.Hosts, err = hostList(v); return err }},
		{names: []string{"f", "hostfile", "machinefile"}, value: "FILE", group: "hosts",
			text: "The same from a file: a line for each host, HOST[:N], and after it binding= and user=; # begins a comment.",
			set:  func(p *parser, _, v string) error { return p.hostFile(v) }},
		{names: []string{"ppn"}, value: "K",
			text: "K ranks on each host in turn, whatever its slots; on clones, K ranks on each clone, which gets K virtual CPUs.",
			set: func(p *parser, _, v string) (err error) {
				if p.c.PPN, err = number(v); err == nil && p.c.PPN < 1 {
					err = fmt.Errorf("%q: at least one rank runs on a host", v)
				}
				return err
			}},
		{names: []string{"wdir"}, value: "DIR", local: true, text: "Run the program that follows in DIR.",
			set: func(p *parser, _, v string) error {
				if v == "" {
					return errors.New("it takes a folder")
				}
				p.app().Dir = v
				return nil
			}},
		{names: []string{"configfile"}, value: "FILE", repeats: true,
			text: "Read options and programs from FILE, too, a program on each line. Without it HYDRA_CONFIG_FILE, ~/.mpiexec.hydra.conf or /etc/mpiexec.hydra.conf.",
			set: func(p *parser, _, v string) error {
				switch {
				case p.inFile:
					return errors.New("a file of options cannot name another one")
				case p.config != "":
					return errors.New("that was set before; give it once")
				}
				p.config = v
				return nil
			}},
		{names: []string{"genv"}, value: "NAME VALUE", pair: true, repeats: true, text: "Set a variable for all programs.",
			set: func(p *parser, _, v string) error { return variable(&p.c.GlobalEnv, v) }},
		{names: []string{"genvlist"}, value: "NAME,...", group: "inherit", text: "Pass only these variables on to programs.",
			set: func(p *parser, _, v string) error { p.c.Inherit = Inherit{InheritList, splitList(v)}; return nil }},
		{names: []string{"genvnone"}, group: "inherit", text: "Pass no variables on, but what a login sets.",
			set: func(p *parser, _, _ string) error { p.c.Inherit.Mode = InheritNone; return nil }},
		{names: []string{"genvall"}, group: "inherit", text: "Pass all variables on (the default).",
			set: func(p *parser, _, _ string) error { p.c.Inherit.Mode = InheritAll; return nil }},
		{names: []string{"env"}, value: "NAME VALUE", pair: true, repeats: true, local: true, text: "Set a variable for the program that follows.",
			set: func(p *parser, _, v string) error { return variable(&p.app().Env, v) }},
		{names: []string{"envlist"}, value: "NAME,...", group: "inherit", local: true, text: "-genvlist for the program that follows.",
			set: func(p *parser, _, v string) error { p.app().Inherit = Inherit{InheritList, splitList(v)}; return nil }},
		{names: []string{"envnone"}, group: "inherit", local: true, text: "-genvnone for the program that follows.",
			set: func(p *parser, _, _ string) error { p.app().Inherit.Mode = InheritNone; return nil }},
		{names: []string{"envall"}, group: "inherit", local: true, text: "-genvall for the program that follows.",
			set: func(p *parser, _, _ string) error { p.app().Inherit.Mode = InheritAll; return nil }},

		{names: []string{"l", "prepend-rank"}, group: "prepend", text: "Begin each line with its rank: -prepend-pattern '[%r] '.",
			set: func(p *parser, _, _ string) error { return p.c.Prefix.parse("[%r] ") }},
		{names: []string{"prepend-pattern"}, value: "PATTERN", group: "prepend", text: "Begin each line with PATTERN. " + patternText,
			set: func(p *parser, _, v string) error { return p.c.Prefix.parse(v) }},
		{names: []string{"outfile-pattern", "outfile"}, value: "PATTERN", text: "Write standard output to files. " + patternText,
			set: func(p *parser, _, v string) error { return p.c.Outfile.parse(v) }},
		{names: []string{"errfile-pattern", "errfile"}, value: "PATTERN", text: "Write standard error to files. " + patternText,
			set: func(p *parser, _, v string) error { return p.c.Errfile.parse(v) }},
		{names: []string{"output-from"}, value: "RANK", text: "Show what this rank writes, and nothing of the others.",
			set: func(p *parser, _, v string) (err error) { p.c.OutputFrom, err = number(v); return err }},
		{names: []string{"print-all-exitcodes"}, text: "At the end show how each rank ended, as wait(2) has it: 256 is exit status 1, 9 is signal 9.",
			set: func(p *parser, _, _ string) error { p.c.PrintExitCodes = true; return nil }},
		{names: []string{"disable-auto-cleanup", "dac"}, group: "cleanup", text: "When a rank dies the others go on.",
			set: func(p *parser, _, _ string) error { p.c.AutoCleanup = false; return nil }},
		{names: []string{"enable-auto-cleanup"}, group: "cleanup", text: "When a rank dies the job ends (the default).",
			set: func(p *parser, _, _ string) error { p.c.AutoCleanup = true; return nil }},

		{names: []string{"launcher", "bootstrap"}, value: "NAME", text: "How hosts are reached: ssh, slurm or sge; fork is this machine alone. " +
			"The others that Hydra knows are taken for ssh.",
			set: func(p *parser, _, v string) error { p.c.Launcher = v; return nil }},
		{names: []string{"launcher-exec", "bootstrap-exec"}, value: "PROGRAM", text: "The program that reaches hosts.", never: inProcess,
			set: ignore},
		{names: []string{"enable-x", "disable-x"}, group: "x", text: "Forward X11 to the ranks, or do not.", never: "ranks have no display", set: ignore},
		{names: []string{"rmk"}, value: "NAME", text: "Who gives hosts when none are named: slurm, sge, or user, which is nobody.",
			set: func(p *parser, _, v string) error { p.c.Manager = v; return nil }},
		{names: []string{"order-nodes"}, value: "UP|DOWN", text: "Sort the hosts by their slots, fewest first or most.",
			set: func(p *parser, _, v string) error {
				order, ok := map[string]Order{"UP": OrderAscending, "ASCENDING": OrderAscending, "DOWN": OrderDescending, "DESCENDING": OrderDescending}[strings.ToUpper(v)]
				if p.c.Order = order; !ok {
					return fmt.Errorf("%q: it is UP or DOWN", v)
				}
				return nil
			}},
		{names: []string{"skip-launch-node"}, text: "Do not run on this machine.",
			set: func(p *parser, _, _ string) error { p.c.SkipLocal = true; return nil }},
		{names: []string{"localhost"}, value: "NAME", text: "This machine's name, as other hosts know it.",
			never: "hosts answer on the connection that they were started by",
			set:   func(p *parser, _, v string) error { p.c.LocalName = v; return nil }},
		{names: []string{"iface"}, value: "NAME", text: "The network interface for the ranks' traffic.", clones: oneNIC,
			set: func(p *parser, _, v string) error { p.c.Interface = v; return nil }},
		{names: []string{"disable-hostname-propagation", "enable-hostname-propagation"}, group: "propagation",
			text: "Tell ranks the name of their host as you gave it (the default), or do not.", clones: "a clone's ranks are told its own address",
			set: func(p *parser, name, _ string) error {
				p.c.Propagate = strings.EqualFold(name, "enable-hostname-propagation")
				return nil
			}},

		{names: []string{"bind-to", "binding"}, value: "WHAT", text: "Bind ranks to cores: none, rr (in turn), user:0+2,1, core, hwthread.", clones: ownCores,
			set: func(p *parser, _, v string) error { p.c.Binding = v; return nil }},
		{names: []string{"map-by"}, value: "WHAT", text: "The order of -bind-to.", never: "ranks are bound in order",
			set: func(p *parser, _, v string) error { p.c.Mapping = v; return nil }},
		{names: []string{"membind"}, value: "POLICY", text: "Bind memory to NUMA nodes.", never: "memory is where it is touched first", set: ignore},
		{names: []string{"topolib"}, value: "NAME", text: "The library that knows the machine.", never: "the kernel knows", set: ignore},
		{names: []string{"gpus-per-proc", "g"}, value: "N|AUTO", text: "N GPUs for each rank of a host, in CUDA_VISIBLE_DEVICES.", clones: "a clone has none",
			set: func(p *parser, _, v string) (err error) {
				if v == "AUTO" {
					return nil
				}
				if p.c.GPUs, err = number(v); err == nil && (p.c.GPUs < 0 || p.c.GPUs > 1024) {
					err = fmt.Errorf("%q is not a number of GPUs", v)
				}
				return err
			}},

		{names: []string{"usize"}, value: "N|SYSTEM|INFINITE", text: "MPI_UNIVERSE_SIZE: N, the number of slots, or unknown (the default).",
			set: func(p *parser, _, v string) (err error) {
				switch v {
				case "SYSTEM":
					p.c.Universe = UniverseSystem
				case "INFINITE":
					p.c.Universe = UniverseInfinite
				default:
					if p.c.Universe, err = number(v); err == nil && p.c.Universe <= 0 {
						err = fmt.Errorf("%q is not a size", v)
					}
				}
				return err
			}},
		{names: []string{"pmi-port"}, text: "Ranks find each other through a TCP port instead of a descriptor.",
			never: "the descriptor does all that the port does",
			set:   func(p *parser, _, _ string) error { p.c.PMIPort = true; return nil }},
		{names: []string{"nameserver"}, value: "HOST:PORT", text: "Who keeps the names of MPI_Publish_name.",
			never: "mpiexec keeps the names of its own job", set: ignore},
		{names: []string{"demux"}, value: "NAME", text: "How output is waited for.", never: "output is waited for as it comes",
			set: func(_ *parser, _, v string) error { return oneOf(v, demuxes) }},
		{names: []string{"profile"}, text: "Count PMI calls.", never: "they are not counted",
			set: func(p *parser, _, _ string) error { p.c.Profile = true; return nil }},
		{names: []string{"v", "verbose", "debug"}, text: "Say what is done, and which options have no effect.",
			set: func(p *parser, _, _ string) error { p.c.Verbose = true; return nil }},
		{names: []string{"info", "version"}, text: "Show the version, and what it was built with.",
			set: func(p *parser, _, _ string) error { p.c.Show = showInfo; return nil }},
		{names: []string{"no-clone"}, text: "Run ranks on the hosts themselves, without virtual machines. MPIRUN_SF_NO_CLONE=1 says the same.",
			set: func(p *parser, _, _ string) error { p.c.NoClone = true; return nil }},
	}
}

func ignore(*parser, string, string) error { return nil }

// number reads a number as it stands, negative ones included.
func number(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n > MaxRanks || n < -MaxRanks {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return n, nil
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// variable adds NAME=VALUE to a list.
func variable(list *[]string, v string) error {
	name, _, _ := strings.Cut(v, "=")
	if name == "" || strings.ContainsRune(v, 0) {
		return fmt.Errorf("%q: a variable needs a name", v)
	}
	*list = append(*list, v)
	return nil
}

// Without are the options given that have no effect, each with the reason, on clones
// or without them.
func (c *Command) Without(clones bool) (lines []string) {
	for _, name := range c.given {
		o := findOption(name)
		why := o.never
		if why == "" && clones {
			why = o.clones
		}
		if why != "" {
			lines = append(lines, fmt.Sprintf("-%s has no effect: %s", name, why))
		}
	}
	if c.Launcher != "" && !slices.Contains([]string{"ssh", "fork", "slurm", "sge"}, c.Launcher) {
		lines = append(lines, fmt.Sprintf("-launcher %s: hosts are reached by SSH", c.Launcher))
	}
	if c.Manager != "" && !slices.Contains([]string{"user", "slurm", "sge"}, c.Manager) {
		lines = append(lines, fmt.Sprintf("-rmk %s: its hosts are not known; name them with -hosts or -f", c.Manager))
	}
	return lines
}

// CheckInterface says whether this machine has the interface of -iface.
func (c *Command) CheckInterface() error {
	if c.Interface == "" {
		return nil
	}
	if _, err := net.InterfaceByName(c.Interface); err != nil {
		return fmt.Errorf("-iface %s: this machine has no such interface", c.Interface)
	}
	return nil
}
