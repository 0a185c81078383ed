// Package xen tests the product in domain 0 of a Xen. It has tests only.
//
// # The flow
//
//  1. Command xen/rig/testxen compiles launcher, examples and these tests on a machine without Xen, and boots the rig: a Xen in
//     QEMU's translator, with Linux as its domain 0 (package xen/rig). The kernel for guests goes along, in a cache.
//  2. In domain 0 the tests run the launcher as a user would. It makes a guest's image, boots and checkpoints it, and launches
//     ranks in clones of it, all of them domains; and it forks a machine that runs.
//
// Nothing in here is of the rig's: with MPIRUN_SF_XEN_PRODUCT naming a folder with the launcher and the examples, it runs in any
// domain 0.
package xen
