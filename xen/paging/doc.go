// Package paging gives a domain its memory page by page, as its guest touches it, where the hypervisor has memory paging
// (CONFIG_MEM_PAGING): what the paper's memtap does (section 4.3), on today's Xen.
//
// # The way of a page
//
//  1. [Attach] has Xen put events of paging into a ring (ring.go), and gives the domain its frames without content: each is populated
//     and paged out at once, for Xen has no other way to say that there is a frame whose content comes later.
//  2. Those that have to be there before the guest runs are brought ([Eager], see below).
//  3. A vCPU that touches one of the others is stopped by Xen, which puts a request into the ring. [Pager.Serve] reads the page from the memory
//     file, with its neighbours, gives them to Xen, and answers the request, whereupon the vCPU goes on.
//  4. [Pager.Finish] brings all that is left and detaches: a domain that is to be saved is read as a whole in any case.
//
// Requests for one page can be many: of other vCPUs, of domains that map it, and of Xen for one vCPU again and again. Each is
// answered, for it may have stopped a vCPU and has a place in the ring; a page is brought once. Requests are served side by side,
// as many as the ring takes: one that waits for a page of another host holds up nobody else.
//
// # The pages that have to be there, and why
//
// What a vCPU touches itself can wait: its page tables, its code and its stack are paged in like all else. Xen's own accesses can
// not, for Xen 4.17 has no guest's processor that it could stop in the middle of a hypercall:
//
//   - To register memory (VCPUOP_register_vcpu_info), it takes a page that is there, and refuses one that is out with EINVAL
//     (get_page_from_gfn in xen/arch/x86/mm/p2m.c). Linux registers the vcpu_info of each processor again when it has been restored,
//     without touching it before, and panics when that is refused. It lies in the processor's per-CPU data, as do the run-state areas,
//     which Xen writes to behind the guest's back.
//   - A hypercall's arguments that are out are refused with EFAULT, and nobody is asked for them (hvm_translate_get_page in
//     xen/arch/x86/hvm/hvm.c looks for the page before it looks at the frame's type). Linux has them on its stack and writes them right before. Where they
//     lie across two pages, the upper one may not have been touched since the restore: it belongs to the stack that the processor stands on.
//
// So [Eager] are those two areas of each processor, found by its registers and page tables. That this is enough was seen of one
// processor: of a guest with two, clones stood still side by side, and [Attach] refuses it. Pages outside of RAM, through which the guest
// speaks with Xen's daemons, come with the device state.
//
// # Locking
//
// Pager.mu guards the ring's answers and what is known to be in. It is never held while a page is read.
package paging
