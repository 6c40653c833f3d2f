#!/usr/bin/env python3
"""make modes: which way to share a port should a server use?

Day 5's server with four workers, in each of its modes, side by side, and for each question the load that asks it:

  one by one   400 clients come and stay, each when all workers sleep again; then the busiest worker is killed
  burst        400 clients come and stay, as fast as one program can connect them
  quiet        a client comes about every 2 ms, says a byte, has it back and leaves
  hang         the same, and one worker after the other is stopped for 50 ms, with 50 ms between them
  dying        the same, and then each is killed after such 50 ms

Counted are the clients of each worker, the server's wake-ups and CPU (from /proc), how long a client waited
from connect to its first echo, and the clients that never got theirs. The clients come on time whether or not
the ones before were served: if the next had to wait for the last, one that waits long would hold back the others
that would have waited, too. Then the laboratory says what a newcomer costs with 1 to 64 workers.
"""

import argparse
import contextlib
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import time
from statistics import median, quantiles

import figures
import herd
from harness import PATIENCE, reset
from measuring import die_with_parent, main, program, progress, rounded, running, save, spread
from switches import rest

MODES = ["epoll", "exclusive", "reuseport"]
WAYS = ["epoll", "exclusive"]  # of the laboratory
WORKERS, CLIENTS, TURNS, ROUNDS = 4, 400, 40, 5
HERDS = [1, 2, 4, 8, 16, 32, 64]
APART, HANG = 0.002, 0.05  # seconds: from one client to the next, on average; that a worker hangs
OLD_ENOUGH = 1.1  # seconds: a worker that is older than one second is replaced at once
MIGRATING = 'ip link set lo up && echo 1 >/proc/sys/net/ipv4/tcp_migrate_req && exec "$@"'


@contextlib.contextmanager
def running_in(modes):
    """{mode: server}. They run side by side and take turns, so that whatever else the machine does meets all of them."""
    with contextlib.ExitStack() as stack:
        yield {mode: stack.enter_context(running([program("day05"), "-m", mode, "-w", str(WORKERS), "0"]))
               for mode in modes}


def burst(server, count):
    """So many clients at once. On loopback the handshake is over when connect returns, even with EINPROGRESS."""
    clients = [socket.socket() for _ in range(count)]
    for client in clients:
        client.setblocking(False)
    for client in clients:
        client.connect_ex((server.address, server.port))
    return clients


def has_ended(client):
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


# ---- Clients that stay

def arrive(count, at_once):
    """How so many clients are spread, what each costs, and how many are lost with the busiest worker."""
    rows = {}
    with running_in(MODES) as servers:
        clients = {mode: [] for mode in servers}
        before = {mode: rest(server) for mode, server in servers.items()}
        for _ in range(0, count, at_once):
            for mode, server in servers.items():
                clients[mode] += burst(server, at_once)
                server.settle()
        for mode, server in servers.items():
            after, got = rest(server), spread(server)
            assert sum(got.values()) == count
            os.kill(next(iter(got)), signal.SIGKILL)
            server.wait_err("was killed by signal 9")
            rows[mode] = {"got": list(got.values()), "gone": sum(map(has_ended, clients[mode])),
                          "woken": (after["switches"] - before[mode]["switches"]) / count,
                          "cpu": (after["cpu"] - before[mode]["cpu"]) / count}
            for client in clients[mode]:
                reset(client)
    return rows


# ---- Clients that come and go

def visit(server, seconds, plan):
    """A client comes every APART, more or less. plan: [(when, process, signal)]. Returns how many milliseconds
    each waited for its echo, and how many were lost."""
    waits, lost, there, poll = [], 0, {}, select.epoll()
    begin = now = due = time.monotonic()
    while now < begin + seconds or there or plan:
        assert now < begin + seconds + PATIENCE, "%d clients got no answer" % len(there)
        if plan and begin + plan[0][0] <= now:
            _, pid, number = plan.pop(0)
            os.kill(pid, number)
        elif due <= now < begin + seconds:
            due += random.expovariate(1 / APART)
            client, = burst(server, 1)
            client.send(b"x")
            there[client.fileno()] = client, now
            poll.register(client, select.EPOLLIN)
        else:
            for fd, _ in poll.poll(0.001):
                client, came = there.pop(fd)
                if has_ended(client):
                    lost += 1
                else:
                    waits.append((time.monotonic() - came) * 1000)
                client.close()
        now = time.monotonic()
    return waits, lost


def hang(pid, end):
    """A plan: after HANG a worker is stopped for as long. end: SIGCONT or SIGKILL."""
    return [(HANG, pid, signal.SIGSTOP), (2 * HANG, pid, end)]


