// Package rig boots Xen on a machine that has none, for tests: under QEMU's translator, with Linux as dom0 and the tools of the
// distribution's packages. Nothing is installed, and neither KVM nor root is needed.
//
// # Flow
//
//  1. Packages (packages.go) of the hypervisor, the tools and their libraries are fetched in the versions that apt would
//     install, and unpacked in the user's cache (cache.go, xen.go). The flavour "paging" is the same version's source, compiled
//     with memory paging (paging.go), which no distribution's hypervisor has.
//  2. Linux is the kernel that guests of this project use, with more modules, taken out of its compressed image (vmlinux.go).
//  3. [Start] has package vmfork/hypervisor/rig make the machine's disk and boot it. The first command in it, dom0, installs the
//     packages' files by links and starts xenstored and xenconsoled.
//  4. Commands run in dom0 by Run, and Close turns it off.
//
// # Time
//
// A guest of this Xen is translated, and leaves its mode for Xen at every tick of its clock. With clocks that go as the host's do,
// a busy host makes ticks come faster than they are served, and limits of Xen's tools, which nobody can change, are over before
// anything has happened: at a sixth of a processor, a guest that takes half a minute of it to boot did not boot at all. So the rig's clocks
// count instructions (QEMU's icount): the rig is as slow as the host makes it and does not know. It has one
// processor then; [Options.HostTime] is for those who want more, or to measure.
//
// Command testxen runs the tests below xen/ in a rig, each package's as one static program in a copy of its folder, and brings
// their coverage back.
//
// # For tests
//
// Tests that need a Xen look for it themselves, so that they run on a real one as well. [Probe] is for those that need what only
// the rig has: a guest to start, a hypervisor of a known flavour. In the rig there are, as root,
//
//   - /dev/xen/{privcmd,evtchn,gntdev,xenbus}, xenstored, xenconsoled with logs of all guests in /var/log/xen/console, xl and
//     the rest of Xen's tools on PATH; busybox for what else is missing; no device model, so that guests are PVH or PV;
//   - modules for back ends of disks and networks, FUSE, loop devices, NBD, taps and bridges;
//   - about 1.9 GB for guests, and tmpfs on /tmp, /run and /dev/shm;
//   - no Go, no network but lo, and a translated processor: a minute of its own time is some seconds elsewhere.
//
// # Locking
//
// A part of the cache is made under a lock of its name (flock), and is read-only from then on. Runs have folders of their own,
// which are locked while the run lives; the next run removes those that are not.
package rig
