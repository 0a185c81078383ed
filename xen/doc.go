// Package xen is the driver for Xen ≥ 4.17 as a distribution ships it, in its
// domain 0. Without cgo: hypercalls, event channels, granted memory and XenStore are
// spoken to by the packages below this one, and domains are made, saved and
// restored by the xl command.
//
// # The machine
//
// A PVH guest: no firmware, no emulated device. Its devices are this process's (package
// device). Serial ports are consoles, and the kernel's command line says which is which,
// for a console has no name that a guest can see without XenStore:
// mpirun-sf.port=NAME:hvc1. XenStore itself would do for small messages, but the agent
// wants two streams.
//
// # The way of a fork
//
//  1. [Driver.Boot]: xl create -p; devices; unpause. Memory is the hypervisor's until a
//     suspension puts it into the memory file.
//  2. Suspend: xl save -p into a pipe. What comes (package stream) is taken apart as it
//     comes: pages of RAM go into the memory file, where the machine was booted, and else
//     are compared with it, which tells the dirtied ones; pages outside of RAM, some
//     20, and all that is not a page are the device state, with the list of
//     frames that the guest had (state.go). The domain stays, paused, to be read from or resumed.
//  3. [Driver.Prepare] does nothing that takes time: xl makes a domain only from a state.
//  4. Restore: xl restore -p of the device state, which leaves the domain without RAM; it
//     is given frames and filled from the memory file (memory.go); devices; unpause.
//
// # Why dirtied pages are found by comparison
//
// xl save reads all of a domain's memory in any case, and turns logging of dirty
// pages off when it ends. To compare a page that is read anyway costs a read of the
// memory file, which a restored machine has been filled from: it is in the page cache.
// And a page that was written with what it had is not dirtied.
//
// # Locking
//
// vm.op is held by what changes a machine; Kill ends that by a context first. vm.mu
// guards what Done and Err tell.
package xen
