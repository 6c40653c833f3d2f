"""What the commands that measure have in common: how they start servers, load them, and report the results."""

import contextlib
import csv
import ctypes
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from harness import BUILD, MIB, ROOT, Server, exchange, use_all_descriptors

PR_SET_PDEATHSIG = 1
IP_BIND_ADDRESS_NO_PORT = 24
MEASURED = pathlib.Path(os.environ.get("MEASURED", BUILD / "measured"))  # where the figures go
REDIS_BENCHMARK = shutil.which("redis-benchmark")


def program(name):
    """day03, or a server of tests/bench."""
    return BUILD / (name + "/server" if name.startswith("day") else "bench/" + name)


def die_with_parent():
    """Runs in a server before its first line: whatever ends us, even kill -9, ends it too."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def running(command):
    """with running([program("day03"), "0"]) as server: a Server, which is gone afterwards, whatever
    happens to it or to us."""
    server = Server(command, prepare=die_with_parent)
    try:
        yield server.listening()
        assert server.process.poll() is None, "the server ended: " + "\n".join(server.err)
    finally:
        server.kill()


def spread(server):
    """How many clients each worker of day 5's server has: {pid: clients}, the busiest first."""
    counts = {pid: len([fd for fd in os.listdir("/proc/%d/fd" % pid)
                        if os.readlink("/proc/%d/fd/%s" % (pid, fd)).startswith("socket:")]) - 1  # the listener
              for pid in server.processes()[1:]}
    return dict(sorted(counts.items(), key=lambda each: each[1], reverse=True))


# ---- Load

def with_redis_benchmark(server, requests, clients=50, keep_alive=True, wrapper=()):
    """A dict: seconds of the server's CPU for one request, requests per second, and how long half of
    them (median) and 99 of 100 (p99) took at most, in ms. A request is one PING; it is answered by
    its own echo, which redis-benchmark takes for an answer. keep_alive=False: a connection for each.
    wrapper: a command that runs it."""
    server.settle()
    before = server.cpu()
    done = subprocess.run(
        [*wrapper, REDIS_BENCHMARK, "-p", str(server.port), "-c", str(clients), "-n", str(requests),
         "-k", str(int(keep_alive)), "-t", "ping_mbulk", "--csv"],
        capture_output=True, text=True, check=True, timeout=100)
    server.settle()
    row = next(csv.DictReader(io.StringIO(done.stdout)), {})
    if "p50_latency_ms" not in row:
        sys.exit("this redis-benchmark does not report latencies; 6.2 or newer does")
    return {"cpu": (server.cpu() - before) / requests, "rate": float(row["rps"]),
            "median": float(row["p50_latency_ms"]), "p99": float(row["p99_latency_ms"])}


def with_stream(server, size):
    """One client sends so many bytes and reads them back at the same time. A dict: seconds of the
    server's CPU for one byte, bytes per second."""
    piece, buffer, got = os.urandom(MIB // 4), bytearray(MIB // 4), 0
    assert exchange(server.connect(), piece) == piece
    sock = server.connect()
    sock.settimeout(None)  # with one, Python would ask poll before each call

    def send():
        with contextlib.suppress(OSError):  # then bytes are missing, and we say so below
            for _ in range(size // len(piece)):
                sock.sendall(piece)

    server.settle()
    before, start = server.cpu(), time.monotonic()
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    while got < size:
        n = sock.recv_into(buffer)
        assert n > 0, "%d of %d bytes came back" % (got, size)
        got += n
    took = time.monotonic() - start
    sender.join()
    server.settle()
    return {"cpu": (server.cpu() - before) / size, "rate": size / took}


class Crowd:
    """Clients that are connected and say nothing. They live in processes of their own, since one
    process may not have enough descriptors."""
    EACH = 10_000

    def __init__(self, server):
        self.server, self.holders, self.count = server, [], 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave()

    def grow(self, count, talk=True):
        """Adds clients until there are so many. talk: each sends a byte first and gets it back, so that it
        has surely been accepted."""
        waiting = []
        each = min(self.EACH, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100)
        while self.count < count:
            part = min(each, count - self.count)
            waiting.append(self._hold(self.count, part, talk))
            self.count += part
        for ready in waiting:
            assert os.read(ready, 1) == b"!", "a process that holds clients failed"
            os.close(ready)
        self.server.settle()

    def _hold(self, first, count, talk):
        """A child with so many clients. Returns a descriptor that gets a byte when they are there."""
        ready, tell = os.pipe()
        hold, until = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(until)
            status = 1
            try:
                for _, end in self.holders:  # or it would stay open in us when leave closes it
                    os.close(end)
                clients = [self._connect(number) for number in range(first, first + count)]
                if talk:
                    for sock in clients:
                        sock.send(b"x")
                    for sock in clients:
                        assert sock.recv(1) == b"x"
                os.write(tell, b"!")
                os.read(hold, 1)
                status = 0
            finally:
                os._exit(status)
        os.close(tell)
        os.close(hold)
        self.holders.append((pid, until))
        return ready

    def _connect(self, number):
        """From a different address for each thousand: one has too few ports, and finding them gets slow. The client
        will leave with a reset, because the kernel cannot keep so many in TIME_WAIT."""
        sock = socket.socket()
        sock.settimeout(60)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind(("127.0.1.%d" % (1 + number // 1000), 0))
        sock.connect((self.server.address, self.server.port))
        return sock

    def leave(self):
        for _, until in self.holders:
            os.close(until)
        for pid, _ in self.holders:
            os.waitpid(pid, 0)
        self.holders, self.count = [], 0


# ---- Reports

def progress(text):
    """Prints on stderr what is going on: a line each time, or on a terminal one line, which the next text
    replaces, and an empty text clears."""
    if sys.stderr.isatty():
        print("\r\033[K" + text, end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def machine():
    """What the figures were measured on."""
    cores = os.cpu_count()
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo", encoding="ascii").read())
    release = re.match(r"\d+\.\d+", os.uname().release)
    return "%d core%s%s, Linux %s" % (cores, "" if cores == 1 else "s",
                                      " (%s)" % model[1].strip() if model else "", release[0])


def rounded(data):
    """To four digits: more would not mean anything."""
    if isinstance(data, float):
        return float("%.4g" % data) if abs(data) < 1000 else round(data)
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    return [rounded(value) for value in data] if isinstance(data, list) else data


def save(name, command, quick=False, **data):
    """Writes NAME.json, from which make figures draws; a quick run does not replace a whole one."""
    folder = MEASURED / "quick" if quick else MEASURED
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"command": command, "machine": machine(), **rounded(data)}, indent=1)
    text = re.sub(r"\[[^][{}]*\]", lambda numbers: " ".join(numbers[0].split()), text)  # on one line
    path = folder / (name + ".json")
    path.write_text(text + "\n")
    print("\nThese figures are in %s, too." % os.path.relpath(path, ROOT))


def main(run):
    """Runs it; Ctrl-C and SIGTERM end it, and all that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    use_all_descriptors()
    try:
        run()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
