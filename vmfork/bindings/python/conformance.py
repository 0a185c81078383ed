"""The conformance program in Python; see ../README.md.

Run it in a virtual machine that may fork: it prints one line for each step, and
the last is "conformance: ok". Where something differs it says what and exits
with 1.
"""

import signal
import socket
import sys

import sf

PATIENCE = 120  # seconds


def expect(step, got, want):
    if got != want:
        sys.exit(print(f"conformance: {step}: got {got}, want {want}", flush=True) or 1)
    print(f"{step}: {got}", flush=True)


def expect_kind(step, want, f, *arguments):
    try:
        f(*arguments)
        got = "ok"
    except sf.Error as e:
        got = e.kind
    expect(step, got, want)


def child(parent, id, saw, status):
    """What a clone does: tells the parent what it saw, and ends when that has arrived."""
    try:
        with socket.create_connection(parent, PATIENCE) as connection:
            connection.sendall(f"child {id} saw {saw}\n".encode())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
    except OSError:
        status = 100
    sf.exit(status)


def hear(listener):
    """One child's line, without its LF."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(PATIENCE)
        with connection.makefile() as lines:
            return lines.readline().rstrip("\n")


def text(statuses):
    return " ".join(f"{id}:{status}" for id, status in sorted(statuses.items()))


def conformance():
    me = sf.whoami()
    expect("whoami", f"id {me.id}", "id 0")
    with socket.create_server(("", 0), backlog=16) as listener:
        listener.settimeout(PATIENCE)
        forks(listener, (me.ip, listener.getsockname()[1]))
    print("conformance: ok", flush=True)


def forks(listener, parent):
    value = 42
    ticket = sf.request_ticket(2)
    ids = " ".join(str(c.id) for c in ticket.clones)
    addresses = len({c.ip for c in ticket.clones})
    expect("ticket", f"granted {ticket.granted}, ids {ids}, {addresses} addresses", "granted 2, ids 1 2, 2 addresses")

    id = sf.clone(ticket)
    if id > 0:
        child(parent, id, value, id)
    lines = sorted((hear(listener), hear(listener)))
    expect("clone", lines[0], "child 1 saw 42")
    expect("clone", lines[1], "child 2 saw 42")
    expect("join", text(sf.join(ticket, PATIENCE)), "1:1 2:2")
    expect_kind("join again", "unknown", sf.join, ticket, PATIENCE)
    expect_kind("clone after join", "unknown", sf.clone, ticket)

    expect_kind("exit in the parent", "refused", sf.exit, 0)

    ticket = sf.request_ticket(1)
    if sf.clone(ticket) > 0:
        while True:
            signal.pause()
    expect_kind("kill", "ok", sf.kill, ticket)
    expect_kind("join after kill", "unknown", sf.join, ticket, PATIENCE)

    value = 7
    checkpoint = sf.checkpoint_parent()
    if checkpoint.id > 0:
        child(parent, checkpoint.id, value, 0)
    value = 8
    with sf.request_ticket(1) as ticket:
        sf.create_clones(checkpoint, ticket)
        expect("create-clones", hear(listener), "child 1 saw 7")
        expect("join", text(ticket.join(PATIENCE)), "1:0")

    sf.discard(checkpoint)
    with sf.request_ticket(1) as ticket:  # killed when the block ends
        expect_kind("create-clones after discard", "unknown", sf.create_clones, checkpoint, ticket)
    return value


if __name__ == "__main__":
    try:
        conformance()
    except (OSError, sf.Error) as error:
        print(f"conformance: {error}", flush=True)
        sys.exit(1)
