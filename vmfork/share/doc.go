// Package share is a folder of the host in every clone, at the same path, as the paper's clones had their NFS mounts
// (decision "files": the working directory and --share folders). It is a server of 9P2000.L, the protocol of the 9p
// file system in stock Linux kernels, and the guest's way to mount it.
//
// # Flow
//
//  1. SFLD calls [Start] for each folder. That runs a child process ("mpirun-sf share") and gives it, over its
//     standard input, the folder, the user and the token of the job; and a listening socket of the private network.
//  2. The child ([Main]) confines itself: it looks the folder up as the user, makes it its root directory and becomes
//     the user for good. Then it says that it is ready.
//  3. In a clone the agent calls [Mount]. That connects, sends the token, and hands the connected socket to mount(2), or
//     to a relay.
//  4. [Serve] in the child answers each connection's requests until it is closed. A session's reader takes
//     requests off the connection and gives each to a goroutine of its own; replies go out in the order in which
//     they are done.
//  5. The child leaves when its standard input ends: when SFLD closes the [Server], or dies in whatever way.
//
// # Mounts that survive
//
// The processes of a machine that is forked have files open in the folder, programs mapped from it, and their working
// directories there. A mount with [Mounting.Survives] goes on under them in the clone:
//
//  1. [Mount] starts a process, the relay ([RelayMain]), and gives the kernel's client one end of a local socket instead of the
//     connection. The relay carries whole messages, and keeps those that have no reply yet (relay.go).
//  2. From the replies it writes a book: of each fid the names that led to it, and how it was opened (book.go).
//  3. The fork finds the relay wherever it is, and copies it. In the parent nothing happens: its connection goes on.
//  4. In the clone the agent calls [Reconnect] while all other processes are frozen. The relay drops the connection
//     without a word to its peer, begins another, walks to and opens everything again, and sends again what has no
//     reply (replay.go). A clone of a clone is no different.
//
// A fid is the same file afterwards, by its identity, or it is stale: each request about it gives ESTALE, and closing it
// succeeds. Stale are files and directories that had been removed, that were replaced, that somebody else than this
// machine renamed, and that their user may not open any more as they were open, such as one made without
// permission to write and being written. Locks are not inherited, as fork(2) has it: they are the parent's. A
// request without a reply is carried out in the parent and again in the clone. Those are the kernel's own, such as
// writing pages back, since a process that waits for a reply does not freeze.
//
// The relay costs each request two more switches between processes. Measured one request at a time on a crowded machine of two
// cores (go test -bench Way; there is no kernel's client in it): reading 64 MB by 128 KB took 0.11 to 0.16 ms a block
// without it and 0.23 to 0.28 ms with it; getting attributes 0.03 ms and 0.08 to 0.16 ms. In a guest of two emulated
// processors on that machine, at its quietest: reading 1.6 ms and 3 ms a block, stat(2), which is three requests, 1.5 ms and
// 3.4 ms; while other machines competed, up to ten times as much on either way. So a job's mounts, whose machines
// are not forked while they use them, have none.
//
// # What a clone can reach
//
// A clone is hostile until proven otherwise: it runs whatever the user runs. Three fences stand around the folder, each
// enough by itself against the usual attacks:
//
//   - The process is confined to the folder by chroot(2), and has the user's rights, no more.
//   - No path is ever resolved. A fid holds an open descriptor (O_PATH) of its file; a walk goes on from there one
//     name at a time, and never through a symbolic link (O_NOFOLLOW): clients read links and resolve them themselves,
//     among their own files. A name that has a slash, or is "." or "..", or empty, is refused; ".." in a walk is
//     not given to the kernel but answered from what the fid knows, and at the root it is the root.
//   - Only regular files and directories are opened, so that no device is reached and no fifo waited for.
//
// A client can use up no more than its limits: fids, requests under way, waiting locks, and buffers; see session.go.
//
// # Files
//
// New files belong to the user, whoever made them in the clone, and the group and mode follow the host's rules. Files that
// are removed while they are open live on in their fids. O_APPEND is the host's, so that clones may write one
// log together. A file's identity (qid.path) is its inode number, which hard links share. Extended attributes, and
// access control lists with them, are not offered.
//
// Advisory locks hold between clones, and between them and processes of the host. See lock.go for whose they are. Two
// things differ from a local file's: unlocking with flock(2) from another process than the one which locked takes effect
// when the file is closed; and a process that opens a file twice and read-locks the same bytes through both with
// F_OFD_SETLK loses both locks with the first.
//
// # Locking
//
// fids are immutable, and counted: a request holds the ones that it uses, so that a clunk in the middle closes nothing
// under it. Opening a fid puts a new one in its place. session.mu guards the table of fids and that of requests;
// session.writeMu, taken first where both are, orders replies. session.lockMu guards the books of locks. Nothing that can
// wait for a disk or a peer is done under session.mu.
//
// In a relay, reconnecting is taken first, then sendMu, which orders requests against a change of connections; mu guards
// the book and the table of requests, and deliverMu orders what the kernel is written. Neither is held with another
// after it.
package share
