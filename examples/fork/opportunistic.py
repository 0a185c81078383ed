#!/usr/bin/python3
"""opportunistic: do a long job in as many clones as there happen to be (figure 2d).

    opportunistic.py [--tasks N] [--ask CLONES]

The job is cut into tasks: to count the primes in a range each. In every round the
program asks for a clone for each task that is left, which is more than there can
be, takes what it is granted, lets each clone work a little, and joins them. So it
uses what is free, and never for long. A clone that is lost takes nothing with it:
its task is done again in a later round.

Prints a line for each round, and the number of primes at the end.
"""

import argparse
import os
import socket
import sys
import threading
import time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../vmfork/bindings/python"))
import sf

RANGE = 20000  # numbers in a task
LIMIT = 300  # s for a round, and to wait for a free slot


def work_a_little(task):
    """The primes among task * RANGE ... (task + 1) * RANGE - 1."""
    first = task * RANGE
    prime = bytearray([1]) * RANGE
    for n in range(2, int((first + RANGE) ** 0.5) + 1):
        start = max(n * n, (first + n - 1) // n * n) - first
        prime[start::n] = bytes(len(range(start, RANGE, n)))
    return sum(prime) - (2 if task == 0 else 0)  # 0 and 1 are none


def relay(parent, task, result):
    """Send a result, and return when it has arrived: an exit does not wait."""
    with socket.create_connection(parent, timeout=LIMIT) as s:
        s.sendall(f"{task} {result}\n".encode())
        s.shutdown(socket.SHUT_WR)
        s.recv(1)


def collect(listener, results):
    """Receive results until the listener is shut down."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        received = b""
        with connection:
            connection.settimeout(10)  # a clone connects when it has all to send
            try:
                while chunk := connection.recv(4096):
                    received += chunk
            except OSError:
                continue
        if received.endswith(b"\n"):  # or it died meanwhile
            task, result = received.split()
            results[int(task)] = int(result)


def round_of(tasks, ask):
    """Do some of the tasks. Returns their results."""
    ticket = sf.request_ticket(min(ask, len(tasks)))
    listener = socket.create_server(("", 0), backlog=ticket.granted)
    parent = (sf.whoami().ip, listener.getsockname()[1])
    with ticket:
        id = ticket.clone()
        if id > 0:
            try:
                task = tasks[id - 1]
                relay(parent, task, work_a_little(task))
                sf.exit(0)
            finally:
                sf.exit(1)
        results = {}
        collector = threading.Thread(target=collect, args=(listener, results))
        collector.start()
        try:
            ticket.join(LIMIT)
        except sf.Lost as e:
            print(f"opportunistic: {e}", file=sys.stderr)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            collector.join()
            listener.close()
    print(f"{len(tasks)} tasks left, {ticket.granted} clones granted, {len(results)} tasks done", flush=True)
    return results


def main():
    options = argparse.ArgumentParser(description="work in as many clones as there are to be had")
    options.add_argument("--tasks", type=int, default=16, help="parts of the job (16)")
    options.add_argument("--ask", type=int, default=64, help="clones to ask for at most (64)")
    options = options.parse_args()

    done, rounds, slots_by = {}, 0, time.monotonic() + LIMIT
    while left := [task for task in range(options.tasks) if task not in done]:
        try:
            done |= round_of(left, options.ask)
            rounds += 1
            slots_by = time.monotonic() + LIMIT
        except sf.Resources:
            if time.monotonic() > slots_by:
                sys.exit(f"opportunistic: no slot was free for {LIMIT} s")
            time.sleep(1)
        except sf.Error as e:
            sys.exit(f"opportunistic: {e}")
    print(f"{sum(done.values())} primes below {options.tasks * RANGE}, in {rounds} rounds")


if __name__ == "__main__":
    main()
