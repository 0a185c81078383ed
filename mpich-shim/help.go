package mpichshim

import (
	"fmt"
	"strings"
)

// showInfo is a Show that Info is to be printed for.
const showInfo = "\x00info"

// WantsInfo is whether -info was given.
func (c *Command) WantsInfo() bool { return c.Show == showInfo }

// Info is what -info prints: the version of this program in the shape that Hydra's has.
func Info(version string) string {
	return fmt.Sprintf(`HYDRA build details:
    Version:                                 4.0.2 (mpirun-sf %s)
    Release Date:                            none
    CC:                              none, this is Go
    Configure options:                       none
    Process Manager:                         pmi
    Launchers available:                     %s
    Topology libraries available:            none
    Resource management kernels available:   %s
    Demux engines available:                 %s
`, version, strings.Join(launchers, " "), strings.Join(managers, " "), strings.Join(demuxes, " "))
}

// usage is hand-set: what most need comes first, and is shown, not told.
func usage() string {
	return `
Usage: mpiexec [options] PROGRAM [ARGUMENTS] [: [options] PROGRAM [ARGUMENTS] ...]

Runs an MPI program as MPICH's mpiexec does, with every rank in its own clone of a
virtual machine, or with --no-clone on the hosts themselves.

    $ mpiexec -n 4 ./hello                          four ranks, in four clones here
    $ mpiexec -hosts node1,node2 -n 4 ./hello       in clones on two hosts, two on each
    $ mpiexec -ppn 2 -n 4 ./hello                   two clones of two virtual CPUs
    $ mpiexec --no-clone -f hosts -n 4 ./hello      on hosts of a file, without clones
    $ mpiexec -n 1 ./server : -n 3 ./client         two programs, one MPI_COMM_WORLD
    $ mpiexec -l -n 4 ./hello                       each line begins with its rank

Which ranks:
    -n, -np N                ranks of the program that follows
    -wdir DIR                where it runs
    -configfile FILE         options and programs from a file, a program on each line

Which hosts:
    -hosts H[:N],...         these, in turn N ranks on each (default 1)
    -f FILE                  the same from a file; also -hostfile, -machinefile
    -ppn K                   K ranks on each host in turn; on clones, on each clone
    -order-nodes UP|DOWN     sort them by N
    -skip-launch-node        not on this machine
    -launcher NAME, -rmk NAME
                             how hosts are reached; who gives them

What ranks find in their environment:
    -genv NAME VALUE         a variable for all programs
    -genvlist NAME,...       only these of yours; -genvnone, -genvall
    -env, -envlist, -envnone, -envall
                             the same for the program that follows

What becomes of their output:
    -l, -prepend-rank        begin each line with its rank
    -prepend-pattern P       or with a pattern, as '%r@%h: '
    -outfile-pattern P, -errfile-pattern P
                             into files, as out.%r
    -output-from RANK        this rank's only

How the job ends:
    -print-all-exitcodes     how each rank ended
    -disable-auto-cleanup    when a rank dies the others go on; also -dac
    MPIEXEC_TIMEOUT=SECONDS  in the environment: the job ends then

More:
    --no-clone               without virtual machines; MPIRUN_SF_NO_CLONE=1 is the same
    -usize N, -iface NAME, -bind-to WHAT, -gpus-per-proc N,
    -disable-hostname-propagation
    -v                       what is done, and which options have no effect
    -info, -h                -OPTION -h says more of an option, also of those of
                             Hydra's that are taken and have no effect
    MPIRUN_SF_OPTIONS        in the environment: options of mpirun-sf, as '--memory 2G'

The exit status is the bitwise OR of the ranks'. Signals go to all ranks; of two
interrupts the second ends the job. Rank 0 reads standard input.
`
}

// help is what -OPTION -h prints.
func (o *option) help() string {
	var b strings.Builder
	b.WriteString("\n" + o.use())
	if len(o.names) > 1 {
		b.WriteString("    (also -" + strings.Join(o.names[1:], ", -") + ")")
	}
	b.WriteString("\n\n   " + wrap(o.text, 78, "\n   ") + "\n")
	switch {
	case o.never != "":
		b.WriteString("\n   " + wrap("It has no effect here: "+o.never+".", 78, "\n   ") + "\n")
	case o.clones != "":
		b.WriteString("\n   " + wrap("It has an effect with --no-clone only: "+o.clones+".", 78, "\n   ") + "\n")
	}
	return b.String() + "\n"
}

// wrap breaks a text into lines of so many bytes.
func wrap(s string, width int, newline string) string {
	var b strings.Builder
	at := 0
	for _, word := range strings.Fields(s) {
		switch {
		case at == 0:
		case at+1+len(word) > width:
			b.WriteString(newline)
			at = 0
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += len(word)
	}
	return b.String()
}
