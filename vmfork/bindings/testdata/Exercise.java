import io.github.mpirunsf.Checkpoint;
import io.github.mpirunsf.Clone;
import io.github.mpirunsf.Fork;
import io.github.mpirunsf.Identity;
import io.github.mpirunsf.LostException;
import io.github.mpirunsf.SF;
import io.github.mpirunsf.SFException;
import io.github.mpirunsf.Ticket;
import io.github.mpirunsf.VM;
import java.util.List;
import java.util.Map;

/** What exercise.c does, for sf.jar. Also: Exercise scope, the life of tickets. */
public final class Exercise {
    private static void attempt(String call, Runnable f) {
        try {
            f.run();
        } catch (SFException e) {
            System.out.printf("%s: %s [%s]%n", call, e.kind(), e.getMessage());
        }
    }

    private static void done(String call, Runnable f) {
        attempt(call, () -> {
            f.run();
            System.out.println(call + ": ok");
        });
    }

    private static String orNothing(String s) {
        return s == null ? "" : s;
    }

    private static void show(Ticket t) {
        System.out.printf("ticket: [%s] [%s] %d %d%n", t.id(), orNothing(t.vm()), t.asked(), t.granted());
        for (Clone c : t.clones()) {
            System.out.printf("  %d %s %s %d [%s]%n", c.id(), c.name(), c.ip(), c.vcpus(), c.host());
        }
    }

    private static void calls() {
        Identity me = SF.whoami();
        System.out.printf("whoami: %d %d %s %s %d [%s] [%s]%n", me.id(), me.member(), me.name(), me.ip(), me.vcpus(),
                me.host(), orNothing(me.ticket()));
        Ticket t = SF.requestTicket(3);
        show(t);
        Ticket other = SF.requestTicket("web 1%", 4, true, 2);
        show(other);
        System.out.println("clone: " + SF.clone(t));
        System.out.println("clone: " + other.fork());
        show(SF.getTicket("t 1"));
        Checkpoint c = null;
        for (int i = 0; i < 2; i++) {
            c = SF.checkpointParent();
            System.out.printf("checkpoint: [%s] %d [%s]%n", c.checkpoint(), c.id(), orNothing(c.ticket()));
        }
        Checkpoint last = c;
        done("create-clones", () -> SF.createClones(last, t));
        done("discard", () -> SF.discard(last));
        done("exit", () -> SF.exit(3));
        done("exit", () -> SF.exit("web 1%", 4));
        Map<Integer, Integer> statuses = SF.join(t);
        System.out.printf("join: 1:%d 2:%d%n", statuses.get(1), statuses.get(2));
        done("join", () -> SF.join(t, 2.5));
        try {
            SF.join(t, 0);
        } catch (LostException e) {
            System.out.printf("join: lost [%s]%n", e.getMessage());
            System.out.printf("lost: %d:-1 2:%d%n", e.clones().get(0), e.statuses().get(2));
        }
        done("kill", () -> SF.kill(t, 2));
        done("kill", t::kill);
        Fork fork = SF.awaitFork();
        System.out.printf("await-fork: %d [%s]%n", fork.id(), fork.ticket());
        for (VM vm : SF.listVMs()) {
            System.out.printf("  %s %d %s %d [%s] %d%n", vm.name(), vm.member(), vm.ip(), vm.parent(),
                    orNothing(vm.ticket()), vm.id());
        }
        for (String kind : List.of("invalid", "unknown", "refused", "state", "resources", "failed", "lost", "timeout",
                "killed", "cloned", "version", "unavailable", "novel")) {
            attempt("ticket", () -> SF.getTicket(kind));
        }
    }

    private static void garbage(int times) {
        for (; times > 0; times--) {
            try {
                SF.whoami();
                System.out.println("ok");
            } catch (SFException e) {
                System.out.println(e.kind());
            }
        }
    }

    private static void quietly(Runnable f) {
        try {
            f.run();
        } catch (SFException e) {
            // any kind will do
        }
    }

    private static void fuzz(int times) {
        for (; times > 0; times--) {
            quietly(() -> {
                try (Ticket t = SF.requestTicket(2, true)) {
                    quietly(() -> SF.clone(t));
                    quietly(() -> SF.createClones(new Checkpoint("c", 0, null, null), t));
                    quietly(() -> SF.join(t, 0.001));
                    quietly(() -> SF.kill(t, 1));
                }
            });
            quietly(() -> SF.getTicket("t"));
            quietly(SF::checkpointParent);
            quietly(() -> SF.exit(1));
            quietly(SF::awaitFork);
            quietly(SF::listVMs);
        }
        System.out.println("fuzz: ok");
    }

    @SuppressWarnings("try") // a ticket that is not used
    private static void scope() {
        try (Ticket t = SF.requestTicket(1)) {
            // killed
        }
        try (Ticket t = SF.requestTicket(2)) {
            t.join();
        }
        try (Ticket t = SF.requestTicket(3)) { // what a clone finds
            t.fork();
        }
    }

    public static void main(String[] arguments) {
        switch (arguments[0]) {
            case "calls" -> calls();
            case "garbage" -> garbage(Integer.parseInt(arguments[1]));
            case "fuzz" -> fuzz(Integer.parseInt(arguments[1]));
            case "scope" -> scope();
            default -> System.exit(2);
        }
    }
}
