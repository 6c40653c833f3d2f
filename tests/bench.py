#!/usr/bin/env python3
"""make bench: our servers beside the barest loop that is possible, and beside three libraries.

The servers take turns, for several rounds. Each is started anew, and measured with

  redis-benchmark      50 clients, a request each, one after the other: CPU for an echo, requests a
                       second, latency; then a new connection for each request: connections a second
  one fast client      it sends all it can, and reads all that comes: bytes a second
  10,000 silent ones   bytes of memory for each

CPU is what /proc says of the server's own processes, in user mode and in the kernel. All run on one
core: on two, what is done in a second depends on who happens to be asleep when the other has
something to say, and a server that is slower may come out faster, since it finds more to do each time
it wakes up. What is not installed is left out.
"""

import argparse
import os
import re
import subprocess
from statistics import median

from harness import MIB, ROOT
from measuring import (REDIS_BENCHMARK, Crowd, main, program, progress, running, save,
                       with_redis_benchmark, with_stream)

DAYS = ["day02", "day03", "day04", "day05"]
LIMIT = "barest"
LIBRARIES = {"libev": "libev-dev", "libuv": "libuv1-dev", "libevent": "libevent-dev"}  # Debian's names
ROUNDS = 7
BUFFERS = [4, 8, 16, 32, 64, 128]  # KiB

MEASURES = {
    "cpu": "CPU for an echo, us (50 clients)",
    "requests": "requests a second",
    "median": "latency of a request, median, ms",
    "p99": "latency of a request, 99th percentile, ms",
    "connections": "connections a second (connect, one echo, close)",
    "cpu-connection": "CPU for such a connection, us",
    "stream": "bulk stream, MiB a second",
    "cpu-stream": "CPU for a GiB of it, s",
    "memory": "memory for an idle client, bytes",
}


# ---- Who is there

def build(name):
    """Has make build a server of tests/bench; returns whether it could, and what the compiler says."""
    target = os.path.relpath(program(name), ROOT)
    done = subprocess.run(["make", "-s", "-C", ROOT, target], capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stderr


def contenders():
    """The names of all servers that can be had; says which cannot."""
    built, errors = build(LIMIT)
    assert built, errors
    names = [LIMIT, *DAYS]
    for library, package in LIBRARIES.items():
        built, errors = build(library)
        if built:
            names.append(library)
        else:
            missing = re.search(r"(\S+): No such file", errors)
            print("%s is left out: %s (Debian: %s)" % (
                library, "no " + missing[1] if missing else "it cannot be built", package))
    if not REDIS_BENCHMARK:
        print("redis-benchmark is missing (Debian: redis-tools): no requests, no connections")
    return names


# ---- One server, one round

def measure(name, quick):
    """A dict with the figures of MEASURES that can be had, but for memory."""
    found = {}
    if REDIS_BENCHMARK:
        with running([program(name), "0"]) as server:
            echo = with_redis_benchmark(server, 5_000 if quick else 40_000)
            found.update({"cpu": echo["cpu"] * 1e6, "requests": echo["rate"],
                          "median": echo["median"], "p99": echo["p99"]})
            each = with_redis_benchmark(server, 1_000 if quick else 6_000, keep_alive=False)
            found.update({"connections": each["rate"], "cpu-connection": each["cpu"] * 1e6})
    with running([program(name), "0"]) as server:
        stream = with_stream(server, (16 if quick else 1024) * MIB)
        found.update({"stream": stream["rate"] / MIB, "cpu-stream": stream["cpu"] * 1024 * MIB})
    return found


def measure_memory(name, quick):
    """Bytes for an idle client. The first hundred pay for what is needed only once."""
    count = 900 if quick or name == "day02" else 10_000  # day 2 cannot have more
    with running([program(name), "0"]) as server:
        with Crowd(server) as crowd:
            crowd.grow(100)
        before = server.memory()
        with Crowd(server) as crowd:
            crowd.grow(count, talk=False)
            return (server.memory() - before) / count


def measure_buffers(rounds, quick):
    """{KiB: [seconds of CPU for a GiB]}: day 3, built with buffers of other sizes."""
    found = {size: [] for size in BUFFERS}
    for size in BUFFERS:
        built, errors = build("buffer-%dk" % size)
        assert built, errors
    for number in range(rounds):
        for size in BUFFERS:
            progress("round %d of %d: a buffer of %d KiB" % (number + 1, rounds, size))
            with running([program("buffer-%dk" % size), "0"]) as server:
                stream = with_stream(server, (16 if quick else 256) * MIB)
                found[size].append(stream["cpu"] * 1024 * MIB)
    return found


# ---- The tables

def print_table(title, rows, limit=None):
    """rows: {name: [figures]}. limit: which of them the others are compared to."""
    base = median(rows[limit]) if limit in rows else 0
    most = max(median(values) for values in rows.values()) or 1
    print("\n%-46s %9s %22s %8s" % (title, "median", "range", "x limit" if base else ""))
    for name, values in rows.items():
        middle = median(values)
        print("  %-44s %9.*f %22s %8s" % (
            "%-9s %s" % (name, "#" * round(30 * middle / most)), digits(middle), middle,
            "%.*f .. %.*f" % (digits(middle), min(values), digits(middle), max(values)),
            "%.2f" % (middle / base) if base else ""))


def digits(value):
    return 0 if value >= 1000 else 1 if value >= 50 else 2


def run():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    options = parser.parse_args()
    rounds = 1 if options.quick else ROUNDS
    names = contenders()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures = {measure: {} for measure in MEASURES}
    for number in range(rounds):
        for name in names[number:] + names[:number]:
            progress("round %d of %d: %s" % (number + 1, rounds, name))
            for what, value in measure(name, options.quick).items():
                figures[what].setdefault(name, []).append(value)
    for name in names:
        progress("memory of " + name)
        figures["memory"][name] = [measure_memory(name, options.quick)]
    buffers = measure_buffers(rounds, options.quick)
    progress("")

    print("%d round%s on one core: medians, ranges, and ratios to the limit, the barest loop"
          % (rounds, "" if rounds == 1 else "s"))
    for what, title in MEASURES.items():
        if figures[what]:
            print_table(title, {name: figures[what][name] for name in names}, limit=LIMIT)
    print_table("day 3, size of its buffer: CPU for a GiB, s", {"%d KiB" % n: v for n, v in buffers.items()})
    save("bench", "make bench" + (" QUICK=1" if options.quick else ""), options.quick, rounds=rounds,
         figures=figures, buffers=buffers)


if __name__ == "__main__":
    main(run)
