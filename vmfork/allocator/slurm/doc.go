// Package slurm runs a job's daemons in a Slurm allocation: the one that the
// launcher was started in, or one that it asks for.
//
// # Flow
//
//  1. Inside salloc or sbatch, [Detect] reads the job's environment (hosts.go,
//     nodelist.go): hosts, tasks, CPUs and memory of each.
//  2. Outside, [Allocate] runs salloc, with the user's options, and waits. What
//     salloc runs is a small holder: it tells the job's environment, and holds
//     the job until the end of its input (hold.go).
//  3. Start makes a job step on one host with srun, whose standard input and
//     output are the stream to the daemon (srun.go; the rest is package step).
//  4. Close ends the steps, and an allocation of our own.
//
// # What srun carries
//
// Without --unbuffered srun keeps output until a line ends, which is no stream.
// With it the far end of standard output is a terminal that changes no byte;
// package step puts a pipe before that. Input is carried as it is, and its end
// too. A step gets all of the job's CPUs and memory on its host (--mem=0, no
// --cpus-per-task, no binding), and shares them with other steps (--overlap,
// Slurm 20.11). Variables that change what srun does (SLURM_LABELIO,
// SLURM_CPU_BIND, ...) are kept from it. Of the launcher's environment the
// daemon gets PATH, HOME, USER, LOGNAME, LANG and TMPDIR, so that a QEMU that
// was loaded as a module is found.
//
// The program is sent over the stream, and not by srun --bcast or sbcast: those
// leave it on the node if the launcher is killed in the wrong moment, and on a
// shared file system, the usual case, nothing has to be sent at all.
//
// # What dies when
//
// An allocation of our own ends with the launcher, even one killed by SIGKILL:
// the holder's input ends, so salloc ends; and if salloc has been killed, the
// holder cancels the job. While salloc still waits in the queue there is no
// holder yet; then the kernel ends salloc (SIGTERM), which withdraws its
// request. Only if launcher and salloc are both killed while the
// request waits does Slurm find out by itself (InactiveLimit), and if holder,
// salloc and launcher are all killed.
//
// # Locking
//
// There is none here: see package step.
package slurm
