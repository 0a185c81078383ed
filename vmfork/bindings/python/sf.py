"""The VM fork API of the SnowFlock paper (table I).

    import sf

    with sf.request_ticket(4) as ticket:
        id = ticket.clone()
        if id > 0:
            work(id, ticket.granted)
            sf.exit(0)
        print(ticket.join())        # {1: 0, 2: 0, 3: 0, 4: 0}

Every function raises a subclass of Error, one for each kind of the protocol.
Beside those that its text names, any can raise Unavailable (nobody answers at
the socket), Version (an answer that is not of this protocol) and Invalid.

Calls block until they are answered. One that is ended by an exception, as by
Ctrl-C, is taken back. A call has a connection of its own, so any thread may call.

The socket is $SF_SOCKET, else SOCKET_PATH. The numbers in brackets are sections
of the paper, Lagar-Cavilla et al., ACM TOCS 29(1), 2011.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field
from typing import Dict, List, NoReturn, Optional, Tuple, Union

SOCKET_PATH = "/run/mpirun-sf/sf.sock"

_LONGEST_LINE = 1 << 20


class Error(Exception):
    """What every function of this module raises; kind is the protocol's word."""

    kind = "failed"


class Invalid(Error):
    """A request that makes no sense."""

    kind = "invalid"


class Unknown(Error):
    """No such ticket, checkpoint or VM, or no longer."""

    kind = "unknown"


class Refused(Error):
    """Not yours, or not allowed here."""

    kind = "refused"


class State(Error):
    """Not now: for example a ticket that was cloned already."""

    kind = "state"


class Resources(Error):
    """No room for even one clone."""

    kind = "resources"


class Failed(Error):
    """The fork failed; the text says where."""

    kind = "failed"


class Lost(Error):
    """A clone died without exit."""

    kind = "lost"
    clones: List[int] = []  # the ids of those that died
    statuses: Dict[int, int] = {}  # of those that did exit


class Timeout(Error):
    """The time given has passed."""

    kind = "timeout"


class Killed(Error):
    """The ticket was killed meanwhile."""

    kind = "killed"


class Cloned(Error):
    """This copy of the caller is in a clone that another's fork made."""

    kind = "cloned"


class Version(Error):
    """The two sides do not understand each other."""

    kind = "version"


class Unavailable(Error):
    """Nobody is there to answer."""

    kind = "unavailable"


_KINDS = {e.kind: e for e in (Invalid, Unknown, Refused, State, Resources, Failed,
                              Lost, Timeout, Killed, Cloned, Version, Unavailable)}


@dataclass(frozen=True)
class Identity:
    """Who a VM is."""

    id: int  # in its ticket; 0: not a clone
    member: int  # in the job's private network
    name: str
    ip: str
    vcpus: int  # online
    host: str  # the physical host
    ticket: Optional[str]  # None: not a clone


@dataclass(frozen=True)
class Clone:
    """One clone that a ticket describes."""

    id: int  # 1...m; the parent is 0
    name: str
    ip: str
    vcpus: int
    host: str


