package io.github.mpirunsf;

import io.github.mpirunsf.SFException.Kind;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/**
 * The VM fork API of the SnowFlock paper (table I).
 *
 * <pre>{@code
 * try (Ticket ticket = SF.requestTicket(4)) {
 *     int id = SF.clone(ticket);
 *     if (id > 0) {
 *         work(id, ticket.granted());
 *         SF.exit(0);
 *     }
 *     System.out.println(SF.join(ticket)); // {1=0, 2=0, 3=0, 4=0}
 * }
 * }</pre>
 *
 * <p>Every call throws {@link SFException}. Beside the kinds that its text names, any can have
 * unavailable (nobody answers at the socket), version (an answer that is not of this protocol) and invalid.
 *
 * <p>Calls block until they are answered; an interrupt of the thread takes the call back, as
 * unavailable, and leaves the thread interrupted. A call has a connection of its own, so any
 * thread may call.
 *
 * <p>The socket is $SF_SOCKET, else {@link #SOCKET_PATH}. The numbers in brackets are sections of the paper,
 * Lagar-Cavilla et al., ACM TOCS 29(1), 2011.
 */
public final class SF {
    /** Where the calls go when SF_SOCKET does not say. */
    public static final String SOCKET_PATH = "/run/mpirun-sf/sf.sock";

    private SF() {}

    /** Reserves n clones: {@link #requestTicket(String, int, boolean, int)} for this VM. */
    public static Ticket requestTicket(int n) {
        return requestTicket(null, n, false, 0);
    }

    /** Reserves n clones, or processors: {@link #requestTicket(String, int, boolean, int)} for this VM. */
    public static Ticket requestTicket(int n, boolean hierarchical) {
        return requestTicket(null, n, hierarchical, 0);
    }

    /**
     * Reserves clones (table I, 2.1). Kinds: resources (there is room for none), unknown and refused (about vm).
     *
     * @param vm another VM to be forked, which the caller owns (2.3); null: this one
     * @param n how many, at least 1; the ticket describes the 1 ≤ m ≤ n that are granted
     * @param hierarchical n counts processors; clones have as many virtual CPUs as the VM, together at
     *     most n, and the caller forks processes in each
     * @param vcpus virtual CPUs of each clone; 0: as granted
     */
    public static Ticket requestTicket(String vm, int n, boolean hierarchical, int vcpus) {
        int owner = whoami().member(); // before: it is the owner even if another forks now
        Call call = new Call("request-ticket").with("clones", n);
        if (hierarchical) {
            call.with("hierarchical", 1);
        }
        if (vcpus != 0) {
            call.with("vcpus", vcpus);
        }
        return ticket(call.vm(vm).answer(), vm, owner);
    }

    /** The ticket of this id, as it was granted; its close does nothing. Kinds: unknown. */
    public static Ticket getTicket(String id) {
        return getTicket(null, id);
    }

    /** The same of another VM's ticket (2.3); vm null: this one's. */
    public static Ticket getTicket(String vm, String id) {
        return ticket(new Call("ticket").with("ticket", id).vm(vm).answer(), vm, -1);
    }

    /**
     * Forks the VM (table I, 2.1). Returns in m + 1 VMs: 0 in the parent, when all clones are ready; in
     * each clone its id, 1...m. A clone has the parent's memory, processes and disk as they were; its
     * established TCP connections are dead, its listening sockets are its own.
     *
     * <p>Kinds: unknown, refused (not one's ticket), state (cloned before), failed, killed; then there
     * are no clones.
     */
    public static int clone(Ticket ticket) {
        return new Call("clone").with("ticket", ticket.id()).vm(ticket.vm()).answer().id();
    }

    /** Keeps this VM's state: {@link #checkpointParent(String)} of null. */
    public static Checkpoint checkpointParent() {
        return checkpointParent(null);
    }

    /**
     * Keeps the VM's state to make clones of later (table I, 2.3). Returns with id 0 when the checkpoint
     * is made, and once more in each clone that createClones makes of it, with the clone's id and
     * ticket. vm: another VM, whose clones wake up in awaitFork; null: this one.
     *
     * <p>Kinds: failed, state (a fork of this VM is going on), unknown and refused (about vm).
     */
    public static Checkpoint checkpointParent(String vm) {
        Reply reply = new Call("checkpoint-parent").vm(vm).answer();
        return new Checkpoint(reply.text("checkpoint"), reply.id(), reply.optional("ticket"), vm);
    }

