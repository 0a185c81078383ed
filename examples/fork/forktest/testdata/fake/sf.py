"""The VM fork API by os.fork, for tests without a VM, as sf.c beside it."""

import os
import signal
import socket
from types import SimpleNamespace

SLOTS = int(os.environ.get("FAKE_SLOTS", "100"))
_running = {}  # ticket's id: {clone's id: process}
_self = 0


class Error(Exception):
    pass


class Resources(Error):
    pass


class Lost(Error):
    pass


class Ticket:
    def __init__(self, asked, granted):
        self.id, self.asked, self.granted = f"t{len(_running) + 1}", asked, granted
        self.clones = tuple(SimpleNamespace(id=i + 1, ip="127.0.0.1", vcpus=1) for i in range(granted))
        self.ended = False
        _running[self.id] = {}

    def clone(self):
        global _self
        for c in self.clones:
            pid = os.fork()
            if pid == 0:
                _self = c.id
                _running.clear()
                self.ended = True
                return c.id
            _running[self.id][c.id] = pid
        return 0

    def join(self, timeout=None):
        statuses, lost = {}, []
        for id, pid in _running[self.id].items():
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            statuses[id] = status
            if status < 0:
                lost.append(id)
        self._end()
        if lost:
            raise Lost(f"join: clones {lost} died")
        return statuses

    def kill(self):
        for pid in _running[self.id].values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._end()

    def _end(self):
        _running[self.id] = {}
        self.ended = True

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if not self.ended:
            self.kill()


def request_ticket(n):
    free = SLOTS - sum(map(len, _running.values()))
    if free <= 0:
        raise Resources("request-ticket: no room for a clone")
    return Ticket(n, min(n, free))


def whoami():
    return SimpleNamespace(id=_self, ip="127.0.0.1", vcpus=1)


def exit(status=0):
    os._exit(status)
