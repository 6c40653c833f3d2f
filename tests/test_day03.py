"""Day 3: epoll, its four reasons to wake up, its interest set, level and edge."""

import os
import re
import resource

import pytest

from harness import SANITIZED, receive, reset, send_what_fits, strerror, wait_until


@pytest.fixture
def server(start_day):
    return start_day("day03", "-v", "0")


def masks(server, fd=6):
    """What -v has printed of a descriptor: 'IN RDHUP (close)', once for each wake-up. A client has descriptor
    6, after stdin, stdout, stderr, the listener, the signals and the epoll instance."""
    return [m[1] for line in server.out if (m := re.search(r"fd %d ([^,:]*)" % fd, line))]


def interest_set(server):
    """{descriptor: mask} as the kernel shows it in /proc/PID/fdinfo."""
    with open("/proc/%d/fdinfo/5" % server.pid, encoding="ascii") as file:
        return {int(fd): int(mask, 16)
                for fd, mask in re.findall(r"tfd:\s+(\d+) events:\s+([0-9a-f]+)", file.read())}


# ---- The four reasons to wake up, and the mask of each

def test_a_wake_up_has_a_reason(server):
    with server.connect() as sock:
        assert server.echoes(sock)
    server.wait_out(" left")
    assert re.findall(r"woke up: 1 ready, fd \d+ (.*)", "\n".join(server.out)) == [
        "IN (new connection)", "IN (data)", "IN RDHUP (close)"]


def test_new_connection_data_and_close(server):
    with server.connect() as sock:
        assert server.echoes(sock)
    server.wait_out(" left")
    assert masks(server, fd=3) == ["IN (new connection)"]
    assert masks(server) == ["IN (data)", "IN RDHUP (close)"]


def test_half_close_looks_like_a_close(server):
    with server.connect() as sock:
        assert server.echoes(sock)
        sock.shutdown(1)
        server.wait_out("closed by the client")
    assert masks(server)[-1] == "IN RDHUP (close)"


def test_error(server):
    sock = server.connect()
    assert server.echoes(sock)
    reset(sock)
    server.wait_out(" left: " + strerror("ECONNRESET"))
    assert masks(server) == ["IN (data)", "IN RDHUP ERR HUP (error)"]
    server.errors(1)


def test_bytes_before_an_error_are_read(server):
    """One byte, then a reset, while the server is not looking: both come in one event. The byte is
    received (and counted as undelivered, since no client is there to take it back)."""
    sock = server.connect()
    server.settle()
    server.pause()
    sock.sendall(b"x")
    reset(sock)
    server.resume()
    server.wait_out(" left: ")
    assert masks(server) == ["IN RDHUP ERR HUP (error)"]
    server.errors(1)
    assert server.stop() == (1, 0, 1)


def test_room(server):
    """A reason of our own: bytes are held for a client, and there is room for them again."""
    sock = server.connect(receive_buffer=4096)
    sent = server.fill(sock)
    woken = len(masks(server))
    assert receive(sock, len(sent)) == sent
    server.settle()
    assert masks(server)[woken] == "OUT (room)"


# ---- The interest set

def test_interest_set(server):
    """IN 1, OUT 4, ERR 8, HUP 0x10 (both are always there), RDHUP 0x2000."""
    ours = {3: 0x19, 4: 0x19}  # the listener, the signals
    assert interest_set(server) == ours
    sock = server.connect(receive_buffer=4096)
    assert server.echoes(sock)
    assert interest_set(server) == {**ours, 6: 0x2019}
    server.fill(sock)
    assert interest_set(server) == {**ours, 6: 0x1c}
    reset(sock)
    wait_until(lambda: interest_set(server) == ours, "the client to be forgotten")
    server.errors(1)


def test_edge_triggered_is_a_bit_of_the_mask(start_day):
    """Of a client's mask. The listener stays level-triggered, so that newcomers can be taken one by one."""
    server = start_day("day03", "-e", "0")
    with server.connect() as sock:
        assert server.echoes(sock)
        assert interest_set(server) == {3: 0x19, 4: 0x19, 6: 0x80002019}


def test_a_signal_is_one_more_descriptor(server):
    server.stop()
    assert masks(server, fd=4) == ["IN (signal)"]


# ---- Level and edge

def wake_ups_for_the_same_bytes(server):
    """300 KiB wait in the server's socket before it gets to look at them."""
    sock = server.connect()
    for _ in range(40):
        assert server.echoes(sock, bytes(1 << 20))  # in use, the socket's buffers grow
    server.settle()
    server.pause()
    woken = len(masks(server))
    sent = send_what_fits(sock, bytes(300 << 10))
    assert len(sent) > 128 << 10  # more than two reads
    server.resume()
    assert receive(sock, len(sent)) == sent
    server.settle()
    return len(masks(server)) - woken


def test_edge_triggered_wakes_up_less_often(start_day):
    """The same bytes wait for both. In level-triggered mode a wake-up reads one buffer full of them, in
    edge-triggered mode several."""
    level = wake_ups_for_the_same_bytes(start_day("day03", "-v", "0"))
    edge = wake_ups_for_the_same_bytes(start_day("day03", "-ev", "0"))
    assert edge < level


# ---- What day 2 could not do

def test_raises_its_own_limit(start_day):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    server = start_day("day03", "0", limits={resource.RLIMIT_NOFILE: (256, hard)})
    assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer gives up when the memory does")
def test_no_memory_for_one_more_client(server):
    """The table of clients cannot grow: newcomers are turned away and named, the others are served."""
    first = server.connect()
    assert server.echoes(first)
    server.limit_memory()
    socks = [server.connect(source="127.0.0.%d" % (1 + i // 1000)) for i in range(6000)]
    server.wait_err("^server: no room for 127")
    server.settle()
    served = len([line for line in server.out if line.endswith(" connected")])
    assert served + len(server.errors()) == 1 + len(socks)
    assert len(os.listdir("/proc/%d/fd" % server.pid)) == 6 + served
    assert server.echoes(first)


def test_a_wake_up_costs_the_same_however_many_are_idle(start_day, price_of_idle_clients):
    assert price_of_idle_clients(start_day("day03", "0"), 900) < 1.5
