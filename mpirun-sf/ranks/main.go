// Command ranks is the agent of ranks that run on a host without clones, and nothing else: what mpirun-sf starts on hosts
// for jobs with --no-clone.
//
// mpirun-sf is this agent too, by its hidden command of the same name, and all the rest of the product besides. To start that
// takes 6 ms of a processor, half of which is spent on packages that begin before main, and on reading in what
// they are; this one takes 2, and it is started on every host of a job. So it is a program of its own, which make build puts into
// mpirun-sf.
package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

func main() {
	if err := agent.ServeRanks(slices.Contains(os.Args[1:], "--stdio")); err != nil {
		fmt.Fprintln(os.Stderr, "mpirun-sf:", err)
		os.Exit(1)
	}
}
