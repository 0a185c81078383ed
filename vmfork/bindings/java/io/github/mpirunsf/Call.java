package io.github.mpirunsf;

import io.github.mpirunsf.SFException.Kind;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.math.BigDecimal;
import java.math.RoundingMode;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;

/** One call: one connection, one line each way. */
final class Call {
    static final int LONGEST_LINE = 1 << 20;
    private static final double LONGEST_WAIT = 1e6;

    private final String name;
    private final ByteArrayOutputStream request = new ByteArrayOutputStream();

    Call(String name) {
        this.name = name;
        request.writeBytes(name.getBytes(StandardCharsets.UTF_8));
    }

    Call with(String key, int value) {
        return with(key, Integer.toString(value));
    }

    Call with(String key, String value) {
        if (value == null || value.isEmpty()) {
            throw new SFException(Kind.INVALID, name + ": no " + key + " given");
        }
        request.writeBytes((" " + key + "=").getBytes(StandardCharsets.UTF_8));
        for (byte b : value.getBytes(StandardCharsets.UTF_8)) {
            if (b <= ' ' || b == '%' || b == 0x7f) { // a negative byte is beyond ASCII
                request.writeBytes(String.format("%%%02X", b).getBytes(StandardCharsets.UTF_8));
            } else {
                request.write(b);
            }
        }
        return this;
    }

    Call seconds(String key, double seconds) {
        BigDecimal ms = BigDecimal.valueOf(Math.min(seconds, LONGEST_WAIT)).setScale(3, RoundingMode.HALF_UP);
        return with(key, ms.signum() == 0 ? "0" : ms.stripTrailingZeros().toPlainString());
    }

    Call vm(String vm) {
        return vm == null || vm.isEmpty() ? this : with("vm", vm);
    }

    Reply answer() {
        request.write('\n');
        if (request.size() > LONGEST_LINE) {
            throw new SFException(Kind.INVALID, name + ": the request is longer than 1 MiB");
        }
        String path = System.getenv("SF_SOCKET");
        if (path == null || path.isEmpty()) {
            path = SF.SOCKET_PATH;
        }
        try (SocketChannel channel = SocketChannel.open(StandardProtocolFamily.UNIX)) {
            try {
                channel.connect(UnixDomainSocketAddress.of(path));
            } catch (IOException e) {
                throw new SFException(Kind.UNAVAILABLE, name + ": connect to " + path + ": " + e.getMessage()
                        + " (is this a VM of mpirun-sf?)", e);
            }
            IOException unsent = send(channel);
            try {
                return new Reply(name, receiveLine(channel));
            } catch (IOException e) {
                throw unsent != null ? unsent : e;
            }
        } catch (IOException e) {
            throw new SFException(Kind.UNAVAILABLE, name + ": " + e, e);
        }
    }

    /** A server that refuses can answer and close before it has read everything, so a failure waits for the answer. */
    private IOException send(SocketChannel channel) {
        ByteBuffer rest = ByteBuffer.wrap(request.toByteArray());
        try {
            while (rest.hasRemaining()) {
                channel.write(rest);
            }
            return null;
        } catch (IOException e) {
            return e;
        }
    }

    private byte[] receiveLine(SocketChannel channel) throws IOException {
        ByteArrayOutputStream line = new ByteArrayOutputStream();
        ByteBuffer chunk = ByteBuffer.allocate(8192);
        while (line.size() <= LONGEST_LINE) {
            chunk.clear();
            if (channel.read(chunk) < 0) {
                if (line.size() == 0) {
                    throw new SFException(Kind.UNAVAILABLE, name + ": the connection ended without an answer");
                }
                throw new SFException(Kind.VERSION, name + ": the line ends in the middle");
            }
            chunk.flip();
            while (chunk.hasRemaining()) {
                byte b = chunk.get();
                if (b == '\n' && line.size() < LONGEST_LINE) {
                    return line.toByteArray();
                }
                line.write(b);
            }
        }
        throw new SFException(Kind.VERSION, name + ": a line longer than 1 MiB");
    }
}
