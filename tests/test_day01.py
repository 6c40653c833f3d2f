"""Day 1: what it can do, what it cannot do yet, and the client of all days."""

import os
import re
import select
import signal
import socket
import subprocess

import pytest

from harness import MIB, PATIENCE, failure, free_port, name_of, program, receive


@pytest.fixture
def server(start_day):
    return start_day("day01", "-v", "0")


def system_call(server):
    """The name of the system call that it sleeps in (numbers: asm/unistd_64.h)."""
    server.settle()
    with open("/proc/%d/syscall" % server.pid, encoding="ascii") as file:
        number = int(file.read().split()[0])
    return {43: "accept", 45: "recv", 44: "send"}.get(number, number)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_where_it_sleeps(server):
    assert system_call(server) == "accept"
    with server.connect(receive_buffer=4096) as sock:
        assert server.echoes(sock)
        assert system_call(server) == "recv"
        sent = server.fill(sock)
        assert system_call(server) == "send"
        assert receive(sock, len(sent)) == sent
    assert system_call(server) == "accept"


def test_verbose_names_each_wake_up(server):
    with server.connect() as sock:
        assert server.echoes(sock, b"12345")
        name = name_of(sock)
    server.wait_out("left")
    assert server.out[1:] == [
        "woke up: accept gave fd 4: " + name + " connected",
        "woke up: recv gave 5 bytes",
        "woke up: send took 5 of 5 bytes",
        "woke up: recv gave 0 bytes",
        "fd 4: " + name + " left: closed by the client",
    ]


# ---- The limit: one client at a time

def test_the_second_client_waits_until_the_first_has_left(server):
    first = server.connect()
    assert server.echoes(first)
    second = server.connect()  # succeeds: the kernel connects, the backlog keeps
    second.sendall(b"and me?")
    server.settle()
    second.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.recv(1)
    first.close()
    second.settimeout(PATIENCE)
    assert receive(second, 7) == b"and me?"


def test_a_client_that_does_not_read_holds_up_the_next(server):
    deaf = server.connect(receive_buffer=4096)
    sent = server.fill(deaf)
    second = server.connect()
    second.sendall(b"and me?")
    server.settle()
    second.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.recv(1)
    assert receive(deaf, len(sent)) == sent
    deaf.close()
    second.settimeout(PATIENCE)
    assert receive(second, 7) == b"and me?"


# ---- The limit: Ctrl-C ends it as it ends any program

def test_the_end_costs_what_is_on_its_way(server):
    """The kernel closes its sockets, with bytes unread: that is a reset, which destroys what the client has
    not taken. No line says so. (Day 2 says goodbye.)"""
    deaf = server.connect(receive_buffer=4096)
    sent = server.fill(deaf)
    said = len(server.out)
    server.process.send_signal(signal.SIGINT)
    assert server.wait() == -signal.SIGINT
    assert server.out[said:] == []
    got = bytearray()
    with pytest.raises(ConnectionResetError):
        while piece := deaf.recv(MIB):
            got += piece
    assert got == sent[:len(got)] and len(got) < len(sent) // 2


# ---- The client

@pytest.fixture
def run_client():
    def run(*arguments, text=b"", **options):
        return subprocess.run([program("day01", "client"), *map(str, arguments)], input=text,
                              capture_output=True, timeout=PATIENCE, check=False, **options)

    return run


def more_than_the_buffers():
    """A size that the four buffers between a client and a server cannot hold, however far they grow: bytes."""
    with open("/proc/sys/net/ipv4/tcp_rmem", encoding="ascii") as rmem, \
            open("/proc/sys/net/ipv4/tcp_wmem", encoding="ascii") as wmem:
        return 2 * (int(rmem.read().split()[2]) + int(wmem.read().split()[2])) + MIB


@pytest.mark.parametrize("size", [0, 3, pytest.param(more_than_the_buffers(), id="more-than-the-buffers")])
def test_client_prints_what_comes_back_and_ends(server, run_client, size):
    data = os.urandom(size)
    done = run_client(server.port, text=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_client_takes_a_host(start_day, run_client, host):
    try:
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.bind((host, 0))
    except OSError as error:
        pytest.skip("this system has no %s: %s" % (host, error))
    server = start_day("day01", "0", host)
    assert run_client(server.port, host, text=b"hi\n").stdout == b"hi\n"


def test_client_tries_all_addresses(start_day, run_client):
    """localhost may be ::1 as well as 127.0.0.1, and the server listens on only one of them."""
    server = start_day("day01", "0", "127.0.0.1")
    assert run_client(server.port, "localhost", text=b"hi\n").stdout == b"hi\n"


def test_client_without_server(run_client):
    port = free_port()
    done = run_client(port)
    assert done.returncode == 1
    assert re.match("client: connect to 127.0.0.1 port %d" % port + failure("ECONNREFUSED"),
                    done.stderr.decode())


def test_client_says_when_bytes_are_lost(server):
    """The server stops while the client still waits for its user."""
    client = subprocess.Popen([program("day01", "client"), str(server.port)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        client.stdin.write(b"hello")
        client.stdin.flush()
        assert select.select([client.stdout], [], [], PATIENCE)[0]
        assert client.stdout.read(5) == b"hello"
        server.stop()
        assert client.wait(PATIENCE) == 1
        assert client.stderr.read() == b"client: the server closed after 5 of 5 bytes\n"
    finally:
        client.kill()
        client.wait()
        for stream in (client.stdin, client.stdout, client.stderr):
            stream.close()


def test_client_as_a_filter(server):
    """client | head: SIGPIPE ends the client, as it ends every filter, and the client says nothing."""
    client = subprocess.Popen([program("day01", "client"), str(server.port)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, restore_signals=True)
    client.stdout.close()
    client.stdin.write(b"hello")
    client.stdin.close()
    assert client.wait(PATIENCE) == -signal.SIGPIPE
    assert client.stderr.read() == b""
    client.stderr.close()
    server.wait_out(" left")
    server.errors()  # it went with a reset if the bytes were on the way


@pytest.mark.parametrize("arguments, complaint", [
    (["65536"], "client: port 65536: not a number from 0 to 65535"),
    (["80x"], "client: port 80x: not a number from 0 to 65535"),
    (["abc"], "client: port abc: not a number from 0 to 65535"),
    (["8888", "no such host"], "client: host no such host: "),
    (["8888", "127.0.0.1", "more"], "client: argument more: one too many"),
])
def test_client_with_wrong_arguments(run_client, arguments, complaint):
    done = run_client(*arguments)
    assert done.returncode == 2
    what, usage = done.stderr.decode().splitlines()
    assert what.startswith(complaint) and usage == "usage: client [PORT [HOST]]"


# ---- What two steps of the day promise

def test_stopped_in_the_middle_of_send(start_day):
    """When the process is stopped and continued, a send that sleeps returns what it has sent by then; the rest is
    still due."""
    server = start_day("day01", str(free_port()))
    sock = server.connect(receive_buffer=4096)
    sent = server.fill(sock)
    for _ in range(3):
        server.pause()
        server.resume()
        server.settle()
    assert receive(sock, len(sent)) == sent


@pytest.mark.parametrize("port", ["65536", "abc", ""])
def test_a_port_that_is_none(port):
    done = subprocess.run([program("day01"), port], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "server: port %s: not a number from 0 to 65535" % port
