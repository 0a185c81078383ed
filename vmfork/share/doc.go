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
//  3. In a clone the agent calls [Mount]. That connects, sends the token, and hands the connected socket to mount(2).
//  4. [Serve] in the child answers each connection's requests until it is closed. A session's reader takes
//     requests off the connection and gives each to a goroutine of its own; replies go out in the order in which
//     they are done.
//  5. The child leaves when its standard input ends: when SFLD closes the [Server], or dies in whatever way.
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
package share
