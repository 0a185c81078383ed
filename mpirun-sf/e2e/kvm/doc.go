// Package kvm tests the product on KVM where there is none. It has tests only.
//
// # The flow
//
//  1. Launcher, example and the tests of packages that a hypervisor matters to are
//     compiled on this machine.
//  2. A rig is booted (package rig): a Linux in QEMU's translator, which emulates a
//     processor with AMD's SVM, so that kvm_amd works in it as on hardware, page
//     tables of its own included. Only its speed is another.
//  3. The tests run in there, one after the other, and the launcher as a user would
//     start it, without a word about accelerators: its own probe must take KVM.
//  4. Output comes back as it is printed; what the tests cover comes back as files,
//     to the folder that MPIRUN_SF_TEST_RESULTS names.
//
// It needs QEMU, Go, and what make examples needs, but neither root nor a device:
// everything that is special is in the rig.
package kvm
