// Package step runs a program on a host through a command of this machine that
// carries standard input and output there and back, as a resource manager's
// srun and qrsh do.
//
// What such a command lacks is done by a script for the far sh, which the
// command starts and which gets everything else over the stream, so that no
// argument passes through a login shell of any kind.
//
// # Flow
//
//  1. The command runs [Shell] on the host. If it is not root there, it goes on
//     under sudo -n. If standard output is a terminal (srun's only way not to
//     wait for whole lines), it is read through a pipe, so that neither sudo
//     nor the program meets one.
//  2. [Start] sends the length of the second script, and that: it has the
//     program's path, hash and arguments in it.
//  3. The script looks whether the path is that program there too, as on a
//     shared file system. If not, it says so, and takes it from the stream into
//     a folder of its own in TMPDIR, which is removed before the program runs:
//     a descriptor holds the file from then on. So nothing stays behind,
//     whatever dies later, and the program finds itself at /proc/self/exe only.
//  4. It starts the program behind a guard: its input passes through a pipe,
//     and [allocator.CloseLimit] after the end of the stream the program is
//     killed. So a program that hangs ends even if this machine is dead; and
//     the far end of the command ends with a status, never by a signal, for
//     which Grid Engine would kill the whole job.
//  5. It says that it does, and the rest of the stream is the program's.
//
// The far host needs sh and coreutils.
//
// # Locking
//
// A process is [allocator.Command]'s, and has no lock of its own. Allocation.mu
// guards what has been started; nothing waits under it.
package step
