// Package xen is the driver for Xen ≥ 4.17 as a distribution ships it, in its
// domain 0. Without cgo: hypercalls, event channels, granted memory and XenStore are
// spoken to by the packages below this one, and domains are made, saved and
// restored by the xl command.
//
// # The machine
//
// A PVH guest, or, of another driver, a PV one: no firmware, no emulated device. Its devices are this process's (package
// device), but for the disk, which is served by a process of its own (disk.go). Serial ports are consoles, and the kernel's command line says which is which,
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
//  4. Restore: xl restore -p of the device state, which leaves a PVH domain without RAM; it
//     is given frames, and its memory from the memory file; devices; unpause.
//
// # Two ways for memory to come
//
// Those are for PVH guests. [Driver.OnDemand] says which, as the hypervisor was found. Either is a process of its own.
//
//  1. Where Xen has memory paging, a pager (pager.go, package paging) gives the domain frames without content, and each page when the guest
//     touches it. It lives as long as the machine. A suspension has it bring the rest and end, for xl save reads all.
//  2. Elsewhere, and where Xen refuses to page that domain, a filler (helper.go, memory.go) brings all pages before the guest runs.
//
// # PV guests
//
// They need no virtualization of the processor's ([Guests]). What is a PVH guest's own matter is Xen's with them: their page tables have the numbers of
// the machine's frames, and Xen checks and pins them. So these differ, and all else does not:
//
//  1. In a saved domain page tables name the guest's frames, and every page has a type. The memory file has page tables in that form, the same
//     whichever frames a domain has, and the list of frames has the types. All of RAM is from frame 0 on, and no page is outside of it.
//  2. Restore: while it makes the domain, xl rewrites page tables, the list of the machine's frames, and pages that the guest shares with
//     Xen, and Xen looks into descriptor tables. All of these have to be there, and are anywhere. So a writer (writer.go) puts the
//     device state and all of the memory file together, for xl to read. Nothing can come on demand.
//  3. What a suspension finds dirtied is read by the machine's frames, which the saved list tells, but page tables are
//     kept as they were saved (translation.go).
//
// # Why dirtied pages are found by comparison
//
// xl save reads all of a domain's memory in any case, and turns logging of dirty
// pages off when it ends. To compare a page that is read anyway costs a read of the
// memory file, which a restored machine has been filled from: it is in the page cache.
// And a page that was written with what it had is not dirtied.
//
// # When this process is killed
//
// A domain outlives who made it, and nothing of Xen's ends it with him. So that domains do not, whatever happens (owner.go):
//
//  1. [Find] makes an owner: a file in /run/mpirun-sf-xen that is locked as long as this process lives, or a command of
//     xl's that it has started and that may still make a domain. Its name is part of the names of
//     all domains, which xl gives them as it makes them: there is no moment in which one belongs to nobody.
//  2. It starts a holder, this program again in a session of its own, which waits for that lock. Who gets it knows that the
//     owner is dead, and destroys its domains and what their devices have in XenStore.
//  3. A holder can be killed as well, with a whole cgroup, or by the kernel with the first process of its PID namespace. So Find
//     does first of all what holders do, for every owner whose lock is free ([Sweep]). A process outside of such a namespace
//     calls Sweep when the one inside has ended.
//
// The lock is the sign of life, and not the number of a process, because it means the same in all PID namespaces, and because
// commands inherit it. The holder waits for the lock instead of for the end of a pipe, so that there is one truth for it and
// for Sweep, and both cannot be at the same domains.
//
// # Memory that does not come
//
// The memory file may be memtap's, whose server is this process, and its pages another host's. So nobody but helpers opens it: the filler,
// writer or pager, and a reader for what a suspension is compared with (reader.go); as for the disk's file, what serves it (disk.go). They end with the
// machine whatever they wait for. A read that fails ends the machine with that reason, and so does a pager that was killed.
//
// # Locking
//
// vm.op is held by what changes a machine; Kill ends that by a context first. vm.mu
// guards what Done and Err tell.
package xen
