#!/usr/bin/env python3
"""make scale: what do clients cost that are connected, and nothing else?

One client talks without a pause (redis-benchmark), and next to it more and more are connected and
silent. Measured: the server's CPU for an echo, from /proc, and how long an echo takes. Day 2 can have
a thousand of them, days 3 and 4 as many as a process may have descriptors, day 5 fifty thousand over
four workers. Each has said a byte and had it back before it fell silent.

All run on one core, because moving from one to another costs more than an echo.
"""

import argparse
import os
import resource
import sys
from statistics import median

from measuring import (REDIS_BENCHMARK, Crowd, main, program, progress, running, save, spread,
                       with_redis_benchmark)

WORKERS = 4
OPTIONS = {"day02": [], "day03": [], "day04": [], "day05": ["-w", str(WORKERS)]}
MOST = {"day02": 1_000, "day03": 19_000, "day04": 19_000, "day05": 50_000}
IDLE = [0, 100, 500, 1_000, 5_000, 10_000, 19_000, 50_000]
SPARE = 100  # descriptors that a process needs for other things


def steps(name):
    """How many idle clients this server gets, one after the other."""
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE
    room *= WORKERS if name == "day05" else 1
    return [count for count in IDLE if count <= min(MOST[name], room)]


def measure(name, counts, requests, found, tell):
    """All the steps, once. Adds to found[idle], a list for each kind of figure."""
    with running([program(name), *OPTIONS[name], "0"]) as server, Crowd(server) as crowd:
        for idle in counts:
            tell("%s, %d idle clients" % (name, idle))
            crowd.grow(idle)
            echo = with_redis_benchmark(server, requests, clients=1)
            row = found.setdefault(idle, {"cpu": [], "median": [], "p99": []})
            row["cpu"].append(echo["cpu"] * 1e6)
            row["median"].append(echo["median"])
            row["p99"].append(echo["p99"])
        return list(spread(server).values()) if name == "day05" else None


def print_table(title, found, cell):
    """cell(rows, idle): what the table says of one server with so many idle clients."""
    print("\n%s\n%8s" % (title, "idle") + "".join("%18s" % name for name in found))
    for idle in max((list(rows) for rows in found.values()), key=len):
        print("%8d" % idle + "".join("%18s" % (cell(rows, idle) if idle in rows else "-")
                                     for rows in found.values()))


def cpu_cell(rows, idle):
    cpu = median(rows[idle]["cpu"])
    return "%.1f x%.2f" % (cpu, cpu / median(rows[0]["cpu"]))


def latency_cell(rows, idle):
    return "%.3f %.3f" % (median(rows[idle]["median"]), median(rows[idle]["p99"]))


def run():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    options = parser.parse_args()
    if not REDIS_BENCHMARK:
        sys.exit("scale: redis-benchmark is missing (Debian: redis-tools)")
    rounds, requests = (1, 1_000) if options.quick else (5, 10_000)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found, workers = {name: {} for name in OPTIONS}, []
    for name in OPTIONS:
        if steps(name)[-1] < MOST[name]:
            print("%s: no more than %d idle clients, for want of descriptors (ulimit -Hn)"
                  % (name, steps(name)[-1]))
    for number in range(rounds):
        for name, rows in found.items():
            workers = measure(name, steps(name), requests, rows,
                              lambda text: progress("round %d of %d: %s" % (number + 1, rounds, text)))
    progress("")

    print("One client talks, the others are silent. %d round%s, medians of them"
          % (rounds, "" if rounds == 1 else "s"))
    print_table("CPU for an echo, us, and how many times that without idle clients", found, cpu_cell)
    print_table("latency of an echo, ms: median, 99th percentile", found, latency_cell)
    print("\nclients of day 5, by worker: %s" % " ".join(map(str, workers)))
    save("scale", "make scale" + (" QUICK=1" if options.quick else ""), options.quick, rounds=rounds, figures=found,
         workers=workers)


if __name__ == "__main__":
    main(run)
