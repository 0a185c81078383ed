// Package guest makes the guest image that clones boot from: a kernel, an
// initramfs and an ext4 root, put together from the machine it runs on, and
// kept in a cache that is keyed by content.
//
// # Flow
//
// [Build] does the following; every step can be called on its own.
//
//  1. [Closure] reads the program's ELF headers (it never runs the program, nor
//     ldd) and lists the dynamic linker, the libraries, and what a library of MPICH
//     or Open MPI opens or starts by itself at run time: plugins, their texts, orted.
//  2. [FindKernel] finds a full kernel with its modules under /boot, or
//     fetches the distribution's package once into the cache.
//  3. The plan of the root (files of the machine, with what --with names and
//     what that needs in its turn; files that are made up; the agent) is hashed together with the kernel into the image's key.
//  4. If the cache has that key, the entry is locked in use and that is all.
//  5. Otherwise [WriteInitramfs] writes the agent, as /init, and the modules;
//     [BuildRoot] lays the plan out in a staging folder and has mke2fs turn it
//     into a file system; the finished folder is renamed into place.
//  6. Entries that were not used for the longest time go until the cache fits
//     its limit again.
//
// [FromDisk] replaces step 1 and [BuildRoot] by a disk image of the user's own.
//
// # What is in the root
//
// The closure's files at the paths, and behind the symbolic links, that they
// have on this machine; a minimal /etc that is made up rather than copied, so
// that no password hash, key or host name of the machine gets into a guest; a
// shell for scripts and system(3). The agent is in the initramfs alone. The program
// is not in it: it comes over the shared folders at launch, so that compiling
// it anew needs no new image.
//
// A guest in which a user works (Spec.Tools) also has the machine's [Tools] and the
// libraries of its compilers, MPICH and Open MPI, so that what is compiled outside runs
// inside; terminals; and a prompt that tells a clone from its parent. Spec.With
// brings more of the machine, Spec.Hooks what each clone runs first.
//
// # Locking
//
// All locks are flock(2) locks, so the kernel drops them with their process:
//
//   - DIR/lock, exclusive, for moments: creating, renaming and removing folders
//     below images/. Nothing slow happens under it.
//   - DIR/locks/KEY, exclusive, while an image is built: a second launcher
//     waits for the first and then finds the image.
//   - images/tmp-*, exclusive, on the folder itself, while it is being filled
//     or emptied; a folder that can be locked has no living owner and is
//     removed.
//   - images/KEY, shared, on the folder itself, while a job uses the entry;
//     eviction and removal need it exclusive.
//
// They are taken in the order locks/KEY, lock, folder. A [Cache] and an [Image]
// may be used by several goroutines.
package guest
