// Package qemu is the driver for QEMU ≥ 7.2 as a distribution ships it.
//
// # The machine
//
// A microvm: no PCI, no firmware tables to rebuild, virtio over MMIO. Against
// the other two x86 machines of QEMU 7.2, process start and load of a state
// (medians of 7 on one two-core machine, TCG, 512 MB, balloon, net, serial and
// block devices; CPU time is what counts where many clones share cores):
//
//	machine   device state   CPU until ready to load   CPU incl. load   load
//	microvm         199 KB                    21 ms            23 ms   4.5 ms
//	pc              197 KB                    26 ms            30 ms   5.9 ms
//	q35             217 KB                    30 ms            34 ms   5.6 ms
//
// Once cloned they run alike: MPI_Allreduce between two clones took 0.6 to 0.8,
// 0.7 to 1.3 and 0.8 to 1.1 ms on the three, so interrupts over MMIO cost no
// more than MSI-X under TCG.
//
// Its price: it has no clock but the PIT to measure the TSC against, and on a
// busy host under TCG that measurement fails and the guest hangs in boot (3 of
// 4 boots beside three busy loops). The driver measures the TSC itself and
// hands the guest the result (tsc.go); 6 of 6 boots beside four busy loops.
//
// # The way of a fork
//
//  1. [Driver.Boot]: RAM is a shared mapping of a file, so the file is the RAM.
//  2. Suspend: stop, then xen-save-devices-state, which every build has for
//     every accelerator and which leaves RAM out.
//  3. [Driver.Prepare]: the same devices, RAM a private mapping of memtap's
//     file, -incoming defer. QEMU runs under a seccomp filter that fails
//     madvise(MADV_HUGEPAGE), without which the kernel would read 2 MB around
//     every fault (nohuge.go).
//  4. Restore: the state goes through a pipe whose reading end QEMU got with
//     getfd; the vCPUs run as soon as it is loaded.
//
// # What KVM does otherwise
//
//   - A page that cannot be had: under TCG it is QEMU's own thread that touches RAM,
//     and QEMU dies of SIGBUS. KVM's KVM_RUN fails instead, and QEMU stops the
//     machine and keeps it (internal-error). The driver ends it then, as it ends
//     whatever QEMU has stopped by itself ([hypervisor.VM] knows no such state).
//   - The processor is the host's (cpuid.go), and a state is of use where guests
//     find the same.
//   - A microvm has no real-time clock then; Linux must not look for it.
//   - A /dev/kvm that opens proves nothing; how fast a guest runs does (probe.go).
//
// QEMU's monitor and the guest agent's port are socket pairs, made before the
// process: nothing to connect to, nothing to authenticate, no file to leave.
package qemu
