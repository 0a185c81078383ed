// Package forktest tests the examples of VM fork without a virtual machine: each
// runs with a fake of its binding, in testdata, by which a clone is a process. That
// is the same program, confined to one machine (paper 2.1.1), so what is proven
// here is that the examples divide, relay and collate their work rightly. What
// only a VM does, such as that damage is gone, is for the tests of the whole.
package forktest
