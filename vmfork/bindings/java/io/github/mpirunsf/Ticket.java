package io.github.mpirunsf;

import java.util.List;
import java.util.Map;

/**
 * An allocation for m ≤ n clones (2.1).
 *
 * <p>It knows whose it is: a ticket that was requested for another VM is cloned, joined and killed
 * there. In a try block it takes its clones with it, see {@link #close}.
 *
 * @param id the ticket's id
 * @param asked n: clones, or processors if hierarchical
 * @param granted m: the number of clones
 * @param clones what is known of each
 * @param vm the VM that it forks; null: the caller's own
 * @param owner the member that requested it; -1: close does nothing
 */
public record Ticket(String id, int asked, int granted, List<Clone> clones, String vm, int owner)
        implements AutoCloseable {

    /**
     * Kills the clones and discards the ticket, unless it was joined or killed. That holds in the VM that
     * requested the ticket; in a clone, which has a copy of it, and for one by {@link SF#getTicket}
     * it does nothing.
     */
    @Override
    public void close() {
        if (owner < 0) {
            return;
        }
        try {
            // Of all copies that forks made, only that in the VM that asked may kill.
            if (SF.whoami().member() == owner) {
                kill();
            }
        } catch (SFException e) {
            switch (e.kind()) {
                case UNKNOWN, REFUSED, UNAVAILABLE -> { } // joined or killed before, or gone with all the rest
                default -> throw e;
            }
        }
    }

    /** The same as {@link SF#clone(Ticket)}; a method of no argument would be Object's. */
    public int fork() {
        return SF.clone(this);
    }

    /** The same as {@link SF#createClones}. */
    public void createClones(Checkpoint checkpoint) {
        SF.createClones(checkpoint, this);
    }

    /** The same as {@link SF#join(Ticket)}. */
    public Map<Integer, Integer> join() {
        return SF.join(this);
    }

    /** The same as {@link SF#kill(Ticket)}. */
    public void kill() {
        SF.kill(this);
    }
}