    /**
     * Makes the ticket's clones of a checkpoint (table I, 2.3). Returns when all are ready; they return from
     * checkpointParent. Kinds: unknown, refused, state (the ticket was used), failed, killed.
     */
    public static void createClones(Checkpoint checkpoint, Ticket ticket) {
        new Call("create-clones").with("checkpoint", checkpoint.checkpoint()).with("ticket", ticket.id())
                .vm(ticket.vm()).answer();
    }

    /**
     * Forgets a checkpoint, and frees its memory once no clone reads from it. Clones that were made of
     * it live on. Kinds: unknown, refused.
     */
    public static void discard(Checkpoint checkpoint) {
        new Call("discard").with("checkpoint", checkpoint.checkpoint()).vm(checkpoint.vm()).answer();
    }

    /**
     * Terminates the clone (table I). The whole VM ends, with everything that runs in it and without
     * notice to it, and its parent's join gets status, 0...255. What others are to have must have reached
     * them: data in socket buffers is lost.
     *
     * <p>Does not return. Kinds: refused, in a VM that is no clone.
     */
    public static void exit(int status) {
        new Call("exit").with("status", status).answer();
        throw new SFException(Kind.VERSION, "exit: answered, and the VM still runs");
    }

    /** Terminates another VM, a clone (2.3). Kinds: unknown, refused. */
    public static void exit(String vm, int status) {
        new Call("exit").with("status", status).with("vm", vm).answer();
    }

    /** Waits for ever: {@link #join(Ticket, double)} of -1. */
    public static Map<Integer, Integer> join(Ticket ticket) {
        return join(ticket, -1);
    }

    /**
     * Waits until all clones of the ticket have called exit (table I), at most timeout seconds (up to 1e6), or
     * for ever if it is negative. Returns the status of each clone by its id, ordered; then the
     * clones are gone and the ticket is discarded.
     *
     * <p>Kinds: lost (a clone died without exit; a {@link LostException}), timeout (the ticket stays), unknown (joined or killed
     * before), refused, killed.
     */
    public static Map<Integer, Integer> join(Ticket ticket, double timeout) {
        Call call = new Call("join").with("ticket", ticket.id());
        if (timeout >= 0) {
            call.seconds("timeout", timeout);
        }
        Reply reply = call.vm(ticket.vm()).answer();
        return reply.statuses();
    }

    /**
     * Kills all clones of the ticket at once and discards it (table I). Also for a ticket that was never
     * cloned. Kinds: unknown, refused.
     */
    public static void kill(Ticket ticket) {
        new Call("kill").with("ticket", ticket.id()).vm(ticket.vm()).answer();
    }

    /** Kills one clone, by its id in the ticket. Kinds: unknown, refused. */
    public static void kill(Ticket ticket, int clone) {
        new Call("kill").with("ticket", ticket.id()).with("clone", clone).vm(ticket.vm()).answer();
    }

    /**
     * The callback of forks that others trigger (2.3): blocks. In a clone that another's call made of
     * this VM it returns who one is. In the VM that was forked it goes on blocking.
     */
    public static Fork awaitFork() {
        Reply reply = new Call("await-fork").answer();
        return new Fork(reply.id(), reply.text("ticket"));
    }

    /** Who this VM is, since its last fork. */
    public static Identity whoami() {
        Reply r = new Call("whoami").answer();
        return new Identity(r.number(r.text("id")), r.number(r.text("member")), r.text("name"), r.text("ip"),
                r.number(r.text("vcpus")), r.text("host"), r.optional("ticket"));
    }

    /** All machines of the job. */
    public static List<VM> listVMs() {
        Reply reply = new Call("list").answer();
        List<VM> vms = new ArrayList<>();
        for (String text : reply.all("vm")) {
            String[] p = reply.parts(text, 6);
            vms.add(new VM(p[0], reply.number(p[1]), p[2], p[3].isEmpty() ? -1 : reply.number(p[3]),
                    p[4].isEmpty() ? null : p[4], p[5].isEmpty() ? 0 : reply.number(p[5])));
        }
        return vms;
    }

    private static Ticket ticket(Reply reply, String vm, int owner) {
        List<Clone> clones = new ArrayList<>();
        for (String text : reply.all("clone")) {
            String[] p = reply.parts(text, 5);
            clones.add(new Clone(reply.number(p[0]), p[1], p[2], reply.number(p[3]), p[4]));
        }
        int granted = reply.number(reply.text("granted"));
        if (granted != clones.size()) {
            throw reply.garbled(granted + " clones are granted and " + clones.size() + " described");
        }
        return new Ticket(reply.text("ticket"), reply.number(reply.text("asked")), granted,
                List.copyOf(clones), vm == null || vm.isEmpty() ? null : vm, owner);
    }
}
