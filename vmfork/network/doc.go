// Package network is the private network of a job (section 4.5.4 of the paper): who has which address, the bridge
// that the virtual machines of this host are plugged into, what joins it with those of the job's other hosts, what a
// member may send, the way out, and, inside a virtual machine, the interface that answers to its address.
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
// The bridge lives in a network namespace that has no name and no interface of the host. That gives two properties by
// construction instead of by firewall rules:
//
//   - There is no way out. No interface of the host is in the namespace, so nothing can be routed or bridged to one;
//     and the host's own routing table never hears of the job's subnet, so that it cannot collide with the
//     10.0.0.0/8 of somebody's office, nor with another job's.
//   - There is nothing to clean up. The kernel destroys the namespace, with the bridge and the taps in it, when its
//     last user is gone. Users are open file descriptors: the [Network]'s own, a tap in QEMU, a listener. All of
//     them close when their processes die, so a SIGKILL of everything leaves no tap, no bridge and no route.
//
// What a member may reach is what the job puts there: the other members, listeners that the host opens on its own
// address inside ([Network.Listen]), and what [Network.OpenWay] lets out.
//
// # What a member may send
//
// A member is not trusted to be who it says. What comes from its tap must be IPv4 from its own hardware and IP address,
// or ARP that names these two as the sender's; everything else is dropped where it enters the bridge: others' addresses,
// IPv6, VLAN tags, the frames of bridges and switches. So is what a DHCP server sends. With that a member cannot draw
// another's frames to itself, speak in its name, or make itself a router or a server of addresses. It can still send as
// much as it likes to the members of its own job.
//
// The rules are nf_tables' in the job's namespace: one set for all taps, of interface, hardware address and IP address,
// which a tap is entered into before it can come up. They cost a frame 0.3 µs of the 2.9 µs that it takes from tap to tap
// (BenchmarkFrame, on the machine that the other figures here are of), and a tap a part of the 0.6 ms that
// it takes to make. They are always there: a kernel that cannot do this is one on which [Create] and [Probe] fail.
//
// # Flow
//
//  1. [NewPlan] chooses the subnet from the job's id.
//  2. [Create] makes the namespace, lo, the bridge "sf0" with the host's address, and the rules.
//  3. [Network.Join], where the job has more hosts, adds what leads to them.
//  4. [Network.AddTap] makes a member's tap, on the bridge but down, and returns the descriptor that QEMU inherits
//     (-netdev tap,fd=N,vhost=off). What it sends before it has its identity goes nowhere.
//  5. [Network.Locate] tells each other host where the member is.
//  6. In the clone, the agent calls [Configure] with [Plan.Guest]: MAC address, IP address, MTU, neighbours, link up.
//  7. The agent reports; the host calls [Network.Up], and frames flow.
//  8. [Network.Remove] takes one member away, [Network.Forget] does so on the other hosts, [Network.Close] everything.
//
// # Many hosts
//
// A job has a bridge on each of its hosts, and a VXLAN (RFC 7348) between them. Only one of the hosts has the gateway,
// the address [Plan.Host] at its bridge, with the listeners and the way out. A frame of a clone on host A for one on host
// B goes like this:
//
//  1. The clone knows the other's hardware address, by its table of neighbours, and sends. QEMU writes the frame to its tap.
//  2. On host A the filter sees that the addresses are the clone's own.
//  3. The bridge's table, which [Network.Locate] wrote, says that the other is behind the VXLAN's port; the VXLAN's own
//     table, that it is on host B. (Had the other been on host A, the bridge would have given the frame to its tap, and
//     nothing would have left the host.)
//  4. The kernel puts VXLAN's header with the job's number around it, and UDP's and IP's, and sends it on the network
//     that the hosts share. The VXLAN's socket is in the host's namespace and its device in the job's, from the
//     first moment.
//  5. On host B the guard sees that the packet is from a host of the job, for this one, and sent by root there.
//  6. The VXLAN's device takes the headers off, and the bridge gives the frame to the other clone's tap.
//
// Broadcasts, and frames for members that nobody has located, go from the sender's host to every other; what came from
// a host is never passed on to another. No bridge and no VXLAN learns addresses from frames.
//
// VXLAN's headers take 50 bytes of each packet on the underlay, 70 on IPv6. So the network of many hosts has a smaller
// MTU ([FabricMTU], [Network.MTU]), which bridges, taps and members must all have.
//
// VXLAN takes packets from anybody who knows a number of 24 bits, so each host has a guard: a table of nf_tables in its
// own namespace that drops packets with the job's number from other addresses than the job's hosts', and those from ports
// that any user can send from. The kernel removes it with the socket that made it, that is with this process. What this
// asks of the underlay:
//
//   - Who can forge IP packets there, or is root on one of the job's hosts, can send frames into the job's network;
//     and who can listen, reads them. Nothing is encrypted or signed, as nothing is between MPI ranks on a cluster otherwise.
//   - Where net.ipv4.ip_unprivileged_port_start has been lowered, any user of the job's hosts can send them too.
//   - A firewall of the host must let UDP to the fabric's port in: the guard forbids, but cannot allow what others forbid.
//
// # The way out
//
// [Network.OpenWay] lets members out, which have the gateway for their default route, by the gateway's host for members
// of all hosts. There is no veth pair, no forwarding and no address translation in the host's kernel, for these need
// settings of the host that outlive a SIGKILL, and open the host to others. Instead, this process is the way:
//
//  1. A member's first packet to an address outside comes to the gateway. Rules there look at destination, protocol and port.
//  2. What is not allowed is answered with ICMP's "administratively prohibited".
//  3. What is allowed is diverted (TPROXY) to a socket of this process in the job's namespace, which keeps the
//     destination as its own address.
//  4. This process connects to the destination from the host's namespace, as any program of the host would, and carries
//     bytes both ways: TCP in the kernel's pipes, UDP by datagrams until a minute without any.
//
// To the outside everything comes from the host, and its routes and firewall rules are what counts; those that ask for a
// user see this process's, root. The hosts of the job
// themselves are out of reach but for the addresses that [Way.Allow] has an entry for, each on its own. A limit of the rate
// slows TCP down without loss, and loses datagrams that would have to wait. ICMP passes neither way: ping has no answer,
// and a datagram to a closed port none either. Nobody outside can begin a connection, but for the parent's ports in [Way.Forward].
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
// socket. What removes taps is slow, and has a mutex and sockets of its own, so that nothing waits for it but the next
// removal; it takes the table's mutex only to look and to enter what it did. The way out takes neither; its own mutex is
// for the table of datagram flows. Namespaces belong to threads: whatever must be created inside the namespace (the
// netlink socket, taps, listeners) is created on a thread that visits it and returns; what was created stays inside,
// whichever thread uses it later. The calling process never changes namespace. Join and OpenWay take the namespace of
// their caller's thread for the host's.
package network
