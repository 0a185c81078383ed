// Package e2e tests the whole product as a user runs it: the binary that make
// built, real clones, real MPICH programs. It has tests only.
//
// # The flow
//
//  1. TestMain has make build the launcher and the examples, copies them into
//     a folder of its own, and gives all tests one cache there, so that each
//     guest image is built and booted once (main_test.go).
//  2. A test describes a run as a command, starts it, and gets a result; every
//     run has a deadline, and at its end nothing of it may be left
//     (command_test.go).
//     A test of a job runs in all places where there are jobs: on the host, in a
//     virtual machine, and over three hosts with SSH, which are namespaces on this
//     machine. All tests of the package share them (place_test.go, hosts_test.go).
//  3. What is on the machine is looked at from outside: processes, links,
//     mounts, files, cgroups (machine_test.go). After the last test it is
//     compared with what was there before the first.
//
// The tests need root, /dev/fuse, /dev/net/tun, QEMU and MPICH, and fail where
// one of these is missing. With MPIRUN_SF_TEST_ALL=1 they take the long way:
// every phase with every victim, and hundreds of runs where otherwise a few do.
package e2e
