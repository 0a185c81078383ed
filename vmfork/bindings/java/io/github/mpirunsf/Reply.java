package io.github.mpirunsf;

import io.github.mpirunsf.SFException.Kind;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** The fields of a reply that is ok. */
final class Reply {
    private record Field(String key, String value) {}

    private final String call;
    private final List<Field> fields = new ArrayList<>();

    /** Takes a line apart, and throws the error that it may be. */
    Reply(String call, byte[] line) {
        this.call = call;
        int at = starts(line, "ok") ? 2 : starts(line, "error") ? 5 : -1;
        if (at < 0) {
            throw garbled("neither ok nor error");
        }
        boolean ok = at == 2;
        while (at < line.length) {
            if (line[at++] != ' ') {
                throw garbled("no space between fields");
            }
            at = field(line, at);
        }
        if (ok) {
            return;
        }
        if (all("kind").isEmpty() || all("text").isEmpty()) {
            throw garbled("an error without kind or text");
        }
        String kind = text("kind");
        if (kind.equals("lost")) {
            throw new LostException(call + ": " + text("text"), all("clone").stream().map(this::number).toList(), statuses());
        }
        for (Kind known : Kind.values()) {
            if (known.toString().equals(kind)) {
                throw new SFException(known, call + ": " + text("text"));
            }
        }
        throw new SFException(Kind.FAILED, call + ": " + kind + ": " + text("text"));
    }

    /** The field that begins at a place, and gives where it ends. */
    private int field(byte[] line, int at) {
        int start = at;
        while (at < line.length && wordByte(line[at], at == start)) {
            at++;
        }
        if (at == start || at == line.length || line[at] != '=') {
            throw garbled("a field that is not KEY=VALUE");
        }
        String key = new String(line, start, at - start, StandardCharsets.UTF_8);
        ByteArrayOutputStream value = new ByteArrayOutputStream();
        for (at++; at < line.length && line[at] != ' '; at++) {
            byte b = line[at];
            if (b == '%') {
                int high = at + 2 < line.length ? Character.digit(line[at + 1], 16) : -1;
                int low = at + 2 < line.length ? Character.digit(line[at + 2], 16) : -1;
                if (high < 0 || low < 0) {
                    throw garbled("% without two hexadecimal digits");
                }
                b = (byte) (high << 4 | low);
                at += 2;
            } else if ((b >= 0 && b < ' ') || b == 0x7f) {
                throw garbled("a control byte");
            }
            value.write(b);
        }
        fields.add(new Field(key, value.toString(StandardCharsets.UTF_8)));
        return at;
    }

    private static boolean starts(byte[] line, String word) {
        return line.length >= word.length() && new String(line, 0, word.length(), StandardCharsets.ISO_8859_1).equals(word);
    }

    private static boolean wordByte(byte b, boolean first) {
        return (b >= 'a' && b <= 'z') || (!first && (b == '-' || (b >= '0' && b <= '9')));
    }

    SFException garbled(String what) {
        return new SFException(Kind.VERSION, call + ": the answer is not of this protocol: " + what);
    }

    List<String> all(String key) {
        return fields.stream().filter(f -> f.key().equals(key)).map(Field::value).toList();
    }

    /** Null where it is missing or empty. */
    String optional(String key) {
        return all(key).stream().findFirst().filter(v -> !v.isEmpty()).orElse(null);
    }

    String text(String key) {
        return all(key).stream().findFirst().orElseThrow(() -> garbled("it lacks " + key));
    }

    int number(String text) {
        // parseInt alone would also take a plus sign and digits of other scripts.
        if (!text.matches("-?[0-9]+")) {
            throw garbled("not a number: " + text);
        }
        try {
            return Integer.parseInt(text);
        } catch (NumberFormatException e) {
            throw garbled("a number out of range: " + text);
        }
    }

    Map<Integer, Integer> statuses() {
        Map<Integer, Integer> statuses = new TreeMap<>();
        for (String text : all("status")) {
            String[] parts = parts(text, 2);
            statuses.put(number(parts[0]), number(parts[1]));
        }
        return statuses;
    }

    int id() {
        int id = number(text("id"));
        if (id < 0) {
            throw garbled("the id is negative");
        }
        return id;
    }

    String[] parts(String text, int count) {
        String[] parts = text.split(":", -1);
        if (parts.length < count) {
            throw garbled("too few parts in " + text);
        }
        return parts;
    }
}
