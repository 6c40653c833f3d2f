#!/usr/bin/env python3
"""make herd: one client after the other comes, and the kernel is asked how many workers it woke.

For each mode of day 5 this starts the server with WORKERS workers and connects CONNECTIONS clients,
one at a time. Before and after each of them it waits until all workers sleep, and takes the
difference of their voluntary context switches (/proc/PID/task/TID/status): a worker that went to
sleep once more was woken once. Serving a client and its leaving wake a worker too; they are not in
that time. What the program itself knows comes from its scoreboard.

In the pools a connection stands for a job: the same client says one byte after the other, and the
threads alone are counted, not the loop that gives them work.
"""
import argparse
import os
import re
import signal
import socket
import subprocess
import time

from harness import BUILD, Server, wait_until
from measuring import die_with_parent, main, progress, save

PROGRAM = BUILD / "day05" / "server"


def modes():
    """The names of all modes, in the order of the server's own list."""
    text = subprocess.run([PROGRAM, "-m", "help"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in text.splitlines()]


def scoreboard(server):
    """Asks for the table by worker: {"1", ..., "loop", "sum": {column: number}}"""
    seen = len([line for line in server.out if line.startswith("worker ")])
    os.kill(server.pid, signal.SIGUSR1)
    server.wait_out("^sum ", seen + 1)
    lines = server.out
    head = max(i for i, line in enumerate(lines) if line.startswith("worker "))
    columns = lines[head].split()[1:]
    rows = {}
    for line in lines[head + 1:]:
        if re.match(r"(\d+|loop|sum) ", line):
            name, *numbers = line.split()
            rows[name] = dict(zip(columns, map(float, numbers)))
    return rows


class Herd(Server):
    """Day 5 in one of its modes: with Herd("epoll", 10) as server: ..."""

    def __init__(self, mode, workers, delay=0):
        super().__init__([PROGRAM, "-m", mode, "-w", str(workers), "-d", str(delay), "0"],
                         prepare=die_with_parent, start_new_session=True)
        self.mode, self.workers, self.delay = mode, workers, delay
        self.pool = mode.startswith("pool")
        self.listening()
        wait_until(lambda: len(self.tasks()) == workers + self.pool, "all workers")
        self.settle()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def tasks(self):
        """Where the kernel tells of each worker; in a pool the loop comes first."""
        found = []
        for pid in self.processes()[1:]:
            tids = sorted(int(tid) for tid in os.listdir(f"/proc/{pid}/task"))
            found += [f"/proc/{pid}/task/{tid}" for tid in tids]
        return found

    def look(self):
        """(all of them sleep, their switches). In a pool the loop has to sleep, but is not counted."""
        asleep, switches = True, 0
        for number, task in enumerate(self.tasks()):
            with open(task + "/status") as status:
                for line in status:
                    if line.startswith("State:"):
                        asleep = asleep and line.split()[1] == "S"
                    elif line.startswith("voluntary") and not (self.pool and number == 0):
                        switches += int(line.split()[1])
        return asleep, switches

    def settle(self, napping=False):
        """Waits until all workers sleep and the sum of their switches has not moved over three
        looks 2 ms apart. Returns that sum. napping: one of them may be in the nap of -d, which looks
        like sleep; so wait until it is over, and look for longer."""
        nap = self.delay / 1000 if napping else 0
        time.sleep(nap * 1.1)
        deadline = time.monotonic() + 20
        looks, since, before = 0, 0, None
        while time.monotonic() < deadline:
            asleep, switches = self.look()
            if asleep and switches == before:
                looks += 1
                if looks >= 3 and time.monotonic() - since >= nap / 2:
                    return switches
            else:
                looks, since = (1 if asleep else 0), time.monotonic()
                before = switches if asleep else None
            time.sleep(0.002)
        raise TimeoutError(f"{self.mode}: the workers do not come to rest")

    def apart(self):
        """Wake-ups that no newcomer caused, so far: the end of each nap, and of each time-out."""
        total = scoreboard(self)["sum"]
        naps = total["returned"] if self.delay and self.mode != "accept" else 0
        return int(naps + total["timed-out"])

    def wakeups(self, napping=False):
        """The switches up to now, without those apart, when all workers are at rest."""
        if not self.delay and self.mode != "mutex":
            return self.settle()
        while True:
            before = self.apart()
            switches = self.settle(napping)
            if self.apart() == before:  # else a time-out came in between, and may be in one only
                return switches - before
            napping = False


def count_connections(server, connections):
    woken = 0
    for _ in range(connections):
        before = server.wakeups()
        with socket.create_connection(("127.0.0.1", server.port), 10):
            woken += server.wakeups(napping=server.mode != "accept") - before
    return woken


def count_jobs(server, jobs):
    woken = 0
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        for _ in range(jobs):
            before = server.settle()
            client.sendall(b"x")
            client.recv(1)
            woken += server.settle() - before
            server.settle()
        return woken, scoreboard(server)


def measure(mode, workers=10, connections=100, delay=0):
    """Drives one mode. Returns a dict: mode, connections, returned, nothing, timed_out, woken, each
    (woken for one connection) and got, the connections of every worker."""
    with Herd(mode, workers, delay) as server:
        if server.pool:
            woken, rows = count_jobs(server, connections)
        else:
            woken = count_connections(server, connections)
            server.settle()
            rows = scoreboard(server)
    total = rows["sum"]
    return {
        "mode": mode,
        "connections": connections,
        "returned": int(total["returned"]),
        "nothing": int(total["nothing"]),
        "timed_out": int(total["timed-out"]),
        "woken": woken,
        "each": woken / connections,
        "got": [int(rows[str(n + 1)]["accepted"]) for n in range(workers)],
    }


# ---- The table

def describe(got):
    """Who got how many: the busiest first."""
    got = sorted((n for n in got if n > 0), reverse=True)
    if len(got) == 1:
        return f"{got[0]}: all to one"
    if len(got) > 1 and len(set(got)) == 1:
        return f"{len(got)} x {got[0]}"
    return " ".join(map(str, got[:10])) + (" ..." if len(got) > 10 else "")


def print_table(results, workers, delay):
    nap = f", {delay} ms between being woken and accepting" if delay else ""
    print(f"One client after the other, {workers} workers{nap}:\n")
    print(f"{'mode':<15}{'connections':>11}{'returned':>9}{'nothing':>8}{'woken':>7}{'each':>6}"
          f"  {'woken for each connection':<26}got")
    for r in results:
        bar = "#" * min(25, max(1, round(r["each"] / workers * 25)))
        print(f"{r['mode']:<15}{r['connections']:>11}{r['returned']:>9}{r['nothing']:>8}"
              f"{r['woken']:>7}{r['each']:>6.1f}  {bar:<26}{describe(r['got'])}")
    print("""
returned  accept, poll or epoll_wait came back and named the listener (pools: pthread_cond_wait)
nothing   ... and another worker had been faster
woken     by the kernel; who did not return looked, found nothing and slept on, inside the call
          (without the ends of naps and time-outs, which are wake-ups of another kind)
got       who got how many connections; in the pools a connection is a job""")


def run():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--connections", type=int, help="100, or at most 20 with a delay")
    parser.add_argument("--delay", type=int, default=0, help="ms between being woken and accepting")
    parser.add_argument("--mode", default="all", help="one, or several with commas between")
    options = parser.parse_args()
    options.command = " ".join(["make herd"] + [
        "%s=%s" % (name.upper(), value) for name, value in vars(options).items()
        if value != parser.get_default(name)])
    connections = options.connections or (min(20, 2000 // options.delay) if options.delay else 100)
    chosen = modes() if options.mode == "all" else options.mode.split(",")
    results = []
    for mode in chosen:
        progress("%s: %d connections" % (mode, connections))
        results.append(measure(mode, options.workers, connections, options.delay))
    progress("")
    print_table(results, options.workers, options.delay)
    save("herd-delay" if options.delay else "herd", options.command, workers=options.workers,
         delay=options.delay, modes=results)


if __name__ == "__main__":
    main(run)
