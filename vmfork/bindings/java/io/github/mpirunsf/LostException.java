package io.github.mpirunsf;

import java.util.List;
import java.util.Map;

/** What join throws when some clones died without exit. */
public final class LostException extends SFException {
    private static final long serialVersionUID = 1L;

    private final transient List<Integer> clones;
    private final transient Map<Integer, Integer> statuses;

    LostException(String message, List<Integer> clones, Map<Integer, Integer> statuses) {
        super(Kind.LOST, message);
        this.clones = clones;
        this.statuses = statuses;
    }

    /** The ids of the clones that died. */
    public List<Integer> clones() {
        return clones;
    }

    /** The statuses of those that did exit, by id. */
    public Map<Integer, Integer> statuses() {
        return statuses;
    }
}
