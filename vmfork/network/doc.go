// Package network is the private network of a ticket (section 4.5.4 of the paper): who has which address, the bridge
// that the clones of this machine are plugged into, and, inside a clone, the interface that answers to the address.
//
// # Addresses
//
// An address is arithmetic on the job's subnet and the clone's id; nobody hands addresses out and nobody asks for
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
// What a clone may reach is what the job puts there: the other clones, and listeners that the host opens on its own
// address inside ([Network.Listen]).
//
// # Flow
//
//  1. [NewPlan] chooses the subnet from the job's id.
//  2. [Create] makes the namespace, lo and the bridge "sf0" with the host's address.
//  3. [Network.AddTap] makes a clone's tap, on the bridge but down, and returns the descriptor that QEMU inherits
//     (-netdev tap,fd=N,vhost=off). What the clone sends before it has its identity goes nowhere.
//  4. In the clone, the agent calls [Configure] with [Plan.Guest]: MAC address, IP address, neighbours, link up.
//  5. The agent reports; the host calls [Network.Up], and frames flow.
//  6. [Network.Remove] takes one clone away, [Network.Close] everything.
//
// # Locking and threads
//
// A Network may be used from many goroutines. Its mutex guards the table of taps and orders the requests on the one
// netlink socket. Namespaces belong to threads: whatever must be created inside the namespace (the netlink socket,
// taps, listeners) is created on a thread that visits it and returns; what was created stays inside, whichever
// thread uses it later. The calling process never changes namespace.
package network
