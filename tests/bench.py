#!/usr/bin/env python3
"""make bench: our servers compared with the barest possible loop, three libraries, and io_uring.

The servers take turns, for several rounds. Each is started anew, and measured with

  redis-benchmark      50 clients, a request each, one after the other: CPU for an echo, requests a
                       second, latency; then a new connection for each request: connections a second
  one fast client      it sends all it can, and reads all that comes: bytes per second
  10,000 silent ones   bytes of memory for each

Then the barest loop, day 3 and io_uring alone, for 1, 50 and 1000 clients in flight: CPU, requests, and
system calls, which perf counts in a run of its own, since that takes time. Here a process that wakes up
does not interrupt the one that runs (SCHED_BATCH), so that requests really come together.

CPU is what /proc says of the server's own processes, in user mode and in the kernel. All run on one
core: on two, the requests per second depend on which side happens to be asleep when the other sends,
and a slower server may come out ahead, because more work has piled up each time it wakes up. What is
not installed is left out.
"""

import argparse
import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
from statistics import median

from harness import MIB, ROOT
from measuring import (REDIS_BENCHMARK, Crowd, die_with_parent, main, program, progress, running, save,
                       with_redis_benchmark, with_stream)

DAYS = ["day02", "day03", "day04", "day05"]
LIMIT = "barest"
LIBRARIES = {"libev": "libev-dev", "libuv": "libuv1-dev", "libevent": "libevent-dev"}  # Debian's names
URING = "uring"
ROUNDS = 7
IN_FLIGHT = {1: 10_000, 50: 40_000, 1000: 100_000}  # and how many requests: so many that connecting hardly counts
COMPARED = [LIMIT, "day03", URING]
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

IN_FLIGHT_MEASURES = {
    "cpu": "CPU for an echo, us",
    "requests": "requests a second",
    "memory": "memory of the server, bytes",
    "calls": "system calls for an echo",
}


# ---- Which servers there are

def build(name):
    """Has make build a server of tests/bench, one at a time: two linkers would write the same file. Returns whether
    it could, and what the compiler says."""
    target = os.path.relpath(program(name), ROOT)
    with open(ROOT / "Makefile", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(["make", "-s", "-C", ROOT, target], capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stderr


def contenders():
    """The names of all servers that can be measured here; prints why others cannot."""
    built, errors = build(LIMIT)
    assert built, errors
    names = [LIMIT, *DAYS]
    for name in [*LIBRARIES, URING]:
        reason = lacking(name)
        if reason:
            print("%s is left out: %s" % (name, reason))
        else:
            names.append(name)
    if not REDIS_BENCHMARK:
        print("redis-benchmark is missing (Debian: redis-tools): no requests, no connections")
    if not can_count_calls():
        print("perf is missing or may not count (Debian: linux-perf): no system calls")
    return names


def lacking(name):
    """Why a server cannot be measured: what it needs is not installed, or the kernel forbids it. Otherwise nothing."""
    built, errors = build(name)
    if not built:
        missing, old = re.search(r"(\S+): No such file", errors), re.search(r"#error (.*)", errors)
        why = "no " + missing[1] if missing else old[1] if old else "it cannot be built"
        return "%s (Debian: %s)" % (why, LIBRARIES.get(name, "linux-libc-dev"))
    with subprocess.Popen([program(name), "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          preexec_fn=die_with_parent) as server:
        started = server.stdout.readline()
        server.kill()
        return "" if started else "the kernel says " + server.stderr.read().strip().removeprefix(name + ": ")


PERF = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter"]


@functools.cache
def can_count_calls():
    """Whether perf is installed, and may count them."""
    return shutil.which("perf") is not None and re.match(r"\d+,", subprocess.run(
        [*PERF, "true"], capture_output=True, text=True, check=False).stderr) is not None


# ---- One server, one round

def measure(name, quick):
    """A dict with the figures of MEASURES that can be measured here, except memory."""
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


def measure_in_flight(names, rounds, quick):
    """{how many: {name: {"cpu": [us for an echo], "requests": [a second], "memory": [bytes], "calls": [for an
    echo]}}}. Memory is all of the server's own, after that."""
    found = {count: {name: {what: [] for what in IN_FLIGHT_MEASURES} for name in names}
             for count in IN_FLIGHT}
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # the servers inherit it
    for number in range(rounds):
        for name in names[number % len(names):] + names[:number % len(names)]:
            progress("round %d of %d: %s, clients in flight" % (number + 1, rounds, name))
            with running([program(name), "0"]) as server:
                for count, requests in IN_FLIGHT.items():
                    requests //= 20 if quick else 1
                    row = found[count][name]
                    echo = with_redis_benchmark(server, requests, clients=count)
                    row["cpu"].append(echo["cpu"] * 1e6)
                    row["requests"].append(echo["rate"])
                    row["memory"].append(server.memory())
                    if number == 0 and can_count_calls():
                        row["calls"].append(calls_for_an_echo(server, requests, count))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return found


def calls_for_an_echo(server, requests, count):
    with tempfile.NamedTemporaryFile("r") as log:
        with_redis_benchmark(server, requests, clients=count, wrapper=[*PERF, "-o", log.name, "-p", str(server.pid)])
        return int(re.search(r"^(\d+),", log.read(), re.M)[1]) / requests


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
    """rows: {name: [figures]}. limit: the row that the others are compared with."""
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
    compared = [name for name in COMPARED if name in names]
    in_flight = measure_in_flight(compared, rounds, options.quick) if REDIS_BENCHMARK else {}
    buffers = measure_buffers(rounds, options.quick)
    progress("")

    print("%d round%s on one core: medians, ranges, and ratios to the limit, the barest loop"
          % (rounds, "" if rounds == 1 else "s"))
    for what, title in MEASURES.items():
        if figures[what]:
            print_table(title, {name: figures[what][name] for name in names}, limit=LIMIT)
    for count, rows in in_flight.items():
        for what, title in IN_FLIGHT_MEASURES.items():
            if rows[LIMIT][what]:
                print_table("%s, %d in flight" % (title, count), {name: rows[name][what] for name in rows}, limit=LIMIT)
    print_table("day 3, size of its buffer: CPU for a GiB, s", {"%d KiB" % n: v for n, v in buffers.items()})
    save("bench", "make bench" + (" QUICK=1" if options.quick else ""), options.quick, rounds=rounds,
         figures=figures, in_flight=in_flight, buffers=buffers)


if __name__ == "__main__":
    main(run)
