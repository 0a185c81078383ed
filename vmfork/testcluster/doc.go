// Package testcluster is a cluster of hosts on one machine, for tests and benchmarks: a host is a set of namespaces, the
// network between hosts is a bridge with IGMP snooping, as a switch in a rack is. It is no part of the product.
//
// # What a host is
//
// A host has a PID, a mount, a UTS, an IPC and a network namespace. So it has its own host name (host0, host1, ...), its
// own /etc, the machine's but for a hosts file that knows all the others and a few more, its own /run, its own home folder of
// root, a loopback and "eth0". All other folders are the machine's; /tmp is to the hosts what a file server is to a
// cluster. A host whose first process is killed is dead, with everything on it ([Cluster.Kill]).
//
// The addresses are of 198.18.0.0/15, which is for benchmarks of networks and nobody's. Every cluster has the same, for its
// switch is in a network namespace of its own that has no name and no other interface: clusters cannot meet, nor can a host
// reach the machine. There is no default route; what sends multicast has to say through which interface, as it must on a
// host with two.
//
// # Flow
//
//  1. [New], or [ForTest], makes the switch, and all hosts side by side. A host's first process is this program again,
//     which recognizes that it is one by its name (process.go); it mounts what the host has for itself, and then waits.
//  2. [Host.Command] prepares a program that runs in the host. [Host.Do] runs Go code of this process in the host's network,
//     for servers and clients that live in the test. [Host.SSHD] begins OpenSSH's server there.
//  3. [Cluster.SetRate], [Cluster.SetLoss], [Cluster.Cut], [Cluster.CutBetween], [Cluster.SetMulticast] change the
//     network while it is used. [Host.Traffic] reads what has crossed a host's link.
//  4. [Cluster.Close] ends it all.
//
// # Links
//
// A host's link is its cable to the switch, and both its ends. Frames leave an end at a rate (a token bucket with a queue of
// limited length, which drops what does not fit), are lost by chance (nftables in the switch's namespace), and take
// time: a link with a delay has as its cable a process that holds each frame back for so long (wire.go), for kernels
// come without netem. Each process is one link, and each direction a thread with a real-time priority.
//
// Frames may be longer than the MTU, for the kernel hands segments on together as long as it can. Where loss is set they are
// cut at the sender, so that one loss is one packet's.
//
// # End
//
// All that there is hangs on file descriptors and processes: namespaces have no name, and the processes end when a pipe from this process is closed. The kernel closes it after SIGKILL, too. Only the folder with keys and logs
// stays then.
//
// # Locking
//
// A Cluster may be used from many goroutines. Its mutex orders changes of the network. A namespace belongs to a thread:
// this process visits one on a thread of its own and leaves it again.
package testcluster
