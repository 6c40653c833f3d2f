#!/usr/bin/env python3
"""make balance: day 5's server on three machines, behind HAProxy.

A machine is a network namespace. Each has a server, and a cable (veth) to a fourth namespace, in which
HAProxy runs (balance.cfg), and this program with 300 clients:

                                     +-- 10.0.1.1 ---- 10.0.1.2  machine 1: day 5's server
    clients --- 10.0.0.1: HAProxy ---+-- 10.0.2.1 ---- 10.0.2.2  machine 2
                                     +-- 10.0.3.1 ---- 10.0.3.2  machine 3

Each client comes, sends numbers and checks that they come back, leaves after one to three seconds, and
comes again. Meanwhile machine 1's server is killed and started again, machine 2 is drained and its server
told to end, and machine 3's cable is pulled. How many clients did each machine get, and what was lost?

No namespace has a name. It lives as long as a process is in it or has it open, and so do its cables;
so none is left when we end, whatever ends us.
"""

import argparse
import asyncio
import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from array import array
from pathlib import Path
from statistics import median

from harness import PATIENCE, ROOT, Server, wait_until
from measuring import die_with_parent, main, program, progress, save

CLONE_NEWNET = 0x40000000
LISTEN, TIME_WAIT = "0A", "06"  # in /proc/net/tcp
MACHINES = ["1", "2", "3"]
ALGORITHMS = ["roundrobin", "leastconn"]
ADDRESS, PORT = "10.0.0.1", 8888
PAUSE = 0.1  # seconds, from an echo to the next message
TICK = 0.1  # seconds, from one point of the curves to the next
NUMBERS = array("I", range(1 << 18)).tobytes()
LIBC = ctypes.CDLL(None, use_errno=True)


# ---- Namespaces

def missing():
    """Why this cannot be done here, or None. In a container even root may not be allowed to."""
    for tool, package in (("haproxy", "haproxy"), ("ip", "iproute2")):
        if shutil.which(tool) is None:
            return "%s is missing (Debian: %s)" % (tool, package)
    if os.geteuid() != 0:
        return "only root may make network namespaces: sudo make balance"
    trial = subprocess.run(["unshare", "--net", "ip", "link", "add", "type", "veth"], capture_output=True, text=True,
                           check=False)
    return "no network namespaces here: " + trial.stderr.strip() if trial.returncode else None


def new_namespace(stack):
    """Makes one and enters it. Returns a descriptor that keeps it alive."""
    check(LIBC.unshare(CLONE_NEWNET))
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    stack.callback(os.close, namespace)
    return namespace


def check(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def inside(namespace):
    """For a process that we start: it runs in the namespace and ends with us, but does not get our Ctrl-C."""
    def prepare():
        die_with_parent()
        os.setsid()
        check(LIBC.setns(namespace, CLONE_NEWNET))

    return prepare


def ip(namespace, *commands):
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True,
                   preexec_fn=inside(namespace))


def new_machines(stack):
    """Their namespaces, by name, and a fourth one, in which we are. Cables connect it to each of them."""
    machines = {name: new_namespace(stack) for name in MACHINES}
    here = new_namespace(stack)
    ip(here, "link set lo up", "addr add %s/32 dev lo" % ADDRESS)
    for name, there in machines.items():
        ip(there, "link add eth0 type veth peer name machine%s netns %d" % (name, os.getpid()),
           "link set lo up", "addr add 10.0.%s.2/24 dev eth0" % name, "link set eth0 up")
        ip(here, "addr add 10.0.%s.1/24 dev machine%s" % (name, name), "link set machine%s up" % name)
    return machines, here


# ---- Clients

class Client(asyncio.Protocol):
    """Comes, says something, waits for the echo, pauses, and so on, until it has been there long enough.
    Then it shuts down its sending side. All that it says is numbered, and differs from what others say."""

    def __init__(self, number, stay):
        self.loop = asyncio.get_running_loop()
        self.first = 4 * (number % (1 << 16))  # of the bytes of NUMBERS
        self.came = time.monotonic()
        self.until = self.came + stay
        self.said = self.back = 0
        self.answered = self.end = None  # when
        self.leaving = False
        self.over = self.loop.create_future()
        self.port = self.transport = self.machine = self.next = None
        self.sent_on = False  # HAProxy asked another machine first

    def connection_made(self, transport):
        self.transport, self.port = transport, transport.get_extra_info("sockname")[1]
        self.speak()

    def speak(self):
        if time.monotonic() > self.until:
            self.leaving = True
            self.transport.write_eof()
            return
        start = self.first + self.said
        self.said += random.randint(1, 4000)
        self.transport.write(NUMBERS[start:self.first + self.said])

    def data_received(self, data):
        start = self.first + self.back
        self.back += len(data)
        if data != NUMBERS[start:start + len(data)] or self.back > self.said:
            self.over.set_exception(AssertionError("client %d got other bytes than it had sent" % self.port))
            self.transport.abort()
        if self.back == self.said:
            self.answered = self.answered or time.monotonic()
            self.next = self.loop.call_later(random.uniform(0.5, 1.5) * PAUSE, self.speak)

    def connection_lost(self, error):
        self.end = time.monotonic()
        if self.next:
            self.next.cancel()
        if not self.over.done():
            self.over.set_result(None)

    @property
    def lost(self):
        return self.back < self.said or not self.leaving


