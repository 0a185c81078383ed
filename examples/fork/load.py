#!/usr/bin/python3
"""load: a service that forks workers when it is busy and kills idle ones (figure 2c).

    load.py [--most WORKERS]

Jobs arrive in bursts, by a fixed script. The parent keeps them in a queue. When
the queue is longer than the workers there are can be expected to clear soon, it
forks its VM: the clone is a worker, with all that the parent had loaded, and asks
the parent for jobs over TCP until it is killed. When there is nothing to do, a
worker that idles is killed, any one, and its memory is free again.

A fork does not disturb those who are connected to the parent: their jobs go on.

Prints a line for each fork and kill, and at the end how many jobs were done and
the sum of their results, which is always the same.
"""

import argparse
import os
import random
import selectors
import socket
import sys
import time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../vmfork/bindings/python"))
import sf

TICK = 0.25  # s
ARRIVALS = [1, 0, 12, 12, 12, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 8, 8, 0, 0, 1]  # jobs, tick by tick
HIGH = 4  # jobs in the queue per worker: more is too many
PATIENCE = 1.0  # s that a worker may idle
LIMIT = 300  # s for everything
SECRET = list(range(2000))  # what the parent made ready before it forked: each worker has it


def work(job):
    """Something that takes a moment: a sum over what the parent had loaded."""
    time.sleep(0.1)
    return sum(x * job % 97 for x in SECRET)


def serve(parent):
    """A worker: asks for jobs until it is killed."""
    with socket.create_connection(parent, timeout=LIMIT) as s, s.makefile("rw") as stream:
        for line in stream:
            stream.write(f"{work(int(line))}\n")
            stream.flush()
    sf.exit(1)  # the parent is gone


class Worker:
    def __init__(self, ticket):
        self.ticket = ticket
        self.connection = None  # once it has connected
        self.job = None  # that it works on
        self.idle_since = time.monotonic()
        self.received = b""


class Parent:
    def __init__(self, most):
        self.most = most
        self.queue = []
        self.workers = []
        self.results = {}
        self.forked = self.killed = self.at_most = 0
        self.full = 0.0  # until when no further clone is asked for
        self.listener = socket.create_server(("", 0), backlog=most)
        self.address = (sf.whoami().ip, self.listener.getsockname()[1])
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)

    def fork(self):
        """One clone more, which never returns from here."""
        try:
            ticket = sf.request_ticket(1)
        except sf.Resources:
            self.full = time.monotonic() + 2  # do with what there is
            return
        start = time.monotonic()
        id = ticket.clone()
        if id > 0:
            self.close()  # the copies of the parent's connections are of no use here
            try:
                serve(self.address)
            finally:
                sf.exit(1)
        self.workers.append(Worker(ticket))
        self.forked += 1
        self.at_most = max(self.at_most, len(self.workers))
        print(f"{len(self.queue)} jobs wait: forked a worker in {time.monotonic() - start:.2f} s, now {len(self.workers)}", flush=True)

    def kill(self, worker):
        worker.ticket.kill()
        self.drop(worker)
        self.killed += 1
        print(f"nothing to do: killed a worker, now {len(self.workers)}", flush=True)

    def drop(self, worker):
        self.workers.remove(worker)
        if worker.connection:
            self.selector.unregister(worker.connection)
            worker.connection.close()
        if worker.job is not None:
            self.queue.insert(0, worker.job)  # somebody else does it

    def close(self):
        for worker in self.workers:
            if worker.connection:
                worker.connection.close()
        self.selector.close()
        self.listener.close()

    def accept(self):
        connection, (ip, _) = self.listener.accept()
        for worker in self.workers:
            if worker.connection is None and worker.ticket.clones[0].ip == ip:
                worker.connection = connection
                worker.idle_since = time.monotonic()
                self.selector.register(connection, selectors.EVENT_READ, worker)
                return
        connection.close()  # of a clone that was given up meanwhile

    def receive(self, worker):
        try:
            data = worker.connection.recv(4096)
        except OSError:
            data = b""
        if not data:
            # It died. Kill discards what is left of it, if anything is.
            try:
                worker.ticket.kill()
            except sf.Error:
                pass
            self.drop(worker)
            return
        worker.received += data
        if worker.received.endswith(b"\n"):
            self.results[worker.job] = int(worker.received)
            worker.job, worker.received, worker.idle_since = None, b"", time.monotonic()

    def give(self):
        """Hand jobs to those who have none."""
        for worker in self.workers:
            if self.queue and worker.connection and worker.job is None:
                worker.job = self.queue.pop(0)
                worker.connection.sendall(b"%d\n" % worker.job)

    def balance(self):
        now = time.monotonic()
        busy = len(self.queue) > HIGH * len(self.workers)
        if busy and len(self.workers) < self.most and now >= self.full:
            self.fork()
            return
        idle = [w for w in self.workers if w.connection and w.job is None and now - w.idle_since > PATIENCE]
        if idle and not self.queue:
            self.kill(random.choice(idle))

    def run(self):
        arrivals = iter(ARRIVALS)
        total, next_tick, more = 0, time.monotonic(), True
        end = time.monotonic() + LIMIT
        while more or len(self.results) < total or self.workers:
            if time.monotonic() > end:
                sys.exit(f"load: {total - len(self.results)} jobs were not done in {LIMIT} s")
            if more and time.monotonic() >= next_tick:
                # A slow fork delays the next burst; it does not pile them up.
                next_tick = time.monotonic() + TICK
                n = next(arrivals, None)
                more = n is not None
                self.queue += range(total, total + (n or 0))
                total += n or 0
            self.balance()
            self.give()
            for key, _ in self.selector.select(TICK / 5):
                if key.data is None:
                    self.accept()
                else:
                    self.receive(key.data)
        print(f"{len(self.results)} jobs done, sum {sum(self.results.values())}; "
              f"forked {self.forked} workers, killed {self.killed}, {self.at_most} at once at most")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="fork workers when busy, kill them when idle")
    options.add_argument("--most", type=int, default=4, help="workers at once (4)")
    parent = Parent(options.parse_args().most)
    try:
        parent.run()
    except sf.Error as e:
        sys.exit(f"load: {e}")
    finally:
        for left in list(parent.workers):
            left.ticket.kill()
