"""Day 2: select, its two sets, and its two limits."""

import os
import re
import resource
from pathlib import Path

import pytest

from harness import failure, name_of, receive


@pytest.fixture
def server(start_day):
    return start_day("day02", "-v", "0")


def test_verbose_tells_who_is_ready(server):
    with server.connect() as sock:
        assert server.echoes(sock, b"12345")
        name = name_of(sock)
    server.wait_out(" left")
    assert server.out[1:] == [
        "woke up: 1 ready, fd 3 readable",
        "fd 6: " + name + " connected",
        "woke up: 1 ready, fd 6 readable",
        "woke up: 1 ready, fd 6 readable",
        "fd 6: " + name + " left: closed by the client",
    ]


def test_a_wake_up_has_a_line(server):
    """The listener is ready once, and the client twice: for its bytes, and for its end."""
    with server.connect() as sock:
        assert server.echoes(sock)
    server.wait_out(" left")
    ready = re.findall(r"woke up: 1 ready, fd (\d+) readable", "\n".join(server.out))
    assert ready[0] == "3" and ready[1:] == 2 * [ready[1]]


def test_no_socket_blocks(server):
    with server.connect() as sock:
        assert server.echoes(sock)
        folder = "/proc/%d/" % server.pid
        sockets = [fd for fd in os.listdir(folder + "fd") if os.readlink(folder + "fd/" + fd).startswith("socket:")]
        flags = [Path(folder + "fdinfo/" + fd).read_text() for fd in sockets]
    assert len(sockets) == 2
    assert all(int(re.search(r"flags:\s+(\d+)", text)[1], 8) & os.O_NONBLOCK for text in flags)


def test_a_client_is_in_one_set_at_a_time(server):
    """While something is held for it we wait to write to it, and read nothing more."""
    sock = server.connect(receive_buffer=4096)
    sent = server.fill(sock)
    asked = len(server.out)
    assert receive(sock, len(sent)) == sent
    server.settle()
    woken = [line for line in server.out[asked:] if line.startswith("woke up") and "fd 6" in line]
    assert woken and "writable" in woken[0]
    assert not any("readable" in line and "writable" in line for line in woken)
    assert server.echoes(sock, b"and now reading again")


# ---- The first limit: FD_SETSIZE

def test_lowers_its_own_limit(start_day):
    """select has no room for descriptor 1024: accept must fail with EMFILE before that."""
    server = start_day("day02", "0", limits={resource.RLIMIT_NOFILE: 2000})
    assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[0] == 1024


def test_more_clients_than_an_fd_set_has_room_for(start_day):
    """1200 clients: the first thousand are served, the others wait, and are served later."""
    server = start_day("day02", "-v", "0")
    room = 1024 - 6  # 0 to 5 are taken: stdin, stdout, stderr, the listener, both ends of the pipe
    socks = [server.connect() for _ in range(1200)]
    for i, sock in enumerate(socks):
        sock.sendall(b"%04d" % i)
    for i, sock in enumerate(socks[:room]):
        assert receive(sock, 4) == b"%04d" % i
    server.settle()
    assert len([line for line in server.out if line.endswith(" connected")]) == room
    assert server.cpu_share() < 0.1
    assert re.match("server: accept: newcomers have to wait" + failure("EMFILE"), server.errors(1)[0])
    assert all(server.echoes(sock, b"again") for sock in socks[:room])
    for sock in socks[:room]:
        sock.close()
    for i, sock in enumerate(socks[room:], room):
        assert receive(sock, 4) == b"%04d" % i
        sock.close()


# ---- The second limit: the price of a wake-up. Day 3 has the same test with the opposite result

def test_a_wake_up_looks_at_all_clients(start_day, price_of_idle_clients):
    assert price_of_idle_clients(start_day("day02", "0"), 900) > 5
