"""What exercise.c does, for sf.py. Also: exercise.py scope, the life of tickets."""

import sys

import sf


def attempt(call, f, *arguments, done=True):
    try:
        f(*arguments)
        if done:
            print(f"{call}: ok")
    except sf.Error as e:
        print(f"{call}: {e.kind} [{e}]")


def show(t):
    print(f"ticket: [{t.id}] [{t.vm or ''}] {t.asked} {t.granted}")
    for c in t.clones:
        print(f"  {c.id} {c.name} {c.ip} {c.vcpus} [{c.host}]")


def calls():
    me = sf.whoami()
    print(f"whoami: {me.id} {me.member} {me.name} {me.ip} {me.vcpus} [{me.host}] [{me.ticket or ''}]")
    t = sf.request_ticket(3)
    show(t)
    other = sf.request_ticket(4, True, vcpus=2, vm="web 1%")
    show(other)
    print(f"clone: {sf.clone(t)}")
    print(f"clone: {other.clone()}")
    show(sf.get_ticket("t 1"))
    for _ in range(2):
        c = sf.checkpoint_parent()
        print(f"checkpoint: [{c.checkpoint}] {c.id} [{c.ticket or ''}]")
    attempt("create-clones", sf.create_clones, c, t)
    attempt("discard", sf.discard, "c1")
    attempt("exit", sf.exit, 3)
    attempt("exit", sf.exit_vm, "web 1%", 4)
    print("join:", *(f"{id}:{status}" for id, status in sorted(sf.join(t).items())))
    attempt("join", sf.join, t, 2.5)
    try:
        sf.join(t, 0)
    except sf.Lost as e:
        print(f"join: lost [{e}]")
        print(f"lost: {e.clones[0]}:-1 2:{e.statuses[2]}")
    attempt("kill", sf.kill, t, 2)
    attempt("kill", t.kill)
    id, ticket = sf.await_fork()
    print(f"await-fork: {id} [{ticket}]")
    for vm in sf.list_vms():
        parent = -1 if vm.parent is None else vm.parent
        print(f"  {vm.name} {vm.member} {vm.ip} {parent} [{vm.ticket or ''}] {vm.id}")
    for kind in ("invalid unknown refused state resources failed lost timeout killed "
                 "cloned version unavailable novel").split():
        attempt("ticket", sf.get_ticket, kind, done=False)


def garbage(times):
    for _ in range(times):
        try:
            sf.whoami()
            print("ok")
        except sf.Error as e:
            print(e.kind)


def fuzz(times):
    def quietly(f, *arguments):
        try:
            return f(*arguments)
        except sf.Error:
            return None

    for _ in range(times):
        t = quietly(sf.request_ticket, 2, True) or sf.Ticket("t", 1, 0, ())
        quietly(sf.whoami)
        quietly(sf.clone, t)
        quietly(sf.get_ticket, "t")
        quietly(sf.checkpoint_parent)
        quietly(sf.create_clones, "c", t)
        quietly(sf.exit, 1)
        quietly(sf.join, t, 0.001)
        quietly(sf.kill, t)
        quietly(sf.await_fork)
        quietly(sf.list_vms)
    print("fuzz: ok")


def scope():
    with sf.request_ticket(1):  # killed
        pass
    with sf.request_ticket(2) as t:  # joined
        t.join()
    with sf.request_ticket(3) as t:  # what a clone finds
        t.clone()


if __name__ == "__main__":
    globals()[sys.argv[1]](*map(int, sys.argv[2:]))
