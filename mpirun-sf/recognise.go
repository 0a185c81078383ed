package main

import (
	"fmt"
	"slices"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/pmi/pmix"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
)

// recognised is what was found out about the programs of a job.
type recognised struct {
	mpi       guest.MPI
	needs     []string // what they run and read of this machine, beside themselves
	libraries []string // of what told the MPI: Open MPI's launcher is near them
	ucx       bool
}

// recognise finds out how clones can run a command that the user calls name; its
// program is an absolute path.
func (j *job) recognise(name string, argv []string, dir string, env []string) error {
	c, err := guest.RecogniseCommand(argv, dir, env, j.mpi)
	if err != nil {
		return err
	}
	tui.Detail("%s: %s", name, c.Says())
	f := &j.found
	f.needs = append(f.needs, c.Needs...)
	f.ucx = f.ucx || c.UCX
	if f.mpi == guest.UnknownMPI {
		f.mpi = c.MPI
	}
	f.libraries = append(f.libraries, c.Libraries...)
	return nil
}

// choose finds out how the job's program is launched.
func (j *job) choose() error {
	if err := j.recognise(j.argv[0], append([]string{j.program}, j.argv[1:]...), j.dir, j.environment()); err != nil {
		return err
	}
	switch {
	case j.found.mpi == guest.OpenMPI:
		return j.chooseVia(j.argv[0])
	case j.via != "":
		return fmt.Errorf("--via %s: that is for programs of Open MPI, and %s is none (mpirun-sf -v says what it is)", j.via, j.argv[0])
	case j.found.mpi == guest.NoMPI:
		j.wire = launch.WireNone
	}
	return nil
}

// chooseBare finds out how the job's program is launched without clones. A program
// that cannot be told is none of Open MPI's, whose ranks alone would not notice that
// PMI is offered, and each be a job of its own.
func (j *job) chooseBare() error {
	err := j.recognise(j.argv[0], append([]string{j.program}, j.argv[1:]...), j.dir, j.environment())
	if err != nil || j.found.mpi != guest.OpenMPI {
		return nil
	}
	if j.via == viaOrted {
		return fmt.Errorf("--via %s: with --no-clone there is nothing for Open MPI's own launcher to be told: run orterun itself, or leave one of them out", viaOrted)
	}
	if _, err := pmix.Helper(); err != nil {
		return fmt.Errorf("%s is a program of Open MPI: %w", j.argv[0], err)
	}
	j.wire = launch.WirePMIx
	return nil
}

// refuseOpenMPI recognises one of several programs, which are launched as MPICH's
// mpiexec does.
func (j *job) refuseOpenMPI(a launch.App) error {
	before := j.found.mpi
	j.found.mpi = guest.UnknownMPI
	err := j.recognise(a.Argv[0], append([]string{a.File}, a.Argv[1:]...), a.Dir, a.Env)
	if err == nil && j.found.mpi == guest.OpenMPI {
		err = fmt.Errorf("%s is linked with Open MPI, and this is MPICH's mpiexec: launch it with mpirun-sf, or compile it with mpicc.mpich", a.Argv[0])
	}
	if j.found.mpi == guest.UnknownMPI {
		j.found.mpi = before
	}
	return err
}

// inGuest tells if the guest that is made for the job has a program, as it has
// the interpreters that commands name.
func (j *host) inGuest(program string) bool {
	return j.image == "" && slices.Contains(j.found.needs, program)
}