class Crowd:
    """So many clients at a time: for each that leaves or is lost, the next one comes."""

    def __init__(self, count, stay):
        self.count, self.stay = count, stay
        self.all, self.closing = [], False

    async def seat(self):
        while not self.closing:
            client = Client(len(self.all), random.uniform(*self.stay))
            self.all.append(client)
            sock = socket.create_connection((ADDRESS, PORT))  # at once: HAProxy's backlog is on our machine
            await client.loop.create_connection(lambda: client, sock=sock)
            await client.over
            if not client.back:
                await asyncio.sleep(PAUSE)  # turned away

    async def stay_during(self, play):
        """Runs the play. Returns what that returns, once all clients have left."""
        async def until_its_end():
            outcome = await play.run()
            self.closing = True
            return outcome

        return (await asyncio.gather(until_its_end(), *(self.seat() for _ in range(self.count))))[0]


# ---- The play

class Play:
    """What happens to the machines, and when."""

    def __init__(self, algorithm, crowd, beat, tell, stack):
        self.crowd, self.beat, self.tell, self.stack, self.at = crowd, beat, tell, stack, {}
        self.machines, here = new_machines(stack)
        self.servers = {name: self.start_server(name) for name in MACHINES}
        for server in self.servers.values():
            server.wait_out("^listening on ")
        self.haproxy = self.keep(Server(["haproxy", "-db", "-f", ROOT / "tests" / "balance.cfg"],
                                        env={"BALANCE": algorithm}, prepare=inside(here)))
        wait_until(self.haproxy_answers, "HAProxy")

    def keep(self, server):
        self.stack.callback(server.kill)
        return server

    def start_server(self, name):
        command = [program("day05"), "-w", "2", str(PORT), "10.0.%s.2" % name]
        return self.keep(Server(command, prepare=inside(self.machines[name])))

    # ---- HAProxy

    def ask(self, command):
        with socket.create_connection(("127.0.0.1", 9999)) as sock:
            sock.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode()

    def haproxy_answers(self):
        assert self.haproxy.process.poll() is None, "HAProxy ended: " + "\n".join(self.haproxy.err)
        with contextlib.suppress(ConnectionRefusedError):
            return "Uptime" in self.ask("show info")

    def is_empty(self, name):
        """Whether its kernel knows of no connection, neither of a client nor of a health check."""
        table = Path("/proc/%d/net/tcp" % self.servers[name].pid).read_text(encoding="ascii")
        return {row.split()[3] for row in table.splitlines()[1:]} <= {LISTEN, TIME_WAIT}

    # ---- What happens

    def now(self, event):
        self.at[event] = time.monotonic()

    async def until(self, condition):
        end = time.monotonic() + PATIENCE
        while not condition():
            if self.haproxy.process.poll() is not None:
                raise ConnectionError("it has ended")
            assert time.monotonic() < end, "waited in vain; HAProxy says:\n" + "\n".join(self.haproxy.err[-5:])
            await asyncio.sleep(0.002)

    async def answered(self, event, count):
        """Until the first so many clients that came after the event have had an answer, or have been turned away."""
        def first():
            return [client for client in self.crowd.all if client.came > self.at[event]][:count]
        await self.until(lambda: len(first()) == count and all(client.answered or client.end for client in first()))

    async def logged(self, news, before):
        """Until HAProxy has logged the news, after so many lines that were there before."""
        await self.until(lambda: any(news in line for line in self.haproxy.err[before:]))

    async def kill(self, name):
        lines = len(self.haproxy.err)
        self.now("killed")
        os.killpg(self.servers[name].pid, signal.SIGKILL)
        await self.logged("Server echo/%s is DOWN" % name, lines)
        self.now("killed: noticed")

    async def bring_back(self, name):
        lines = len(self.haproxy.err)
        self.servers[name] = self.start_server(name)
        await self.logged("Server echo/%s is UP" % name, lines)
        self.now("back")

    async def drain(self, name):
        """Returns the totals that the server prints at its end."""
        self.now("drained")
        self.ask("set server echo/%s state drain" % name)
        await self.until(lambda: self.is_empty(name))
        self.now("drained: empty")
        self.ask("set server echo/%s state maint" % name)  # no health checks
        await self.until(lambda: self.is_empty(name))
        server = self.servers[name].process
        server.send_signal(signal.SIGTERM)
        await self.until(lambda: server.poll() is not None)
        assert server.returncode == 0
        return self.servers[name].totals()

    async def pull_the_cable(self, name):
        lines = len(self.haproxy.err)
        self.now("silent")
        ip(self.machines[name], "link set eth0 down")
        await self.logged("Server echo/%s is DOWN" % name, lines)
        self.now("silent: noticed")

    async def run(self):
        self.now("start")
        self.tell("clients come")
        await asyncio.sleep(self.beat)
        await self.answered("start", self.crowd.count)
        self.tell("the server of machine 1 is killed")
        await self.kill("1")
        await asyncio.sleep(self.beat)
        self.tell("it is back")
        await self.bring_back("1")
        await asyncio.sleep(self.beat)
        await self.answered("back", self.crowd.count // 3 + len(MACHINES))
        self.tell("machine 2 is drained")
        totals = await self.drain("2")
        await asyncio.sleep(self.beat)
        self.tell("the cable of machine 3 is pulled")
        await self.pull_the_cable("3")
        await asyncio.sleep(self.beat)
        self.now("end")
        return totals


# ---- The results

def look_up_machines(clients, log):
    """HAProxy's log says where each client was. A port may be used again, but not by two clients at the same time."""
    found = {}
    for port, machine, retries in re.findall(r"^client (\d+) machine (\S+) retries (\S+)$", "\n".join(log), re.M):
        found.setdefault(int(port), []).append((machine, "+" in retries))
    for client in clients:
        client.machine, client.sent_on = found[client.port].pop(0)


def deal(clients):
    """How many of them each machine got."""
    return [sum(client.machine == name for client in clients) for name in MACHINES]


def of_a_death(clients, at, event, name):
    """What a machine's end means for its clients, and for those that come before HAProxy notices. A dict of figures;
    times in ms."""
    began, noticed = at[event], at[event + ": noticed"]
    theirs = [client for client in clients if client.machine == name and client.came < began < client.end]
    lost = [client for client in theirs if client.lost]
    newcomers = [client for client in clients if began <= client.came < noticed]
    return {
        "clients": len(theirs),
        "lost": len(lost),
        "bytes": sum(client.said - client.back for client in lost),
        "learn": max((1000 * (client.end - began) for client in lost), default=0),
        "noticed": 1000 * (noticed - began),
        "newcomers": len(newcomers),
        "sent on": sum(client.sent_on and not client.lost for client in newcomers),
        "turned away": sum(client.lost and not client.answered for client in newcomers),
        "wait": max((1000 * (client.answered - client.came) for client in newcomers if client.answered), default=0),
    }


def of_the_drained(clients, at, totals):
    theirs = [client for client in clients if client.machine == "2" and client.came < at["drained"] < client.end]
    return {
        "clients": len(theirs),
        "lost": sum(client.lost for client in theirs),
        "newcomers": sum(client.machine == "2" and client.came > at["drained"] for client in clients),
        "empty": at["drained: empty"] - at["drained"],
        "undelivered": totals[2],
    }


def after_the_first(clients, at):
    """Those that came when machine 1 was back: from the first one on that it got."""
    newcomers = [client for client in clients if client.came > at["killed: noticed"]]
    first = next((number for number, client in enumerate(newcomers) if client.machine == "1"), len(newcomers))
    return newcomers[first:]


def results(clients, at, totals, crowd):
    """The figures of one play. others: how many clients were lost although their machine lived."""
    killed, silent = of_a_death(clients, at, "killed", "1"), of_a_death(clients, at, "silent", "3")
    expected = sum(death[what] for death in (killed, silent) for what in ("lost", "turned away"))
    return {
        "came": deal(clients[:crowd]),
        "killed": killed,
        "back": deal(after_the_first(clients, at)[:crowd // 3]),
        "drained": of_the_drained(clients, at, totals),
        "silent": silent,
        "others": sum(client.lost for client in clients) - expected,
    }


def curves(clients, at):
    """How many clients each machine has, every TICK, and when each event happened, in seconds."""
    ticks = [at["start"] + TICK * n for n in range(int((at["end"] - at["start"]) / TICK))]
    return {
        "clients": {name: [sum(client.machine == name and client.came <= tick < client.end for client in clients)
                           for tick in ticks] for name in MACHINES},
        "at": {event: when - at["start"] for event, when in at.items()},
    }


def measure(algorithm, crowd, stay, beat, tell):
    """Plays it once. Returns the results and the curves."""
    with contextlib.ExitStack() as stack:
        clients = Crowd(crowd, stay)
        play = Play(algorithm, clients, beat, tell, stack)
        try:
            totals = asyncio.run(clients.stay_during(play))
        except ConnectionError as error:
            sys.exit("balance: HAProxy is gone: %s" % error)
        wait_until(lambda: sum(line.startswith("client ") for line in play.haproxy.err) == len(clients.all),
                   "HAProxy to log all clients")
        look_up_machines(clients.all, play.haproxy.err)
        return results(clients.all, play.at, totals, crowd), curves(clients.all, play.at)


# ---- What is printed

def span(values, form):
    """The median, and the range if there is one."""
    low, high = form % min(values), form % max(values)
    return low if low == high else "%s (%s to %s)" % (form % median(values), low, high)


def rows(figures):
    """The rows of the table: what was counted, and the figure for each algorithm."""
    def row(what, *path, form="%.0f", unit=1):
        def figure(result):
            for key in path:
                result = result[key]
            return result if isinstance(result, list) else result / unit

        found = [[figure(result) for result in rounds] for rounds in figures.values()]
        if isinstance(found[0][0], list):
            return [what, *(" ".join("%.0f" % median(each) for each in zip(*values)) for values in found)]
        return [what, *(span(values, form) for values in found)]

    def death(title, event):
        return [row("**%s**: clients that it had" % title, event, "clients"),
                row("of these, lost", event, "lost"),
                row("KB that they had sent, and not got back", event, "bytes", unit=1000),
                row("ms until the last of them knew", event, "learn"),
                row("ms until HAProxy knew", event, "noticed"),
                row("newcomers in that time", event, "newcomers"),
                row("of these, sent on to another machine", event, "sent on"),
                row("of these, turned away", event, "turned away"),
                row("the longest wait for a first echo, ms", event, "wait")]

    return [row("**clients come**: to each machine", "came"),
            *death("a server is killed", "killed"),
            row("**it is back**: of the next newcomers, to each machine", "back"),
            row("**another is drained**: clients that it had", "drained", "clients"),
            row("of these, lost", "drained", "lost"),
            row("newcomers that it still gets", "drained", "newcomers"),
            row("s until the last has left", "drained", "empty", form="%.1f"),
            row("bytes undelivered when it ends", "drained", "undelivered"),
            *death("the third machine falls silent", "silent"),
            row("**all the time**: lost, although their machine lived", "others")]


def run():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean little")
    quick = parser.parse_args().quick
    reason = missing()
    if reason and quick:
        print("balance is left out: " + reason)
        return
    if reason:
        sys.exit("balance: " + reason)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # with which asyncio knows how to end
    rounds, crowd, stay, beat = (1, 60, (0.6, 1.8), 0.5) if quick else (3, 300, (1, 3), 2)
    # With QUICK HAProxy has more patience: a machine that is busy with other things is not to be taken for a dead one.
    os.environ["CHECK"] = "600ms" if quick else "200ms"
    figures, first = {name: [] for name in ALGORITHMS}, {}
    for number in range(rounds):
        for name in ALGORITHMS:
            found, lines = measure(name, crowd, stay, beat, lambda text, name=name: progress(
                "round %d of %d, %s: %s" % (number + 1, rounds, name, text)))
            figures[name].append(found)
            first.setdefault(name, lines)
    progress("")

    print("%d clients at a time, three machines; medians and ranges of %d round%s\n"
          % (crowd, rounds, "" if rounds == 1 else "s"))
    print("%-60s%-22s%s" % ("", *ALGORITHMS))
    for what, *cells in rows(figures):
        print("%-60s%-22s%s" % ((what.replace("**", "") if "**" in what else "  " + what), *cells))
    save("balance", "make balance" + (" QUICK=1" if quick else ""), quick, clients=crowd, tick=TICK, figures=figures,
         curves=first)


if __name__ == "__main__":
    main(run)