@dataclass(frozen=True)
class VM:
    """One machine of the job."""

    name: str
    member: int
    ip: str
    parent: Optional[int]  # its parent's member; None: none
    ticket: Optional[str]  # None: not a clone
    id: int  # in its ticket; 0: not a clone


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, and where one came out of making it.

    id is 0 and ticket None where it was made; in the clones that were made
    of it they are the clone's id and its ticket's.
    """

    checkpoint: str
    id: int
    ticket: Optional[str]
    vm: Optional[str] = None  # whose it is; None: the caller's own


@dataclass(frozen=True)
class Ticket:
    """An allocation for m <= n clones (2.1).

    It knows whose it is: a ticket that was requested for another VM is cloned,
    joined and killed there.

    As a context manager it takes its clones with it: leaving the block kills
    the ticket, unless it was joined or killed. That holds in the process and the VM
    that requested it; elsewhere, as in a clone, leaving the block does nothing.
    """

    id: str
    asked: int  # n: clones, or processors if hierarchical
    granted: int  # m: the length of clones
    clones: Tuple[Clone, ...]
    vm: Optional[str] = None  # the VM that it forks; None: the caller's own
    _owner: Optional[Tuple[int, int]] = field(default=None, repr=False, compare=False)

    def clone(self) -> int:
        """The same as clone(ticket)."""
        return clone(self)

    def create_clones(self, checkpoint: Union[Checkpoint, str]) -> None:
        """The same as create_clones(checkpoint, ticket)."""
        create_clones(checkpoint, self)

    def join(self, timeout: Optional[float] = None) -> Dict[int, int]:
        """The same as join(ticket, timeout)."""
        return join(self, timeout)

    def kill(self, clone: Optional[int] = None) -> None:
        """The same as kill(ticket, clone)."""
        kill(self, clone)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *exception: object) -> None:
        # Of all copies that forks made, only that in the VM that asked may kill.
        if self._owner is None or self._owner[1] != os.getpid():
            return
        try:
            if whoami().member == self._owner[0]:
                kill(self)
        except (Unknown, Refused, Unavailable):
            pass  # joined or killed before, or gone with all the rest


def request_ticket(n: int, hierarchical: bool = False, *, vcpus: Optional[int] = None,
                   vm: Optional[str] = None) -> Ticket:
    """Reserve clones (table I, 2.1).

    Asks for n >= 1 clones, and describes the 1 <= m <= n that are granted.
    hierarchical: n counts processors; clones have as many virtual CPUs as the VM,
    together at most n, and the caller forks processes in each. vcpus: virtual CPUs
    of each clone. vm: another VM, which the caller owns (2.3).

    Raises Resources: there is room for none. Unknown, Refused: about vm.
    """
    owner = (whoami().member, os.getpid())
    reply = _call("request-ticket", clones=n, hierarchical=1 if hierarchical else None,
                  vcpus=vcpus, vm=vm)
    return _ticket(reply, vm, owner)


def get_ticket(id: str, *, vm: Optional[str] = None) -> Ticket:
    """The ticket of this id, as it was granted. Raises Unknown.

    It is how a clone learns of its siblings. As a context manager it does nothing.
    """
    return _ticket(_call("ticket", ticket=id, vm=vm), vm, None)


def clone(ticket: Ticket) -> int:
    """Fork the VM (table I, 2.1).

    Returns in m + 1 VMs: 0 in the parent, when all clones are ready; in each
    clone its id, 1...m. A clone has the parent's memory, processes and disk as they
    were; its established TCP connections are dead, its listening sockets are its own.

    Raises Unknown, Refused (not one's ticket), State (cloned before), Failed,
    Killed; then there are no clones.
    """
    return _call("clone", ticket=ticket.id, vm=ticket.vm).id()


def checkpoint_parent(*, vm: Optional[str] = None) -> Checkpoint:
    """Keep the VM's state to make clones of later (table I, 2.3).

    Returns with id 0 when the checkpoint is made, and once more in each clone
    that create_clones makes of it, with the clone's id and ticket. vm: another VM;
    its clones wake up in await_fork.

    Raises Failed, State (a fork of this VM is going on).
    """
    reply = _call("checkpoint-parent", vm=vm)
    return Checkpoint(reply.text("checkpoint"), reply.id(), reply.optional("ticket"), vm)


def create_clones(checkpoint: Union[Checkpoint, str], ticket: Ticket) -> None:
    """Make the ticket's clones of a checkpoint (table I, 2.3).

    Returns when all are ready; they return from checkpoint_parent.
    Raises Unknown, Refused, State (the ticket was used), Failed, Killed.
    """
    _call("create-clones", checkpoint=_checkpoint_id(checkpoint), ticket=ticket.id, vm=ticket.vm)


def discard(checkpoint: Union[Checkpoint, str], *, vm: Optional[str] = None) -> None:
    """Forget a checkpoint, and free its memory once no clone reads from it.

    Clones that were made of it live on. vm is known to a Checkpoint already.
    Raises Unknown, Refused.
    """
    if vm is None and isinstance(checkpoint, Checkpoint):
        vm = checkpoint.vm
    _call("discard", checkpoint=_checkpoint_id(checkpoint), vm=vm)


def exit(status: int = 0) -> NoReturn:
    """Terminate the clone (table I).

    The whole VM ends, with everything that runs in it and without notice to
    it, and its parent's join gets status, 0...255. What others are to have must have
    reached them: data in socket buffers is lost.

    Does not return. Raises Refused in a VM that is no clone.
    """
    _call("exit", status=status)
    raise Version("exit: answered, and the VM still runs")


def exit_vm(vm: str, status: int = 0) -> None:
    """Terminate another VM, a clone (2.3). Raises Unknown, Refused."""
    if not vm:
        raise Invalid("exit: no vm given")
    _call("exit", status=status, vm=vm)


def join(ticket: Ticket, timeout: Optional[float] = None) -> Dict[int, int]:
    """Wait until all clones of the ticket have called exit (table I).

    Waits timeout seconds, at most 1e6, None for ever. Returns the status of each clone by its
    id; then the clones are gone and the ticket is discarded.

    Raises Lost (a clone died without exit), Timeout (the ticket stays), Unknown
    (joined or killed before), Refused, Killed.
    """
    reply = _call("join", ticket=ticket.id, timeout=None if timeout is None else _seconds(timeout),
                  vm=ticket.vm)
    return reply.statuses()


def kill(ticket: Ticket, clone: Optional[int] = None) -> None:
    """Kill all clones of the ticket at once and discard it (table I), or kill one, by its id.

    Also for a ticket that was never cloned. Raises Unknown, Refused.
    """
    _call("kill", ticket=ticket.id, clone=clone, vm=ticket.vm)


def await_fork() -> Tuple[int, str]:
    """The callback of forks that others trigger (2.3): blocks.

    In a clone that another's call made of this VM it returns the clone's id and
    its ticket's. In the VM that was forked it goes on blocking.
    """
    reply = _call("await-fork")
    return reply.id(), reply.text("ticket")


def whoami() -> Identity:
    """Who this VM is, since its last fork."""
    r = _call("whoami")
    return Identity(r.number("id"), r.number("member"), r.text("name"), r.text("ip"),
                    r.number("vcpus"), r.text("host"), r.optional("ticket"))


def list_vms() -> List[VM]:
    """All machines of the job."""
    reply = _call("list")
    vms = []
    for text in reply.all("vm"):
        name, member, ip, parent, ticket, id = _parts(reply, text, 6)
        vms.append(VM(name, _number(reply, member), ip, _number(reply, parent) if parent else None,
                      ticket or None, _number(reply, id) if id else 0))
    return vms


class _Reply:
    """The fields of a reply."""

    def __init__(self, call: str, fields: List[Tuple[str, str]]):
        self.call = call
        self.fields = fields

    def all(self, key: str) -> List[str]:
        return [v for k, v in self.fields if k == key]

    def optional(self, key: str) -> Optional[str]:
        return next((v for k, v in self.fields if k == key), None) or None

    def text(self, key: str) -> str:
        for k, v in self.fields:
            if k == key:
                return v
        raise Version(f"{self.call}: the answer lacks {key}")

    def number(self, key: str) -> int:
        return _number(self, self.text(key))

    def statuses(self) -> Dict[int, int]:
        pairs = [_parts(self, text, 2) for text in self.all("status")]
        return {_number(self, id): _number(self, status) for id, status in pairs}

    def id(self) -> int:
        id = self.number("id")
        if id < 0:
            raise Version(f"{self.call}: the answer's id is negative")
        return id


def _number(reply: _Reply, text: str) -> int:
    # int() alone would also take spaces, underscores and digits of other scripts.
    if not re.fullmatch(r"-?[0-9]{1,10}", text) or not -2**31 <= int(text) < 2**31:
        raise Version(f"{reply.call}: not a number in the answer: {text!r}")
    return int(text)


def _parts(reply: _Reply, text: str, count: int) -> List[str]:
    parts = text.split(":")
    if len(parts) < count:
        raise Version(f"{reply.call}: too few parts in the answer's {text!r}")
    return parts[:count]


def _ticket(reply: _Reply, vm: Optional[str], owner: Optional[Tuple[int, int]]) -> Ticket:
    clones = []
    for text in reply.all("clone"):
        id, name, ip, vcpus, host = _parts(reply, text, 5)
        clones.append(Clone(_number(reply, id), name, ip, _number(reply, vcpus), host))
    ticket = Ticket(reply.text("ticket"), reply.number("asked"), reply.number("granted"),
                    tuple(clones), vm or None, owner)
    if ticket.granted != len(clones):
        raise Version(f"{reply.call}: {ticket.granted} clones are granted and {len(clones)} described")
    return ticket


def _checkpoint_id(checkpoint: Union[Checkpoint, str]) -> str:
    return checkpoint.checkpoint if isinstance(checkpoint, Checkpoint) else checkpoint


def _seconds(seconds: float) -> str:
    if not seconds >= 0:
        raise Invalid(f"join: not a time to wait: {seconds} s")
    text = f"{min(seconds, 1e6):.3f}".rstrip("0")
    return text[:-1] if text.endswith(".") else text


def _encode(value: object) -> bytes:
    # What is beyond ASCII too: it may not be UTF-8, and the line is.
    raw = str(value).encode("utf-8", "surrogateescape")
    return b"".join(b"%%%02X" % c if c <= 0x20 or c >= 0x7f or c == 0x25 else bytes((c,)) for c in raw)


def _decode(value: bytes) -> str:
    plain = re.sub(rb"%([0-9a-fA-F]{2})", lambda m: bytes((int(m[1], 16),)), value)
    return plain.decode("utf-8", "surrogateescape")


_FIELD = re.compile(rb" ([a-z][a-z0-9-]*)=((?:[^\x00-\x20%\x7f]|%[0-9a-fA-F]{2})*)")


def _parse(call: str, line: bytes) -> List[Tuple[str, str]]:
    """The fields of a reply, or the error that it is."""
    head = re.match(rb"ok|error", line)
    at = head.end() if head else -1
    fields = []
    while 0 <= at < len(line):
        found = _FIELD.match(line, at)
        if found:
            fields.append((found[1].decode(), _decode(found[2])))
        at = found.end() if found else -1
    if at < 0 or head is None:
        raise Version(f"{call}: the answer is not of this protocol: {line[:80]!r}")
    if head[0] == b"error":
        values = dict(reversed(fields))
        if "kind" not in values or "text" not in values:
            raise Version(f"{call}: the answer is an error without kind or text")
        kind, text = values["kind"], values["text"]
        if kind in _KINDS:
            error = _KINDS[kind](f"{call}: {text}")
            if isinstance(error, Lost):
                reply = _Reply(call, fields)
                error.clones = [_number(reply, id) for id in reply.all("clone")]
                error.statuses = reply.statuses()
            raise error
        raise Failed(f"{call}: {kind}: {text}")
    return fields


def _call(call: str, **arguments: object) -> _Reply:
    """One call: one connection, one line each way. Arguments that are None are left out."""
    request = call.encode()
    for key, value in arguments.items():
        if value is None or key == "vm" and value == "":
            continue
        if value == "":
            raise Invalid(f"{call}: no {key} given")
        request += b" " + key.encode() + b"=" + _encode(value)
    request += b"\n"
    if len(request) > _LONGEST_LINE:
        raise Invalid(f"{call}: the request is longer than 1 MiB")
    path = os.environ.get("SF_SOCKET") or SOCKET_PATH
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(None)  # whatever socket.setdefaulttimeout says
            try:
                connection.connect(path)
            except OSError as e:
                raise Unavailable(f"{call}: connect to {path}: {e.strerror or e} (is this a VM of mpirun-sf?)") from e
            try:
                connection.sendall(request)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a server that refuses can answer and close before it has read everything
            line = _receive_line(call, connection)
    except OSError as e:
        raise Unavailable(f"{call}: {e}") from e
    return _Reply(call, _parse(call, line))


def _receive_line(call: str, connection: socket.socket) -> bytes:
    received = bytearray()
    while len(received) <= _LONGEST_LINE:
        chunk = connection.recv(65536)
        if not chunk and not received:
            raise Unavailable(f"{call}: the connection ended without an answer")
        if not chunk:
            raise Version(f"{call}: the line ends in the middle")
        start = len(received)
        received += chunk
        lf = received.find(b"\n", start)
        if 0 <= lf < _LONGEST_LINE:
            return bytes(received[:lf])
        if lf >= 0:
            break
    raise Version(f"{call}: a line longer than 1 MiB")
