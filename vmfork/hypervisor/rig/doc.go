// Package rig boots a Linux machine in which tests find what this machine does
// not have: a hypervisor that works. QEMU's translator emulates AMD's SVM, so
// what runs in such a machine can itself run guests on KVM, or under Xen.
//
// # Flow
//
//  1. [Build] makes the machine's image, as a guest's is made (package guest):
//     a kernel with more modules than a guest loads, programs of this machine
//     with their libraries, and a static init that speaks this package's
//     protocol. The caller brings the tests, compiled.
//  2. [Image.Boot] starts QEMU, without a fault of its translator that makes guests
//     of a guest stand still (mend.go), and waits for the init to be heard. With
//     [Machine.Under], what QEMU boots is another hypervisor, and Linux is its
//     first guest.
//  3. [Rig.Run] sends a command and passes its output on as it comes; then come
//     the files that were asked for, and the exit status. As many commands as
//     wanted follow one another; what one leaves, the next finds.
//  4. [Rig.Close] cuts the power of the machine.
//
// Nothing listens anywhere: the way to the init is a virtio-serial port on a
// socket pair (wire.go). The machine has no network, its disk's writes vanish
// with it, and QEMU dies with the process that started it.
//
// In the machine (init.go, serve.go) the first process loads the modules,
// mounts the disk and what a Linux has, and then does nothing but collect the
// dead; a second one serves commands.
//
// # Locking
//
// A Rig runs one command at a time. Close may be called at any time and ends
// what runs.
package rig
