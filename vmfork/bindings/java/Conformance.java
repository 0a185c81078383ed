import io.github.mpirunsf.Checkpoint;
import io.github.mpirunsf.Clone;
import io.github.mpirunsf.Identity;
import io.github.mpirunsf.SF;
import io.github.mpirunsf.SFException;
import io.github.mpirunsf.Ticket;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.TreeSet;
import java.util.stream.Collectors;

/**
 * The conformance program in Java; see ../README.md. Run it in a virtual machine that may fork: it prints one
 * line for each step, and the last is "conformance: ok". Where something differs it says what and
 * exits with 1.
 */
public final class Conformance {
    private static final int PATIENCE = 120; // seconds

    private static final class Different extends RuntimeException {
        private static final long serialVersionUID = 1L;

        Different(String message) {
            super(message);
        }
    }

    private static volatile int value = 42;
    private static InetSocketAddress parent; // where the children dial

    private static void expect(String step, String got, String want) {
        if (!got.equals(want)) {
            throw new Different(step + ": got " + got + ", want " + want);
        }
        System.out.println(step + ": " + got);
    }

    private static void expectKind(String step, Runnable f, String want) {
        String got = "ok";
        try {
            f.run();
        } catch (SFException e) {
            got = e.kind().toString();
        }
        expect(step, got, want);
    }

    /** What a clone does: tells the parent what it saw, and ends when that has arrived. */
    private static void child(int id, int saw, int status) {
        boolean arrived = false;
        try (Socket socket = new Socket()) {
            socket.setSoTimeout(PATIENCE * 1000);
            socket.connect(parent, PATIENCE * 1000);
            socket.getOutputStream().write(("child " + id + " saw " + saw + "\n").getBytes(StandardCharsets.UTF_8));
            socket.shutdownOutput();
            arrived = socket.getInputStream().read() < 0;
        } catch (IOException e) {
            System.err.println(e);
        }
        SF.exit(arrived ? status : 100);
    }

    /** One child's line, without its LF. */
    private static String hear(ServerSocket listener) throws IOException {
        try (Socket socket = listener.accept()) {
            socket.setSoTimeout(PATIENCE * 1000);
            var reader = new BufferedReader(new InputStreamReader(socket.getInputStream(), StandardCharsets.UTF_8));
            return String.valueOf(reader.readLine());
        }
    }

    private static String text(Map<Integer, Integer> statuses) {
        return statuses.entrySet().stream().map(e -> e.getKey() + ":" + e.getValue()).collect(Collectors.joining(" "));
    }

    private static void conformance() throws IOException, InterruptedException {
        Identity me = SF.whoami();
        expect("whoami", "id " + me.id(), "id 0");

        try (ServerSocket listener = new ServerSocket(0, 16)) {
            listener.setSoTimeout(PATIENCE * 1000);
            parent = new InetSocketAddress(me.ip(), listener.getLocalPort());
            forks(listener);
        }
    }

    private static void forks(ServerSocket listener) throws IOException, InterruptedException {
        Ticket two = SF.requestTicket(2);
        String ids = two.clones().stream().map(c -> " " + c.id()).collect(Collectors.joining());
        long addresses = two.clones().stream().map(Clone::ip).distinct().count();
        expect("ticket", "granted " + two.granted() + ", ids" + ids + ", " + addresses + " addresses",
                "granted 2, ids 1 2, 2 addresses");

        int id = SF.clone(two);
        if (id > 0) {
            child(id, value, id);
        }
        var lines = new TreeSet<String>();
        lines.add(hear(listener));
        lines.add(hear(listener));
        expect("clone", lines.first(), "child 1 saw 42");
        expect("clone", lines.last(), "child 2 saw 42");
        expect("join", text(SF.join(two, PATIENCE)), "1:1 2:2");
        expectKind("join again", () -> SF.join(two, PATIENCE), "unknown");
        expectKind("clone after join", () -> SF.clone(two), "unknown");

        expectKind("exit in the parent", () -> SF.exit(0), "refused");

        Ticket killed = SF.requestTicket(1);
        if (SF.clone(killed) > 0) {
            for (;;) {
                Thread.sleep(1000);
            }
        }
        expectKind("kill", () -> SF.kill(killed), "ok");
        expectKind("join after kill", () -> SF.join(killed, PATIENCE), "unknown");

        value = 7;
        Checkpoint checkpoint = SF.checkpointParent();
        if (checkpoint.id() > 0) {
            child(checkpoint.id(), value, 0);
        }
        value = 8;
        Ticket late = SF.requestTicket(1);
        SF.createClones(checkpoint, late);
        expect("create-clones", hear(listener), "child 1 saw 7");
        expect("join", text(SF.join(late, PATIENCE)), "1:0");

        SF.discard(checkpoint);
        try (Ticket unused = SF.requestTicket(1)) { // killed when the block ends
            expectKind("create-clones after discard", () -> SF.createClones(checkpoint, unused), "unknown");
        }
        System.out.println("conformance: ok");
    }

    public static void main(String[] arguments) throws InterruptedException {
        try {
            conformance();
        } catch (Different | SFException | IOException e) {
            System.out.println("conformance: " + e.getMessage());
            System.exit(1);
        }
    }
}
