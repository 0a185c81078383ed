package io.github.mpirunsf;

import java.util.Locale;

/** What every call of {@link SF} throws when it fails. */
public class SFException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    /** What went wrong, in one word of the protocol. */
    public enum Kind {
        /** A request that makes no sense. */
        INVALID,
        /** No such ticket, checkpoint or VM, or no longer. */
        UNKNOWN,
        /** Not yours, or not allowed here. */
        REFUSED,
        /** Not now: for example a ticket that was cloned already. */
        STATE,
        /** No room for even one clone. */
        RESOURCES,
        /** The fork failed; the message says where. */
        FAILED,
        /** A clone died without exit. */
        LOST,
        /** The time given has passed. */
        TIMEOUT,
        /** The ticket was killed meanwhile. */
        KILLED,
        /** This copy of the caller is in a clone that another's fork made. */
        CLONED,
        /** The two sides do not understand each other. */
        VERSION,
        /** Nobody is there to answer. */
        UNAVAILABLE;

        /** The protocol's word. */
        @Override
        public String toString() {
            return name().toLowerCase(Locale.ROOT);
        }
    }

    private final Kind kind;

    SFException(Kind kind, String message) {
        super(message);
        this.kind = kind;
    }

    SFException(Kind kind, String message, Throwable cause) {
        super(message, cause);
        this.kind = kind;
    }

    /** What went wrong. */
    public Kind kind() {
        return kind;
    }
}