def wait(turns, hanging):
    """How long clients wait, and what each costs. hanging: half of the time a worker hangs, one after the other."""
    waits, cpu = {mode: [] for mode in MODES}, {}
    with running_in(MODES) as servers:
        workers = {mode: server.processes()[1:] for mode, server in servers.items()}
        before = {mode: rest(server)["cpu"] for mode, server in servers.items()}
        for turn in range(turns):
            for mode, server in servers.items():
                plan = hang(workers[mode][turn % WORKERS], signal.SIGCONT) if hanging else []
                found, lost = visit(server, 2 * HANG, plan)
                assert lost == 0
                waits[mode] += found
        cpu = {mode: (rest(server)["cpu"] - before[mode]) / len(waits[mode]) for mode, server in servers.items()}
    rows = {}
    for mode, found in waits.items():
        percentiles = [min(found), *quantiles(found, n=100), max(found)]
        rows[mode] = {"median": percentiles[50], "p99": percentiles[99], "worst": percentiles[100], "cpu": cpu[mode],
                      "percentiles": percentiles}
    return rows


def die(modes):
    """How many newcomers are lost for each worker that hangs and is then killed."""
    with running_in(modes) as servers:
        time.sleep(OLD_ENOUGH)
        return {mode: {"lost": sum(visit(server, 2 * HANG, hang(pid, signal.SIGKILL))[1]
                                   for pid in server.processes()[1:]) / WORKERS}
                for mode, server in servers.items()}


def die_with_migration():
    """The same in mode reuseport, in a network of its own in which the kernel hands a dead worker's newcomers over to
    the others. Where that is not possible, None, and a line that says why."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    done = subprocess.run(["/bin/sh", "-c", 'exec unshare "$@"', "sh", "--net", *user, "/bin/sh", "-c", MIGRATING, "sh",
                           sys.executable, __file__, "--dying"],
                          capture_output=True, text=True, check=False, preexec_fn=die_with_parent)
    if done.returncode == 0:
        return float(done.stdout)
    print("tcp_migrate_req=1 is left out: %s" % (done.stderr.strip().splitlines() or ["no reason given"])[-1])
    return None


# ---- What a herd costs

def price(way, workers, connections):
    done = subprocess.run([herd.PROGRAM, "-m", way, "-w", str(workers), "-c", str(connections)],
                          capture_output=True, text=True, check=True, preexec_fn=die_with_parent)
    row, = herd.parse(done.stdout)
    return {"woken": row["woken"] / row["connections"], "cpu": row["cpu"], "delay": row["delay"]}


# ---- All of it

def add(found, row):
    """Each figure goes into a list, in a dict of the same shape."""
    for what, value in row.items():
        if isinstance(value, dict):
            add(found.setdefault(what, {}), value)
        else:
            found.setdefault(what, []).append(value)


def measure(found, count, turns, herds, connections, tell):
    """One round. Adds to found["modes"][mode][load] and found["herds"][way][workers]."""
    def note(load, rows):
        add(found["modes"], {mode: {load: row} for mode, row in rows.items()})

    tell("clients that stay")
    note("one by one", arrive(count, at_once=1))
    note("burst", arrive(count, at_once=count))
    tell("clients that come and go")
    note("quiet", wait(turns, hanging=False))
    note("hang", wait(turns, hanging=True))
    note("dying", die(MODES))
    if found["migrated"] is not None:
        lost = die_with_migration()
        found["migrated"] = None if lost is None else [*found["migrated"], lost]
    tell("the laboratory")
    for workers in herds:
        for way in WAYS:
            add(found["herds"], {way: {str(workers): price(way, workers, connections)}})


def show(table):
    """A table of the notes, for a terminal."""
    rows = [re.split(r" *\| *", re.sub(r"[*`]", "", line.strip("| "))) for line in table.splitlines() if "---" not in line]
    widths = [max(map(len, column)) for column in zip(*rows)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def run():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    parser.add_argument("--dying", action="store_true", help="print what is lost when a worker dies in mode reuseport")
    options = parser.parse_args()
    if options.dying:
        print(die(["reuseport"])["reuseport"]["lost"])
        return
    rounds, count, turns, herds, connections = ((1, 60, 5, HERDS[::3], 10) if options.quick else
                                                (ROUNDS, CLIENTS, TURNS, HERDS, 100))
    found = {"modes": {}, "migrated": [], "herds": {}}
    for number in range(rounds):
        measure(found, count, turns, herds, connections,
                lambda text: progress("round %d of %d: %s" % (number + 1, rounds, text)))
    progress("")
    for loads in found["modes"].values():
        for load in ("quiet", "hang"):
            loads[load]["percentiles"] = list(map(median, zip(*loads[load]["percentiles"])))
    data = json.loads(json.dumps(rounded({"rounds": rounds, "workers": WORKERS, "clients": count, **found})))
    print("%d round%s: medians, and ranges of what differs most" % (rounds, "" if rounds == 1 else "s"))
    show(figures.modes_table(data))
    print("\nOne newcomer after the other in the laboratory:")
    show(figures.herds_table(data))
    save("modes", "make modes" + (" QUICK=1" if options.quick else ""), options.quick, **data)


if __name__ == "__main__":
    main(run)
