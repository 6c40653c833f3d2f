"""Day 4: the server as an object, of which a program may have two; and the pitfall in a pointer."""

import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import MIB, ROOT, exchange, failure, free_port, program, receive, receive_all, reset

# ---- Two servers in one program


class Port:
    """One of the ports of a program that listens on several: connects to it."""

    def __init__(self, server, count):
        self.server, self.port = server, int(server.wait_out(r"^listening on 127.0.0.1:(\d+)$", count)[1])

    def connect(self):
        self.server.port = self.port
        return self.server.connect()


def use_both(server):
    """Twenty clients on each port at the same time, three that go with a reset, and one that sends much.
    Then one signal ends both, and each has its own totals."""
    first, second = Port(server, 1), Port(server, 2)
    assert first.port != second.port
    socks = [(port.connect(), os.urandom(1000)) for _ in range(20) for port in (first, second)]
    for sock, data in socks:
        sock.sendall(data)
    assert all(receive(sock, 1000) == data for sock, data in socks)
    for port in (first, second) * 3:
        sock = port.connect()
        assert server.echoes(sock, b"x")
        reset(sock)
    streams = [(first.connect(), os.urandom(4 * MIB)), (second.connect(), os.urandom(2 * MIB))]
    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(lambda stream: exchange(*stream) == stream[1], streams))
    errors = server.errors(6)
    assert len(errors) == 6 and all("recv 127.0.0.1:" in line for line in errors)
    server.let_clients_end()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert all(receive_all(sock) == b"" for sock, _ in socks)
    totals = re.findall(r"^served (\d+) clients: (\d+) bytes echoed, (\d+) undelivered$",
                        "\n".join(server.out), re.M)
    assert totals == [("24", str(20_003 + 4 * MIB), "0"), ("24", str(20_003 + 2 * MIB), "0")]


def test_two_servers(launch):
    use_both(launch([program("day04", "two_servers")]))


def test_two_servers_take_ports(launch):
    """The second cannot have the first one's."""
    port = free_port()
    server = launch([program("day04", "two_servers"), str(port), str(port)])
    assert server.wait() == 1
    assert re.match("two_servers: bind 127.0.0.1:%d" % port + failure("EADDRINUSE"), server.errors(1)[0])


def test_two_servers_with_thread_sanitizer(launch, tmp_path):
    """There are two threads, and not one variable that both of them write."""
    built = subprocess.run(
        ["gcc", "-std=gnu11", "-g", "-O1", "-fsanitize=thread", "-pthread", "-o", tmp_path / "two_servers",
         *(ROOT / "day04-epoll-class" / name for name in ("two_servers.c", "server.c", "epoll.c")),
         ROOT / "common" / "die.c"], capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.skip("gcc cannot build with ThreadSanitizer here: " + built.stderr[-200:])
    # Where the kernel spreads the addresses more widely than ThreadSanitizer knows.
    same_addresses = ["setarch", "-R"] if shutil.which("setarch") else []
    use_both(launch([*same_addresses, tmp_path / "two_servers"]))  # ends with 66 if there is a race


# ---- The pitfall

ARRAY, POINTER = "events is an array:", "events is a pointer to as many on the heap:"
RIGHT = "bzero(events, sizeof(*events) * MAX)"
ADDRESS = "bzero(&events, sizeof(*events) * MAX)"
SIZEOF = "bzero(events, sizeof(events))"


@pytest.fixture(scope="module")
def pitfall():
    """{(array or pointer, call): what was printed of it}"""
    text = subprocess.run([program("day04", "bzero_pitfall")], stdout=subprocess.PIPE, text=True,
                          check=True).stdout
    found, kind, call = {}, None, None
    for line in text.splitlines():
        if not line.startswith(" "):
            kind = line
        elif not line.startswith("    "):
            call = line.strip()
            found[kind, call] = []
        else:
            found[kind, call].append(line.strip())
    return found


@pytest.mark.parametrize("call", [RIGHT, ADDRESS, SIZEOF])
def test_an_array_forgives_everything(pitfall, call):
    assert pitfall[ARRAY, call] == [
        "768 of 768 bytes cleared", "epoll_wait: 1 event", "the child exited with 0"]


@pytest.mark.parametrize("call, outcome", [
    (RIGHT, ["768 of 768 bytes cleared, the pointer is as it was, 0 bytes of its neighbour are lost",
             "epoll_wait: 1 event", "the child exited with 0"]),
    (ADDRESS, ["0 of 768 bytes cleared, the pointer is NULL, 760 bytes of its neighbour are lost",
               "epoll_wait: Bad address", "the child exited with 1"]),
    (SIZEOF, ["8 of 768 bytes cleared, the pointer is as it was, 0 bytes of its neighbour are lost",
              "epoll_wait: 1 event", "the child exited with 0"]),
])
def test_a_pointer_forgives_nothing(pitfall, call, outcome):
    assert pitfall[POINTER, call] == outcome
