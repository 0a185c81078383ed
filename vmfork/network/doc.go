// Package network is the private network of a job (section 4.5.4 of the paper): who has which address, the bridge
// that the virtual machines of this host are plugged into, and, inside one, the interface that answers to the address.
//
// A virtual machine of the job is a member of the network, and has a number: 0 is the one that booted, every clone gets
// one of its own, whichever ticket and parent it comes from. The number of a member that is gone may be given again.
//
// # Addresses
//
// An address is arithmetic on the job's subnet and the member's number; nobody hands addresses out and nobody asks for
// them. [Plan] does the sums, on the host and in the guest alike, for IPv4 and for MAC addresses. Because every member
// can work out every other member's MAC address, clones start with a full, permanent neighbour table, and hundreds of
// them that wake up at one instant send no ARP request.
//
// # Isolation
//
// The bridge lives in a network namespace that has no name and no other interface. That gives two properties by
// construction instead of by firewall rules:
//
//   - There is no way out. No interface of the host is in the namespace, so nothing can be routed or bridged to one;
//     and the host's own routing table never hears of the job's subnet, so that it cannot collide with the
//     10.0.0.0/8 of somebody's office, nor with another job's.
//   - There is nothing to clean up. The kernel destroys the namespace, with the bridge and the taps in it, when its
//     last user is gone. Users are open file descriptors: the [Network]'s own, a tap in QEMU, a listener. All of
//     them close when their processes die, so a SIGKILL of everything leaves no tap, no bridge and no route.
//
// What a member may reach is what the job puts there: the other members, and listeners that the host opens on its own
// address inside ([Network.Listen]).
//
// # Flow
//
//  1. [NewPlan] chooses the subnet from the job's id.
//  2. [Create] makes the namespace, lo and the bridge "sf0" with the host's address.
//  3. [Network.AddTap] makes a member's tap, on the bridge but down, and returns the descriptor that QEMU inherits
//     (-netdev tap,fd=N,vhost=off). What it sends before it has its identity goes nowhere.
//  4. In the clone, the agent calls [Configure] with [Plan.Guest]: MAC address, IP address, neighbours, link up.
//  5. The agent reports; the host calls [Network.Up], and frames flow.
//  6. [Network.Remove] takes one member away, [Network.Close] everything.
//
// # A member that goes on in another process
//
// A machine that forks while it runs goes on in a successor process, and its frames must not be lost in between. Both
// processes cannot share a tap: one that waits for its state takes a frame from it, and for an unread frame there is no
// telling for which of the two it is. So the successor has its own:
//
//  1. Ahead, [Network.Spare] makes it: on the bridge, but down, and unknown to the bridge's table.
//  2. [Network.HandOver] brings it up and changes the port in the table's entry of the member's MAC address, which the
//     bridge reads once for a frame: each goes to the old tap or to the spare. At the spare they queue until the
//     successor runs. The old process still sends, and still reads what is queued at its tap.
//  3. The old process is stopped, the successor loads the state and runs.
//  4. [Network.Retire] moves what the old process has not read into the spare's queue, and removes the old tap; from
//     then on the spare is the member's tap. Or, where the fork has failed, [Network.HandBack] moves what has queued at
//     the spare into the queue of the old tap, points the table there, and removes the spare.
//  5. Inside the machine, which keeps its identity, [AddNeighbours] introduces its clones; in a clone, [Configure]
//     replaces all of the identity that its parent had.
//
// HandOver is the only part of this in the machine's pause: a quarter of a millisecond. Retire and HandBack take some
// 30 ms, for the kernel makes sure that no processor is still at a frame. Frames that moved come after frames that were
// sent later, which Ethernet allows. What QEMU has read and the guest has not taken is QEMU's to keep.
//
// # Locking and threads
//
// A Network may be used from many goroutines. Its mutex guards the table of taps and orders the requests on its netlink
// socket. What removes taps is slow, and has a mutex and a socket of its own, so that nothing waits for it but the next
// removal; it takes the table's mutex only to look and to enter what it did. Namespaces belong to threads: whatever must be created inside the namespace (the netlink socket,
// taps, listeners) is created on a thread that visits it and returns; what was created stays inside, whichever
// thread uses it later. The calling process never changes namespace.
package network
