#!/usr/bin/env python3
"""make switches: what does it cost to serve a thousand clients, with a process each or with one loop?

1000 clients are connected to a server that forks a process for each of them (tests/bench/forking.c), then
to day 3, one loop that has all of them in its epoll instance. Some of the clients say one byte at the
same time and wait for the answers; they are in flight. Then some others, and so on. From /proc: how
often the server went to sleep (voluntary context switches) and how long it ran (/proc/PID/schedstat).
All run on one core, and a process that wakes up does not interrupt the one that runs (SCHED_BATCH), so
that requests really come together.
"""

import os
import select

from measuring import main, program, progress, running, save

CLIENTS = 1000
IN_FLIGHT = {1: 1000, 10: 2000, 100: 5000, 1000: 10000}  # and how many requests for each


def request(clients, poll):
    """All of these clients send one byte, and get it back."""
    for client in clients:
        client.send(b"x")
    missing = len(clients)
    while missing:
        for fd, _ in poll.poll(10):
            os.read(fd, 1)
            missing -= 1


def measure(name):
    """For each number in flight: the switches and microseconds of one request."""
    results = {}
    with running([program(name), "0"]) as server:
        poll, socks = select.epoll(), []
        for _ in range(CLIENTS):
            socks.append(server.connect())
            socks[-1].settimeout(None)
            poll.register(socks[-1], select.EPOLLIN)
        request(socks, poll)  # now each has been accepted
        for in_flight, requests in IN_FLIGHT.items():
            progress("%s: %d in flight" % (name, in_flight))
            before = rest(server)
            for start in range(0, requests, in_flight):
                first = start % CLIENTS
                request(socks[first:first + in_flight], poll)
            after = rest(server)
            results[in_flight] = {what: (after[what] - before[what]) / requests for what in before}
    return results


def rest(server):
    """Waits until the server sleeps: how often it has gone to sleep, and microseconds it ran."""
    server.settle()
    return {"switches": server.switches()[0], "cpu": server.cpu() * 1e6}


def run():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the server inherits both
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    each, loop = measure("forking"), measure("day03")
    progress("")
    print(f"{CLIENTS} clients, served by a process each and by one loop:\n")
    print(f"{'':>9}   {'switches per request':^22}   {'CPU per request, us':^22}")
    print(f"{'in flight':>9}   {'process each':>13}{'loop':>9}   {'process each':>13}{'loop':>9}")
    for n in IN_FLIGHT:
        print(f"{n:>9}   {each[n]['switches']:>13.3f}{loop[n]['switches']:>9.3f}"
              f"   {each[n]['cpu']:>13.1f}{loop[n]['cpu']:>9.1f}")
    save("switches", "make switches", clients=CLIENTS, each=each, loop=loop)


if __name__ == "__main__":
    main(run)
