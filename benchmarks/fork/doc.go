// Command fork measures the live fork of a running VM: for how long the VM
// stands still, when its child runs, and what is copied for it afterwards. It
// does so for VMs of several sizes that have written several parts of their RAM,
// since what is promised is that the pause does not grow with the RAM, and that
// it is short where much was written.
//
//	make bench-fork                # benchmarks/results/fork.json and fork.svg
//	go run ./benchmarks/fork -rounds 1 -mb 256,1024
//
// A cell is a size of VM and how much of it is written between two forks. In
// each round every cell gets one fresh VM, and the sizes take turns, so that
// whatever else the machine does meets all of them alike. A VM is forked three
// times into one child:
//
//  1. A process in the VM writes to so many pages; the first time they are its
//     first ones, later it writes to the same again. So at the first fork the
//     pages lie over the booted guest's memory, at the third over two forks'.
//  2. The host asks for a ticket, and waits a little while the hypervisor
//     processes start ahead, as a program would that works on until it forks.
//  3. It clones. The pause is what the reply says: from the order to freeze the
//     VM's processes until its agent has answered that they go on.
//  4. It waits until the written pages are copied out of the VM's former
//     process, and kills the child.
//
// From outside the pause looks like this: a process in the VM writes a line
// every millisecond, and the host looks for the longest time without one from
// just before a fork until just after its reply. This holds, beside the pause,
// what the VM is slower afterwards, while its memory is mapped again and its
// child starts on the same processors; and what a quiet VM's lines lack anyway
// is measured too.
//
// This program is both sides: in the VM it is the process that writes.
package main
