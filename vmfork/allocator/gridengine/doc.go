// Package gridengine runs a launcher's daemons in a Grid Engine job, in a
// parallel environment (qsub -pe NAME SLOTS).
//
// # Flow
//
//  1. [Detect] finds the job by its environment, and reads PE_HOSTFILE: the
//     hosts and the slots of each (hosts.go). The memory is what the job asked
//     for with h_vmem, or else mem_free, for each slot, as qstat tells.
//  2. Start runs qrsh -inherit, which makes a task of the job on the host and
//     carries its input and output (qrsh.go; the rest is package step).
//
// # What Grid Engine wants, and does
//
// The parallel environment has to have control_slaves TRUE (qconf -mp). Each
// task takes a slot of its host while it runs, and a host accepts as many as the
// job has slots there. What qrsh is given is words for the login shell of the
// user, of any kind; so it gets one line that each of them understands.
//
// Grid Engine kills the whole job when one of its tasks dies of a signal, and a
// task dies of one when its qrsh is killed. So a daemon that has to be killed is
// killed on its host, by the guard of package step, and the task ends with a
// status. If the launcher is killed the tasks end in order, with their input.
//
// h_vmem is also a limit of the virtual memory of each process.
//
// # Locking
//
// There is none here: see package step.
package gridengine
