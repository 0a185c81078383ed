// Command mpi measures how MPI jobs are launched, and what messages cost between clones, for both families of MPI.
//
//	make bench-mpi                                    # benchmarks/results/mpi.json and plots: hydra, pmix, netpipe
//	make bench-mpi ARGS="-part netpipe -rounds 5"
//	make bench-mpi ARGS="-part hang -jobs 200"
//
// A part that is measured alone replaces its own figures in mpi.json, and leaves those of the others. The sides of a part
// are measured in turns in one run, for absolute times vary with the machine and its load; what is promised are ratios.
//
// # The parts
//
//   - hydra: hello with 8 ranks on 4 hosts, without clones, by mpirun-sf --no-clone and by MPICH's own mpiexec over SSH. The hosts are virtual
//     machines that have been there before, idle and warm: clones of a fifth, in which both launchers run, and from which they log in
//     to OpenSSH's server there. Figures that end with _on_hosts are the same on namespaces of this machine (vmfork/testcluster): without KVM a
//     virtual machine's time is not a processor's. MPICH is a build for ch3:nemesis (benchmarks/mpich), for Debian's own can wait
//     forever in MPI_Finalize across hosts, under hydra too.
//   - pmix: hello of Open MPI on clones, without orted (--via pmix) and by orterun with its orted (--via orted).
//   - netpipe: NetPIPE between two clones that have run nothing yet, and then, between the same two, when they have been
//     there, idle and warm ("zero-cost", paper section 4.5.2); and once more, which tells what is noise. Of each message size NetPIPE tells the
//     best of seven trials. Latency is that of messages up to 64 bytes, bandwidth the greatest of any size.
//   - hang: many jobs on clones, of programs of each family. One that does not end within a minute has hung.
package main
