"""Starts a server as a reader would, watches it from outside, and talks to it."""

import contextlib
import ctypes
import errno
import functools
import os
import random
import re
import resource
import select
import shlex
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZED = "SAN" in os.environ
BUILD = ROOT / os.environ.get("BUILD", "build-san" if SANITIZED else "build")

# Seconds until something that must happen counts as not happening.
PATIENCE = float(os.environ.get("PATIENCE", 30))
START_WITHIN = 4 * PATIENCE  # for a server of the reader's: it may have to be compiled, or the machine is busy
STOP_WITHIN = 10 if SANITIZED else 1  # seconds; a sanitizer looks for leaks before it exits

MIB = 1 << 20
NO_END = 64 * MIB  # more than the buffers of a connection can hold: if all of it goes, the server itself has taken it


def program(day, name="server"):
    return str(BUILD / day / name)


class Lines(list):
    """The complete lines that had been written to a file at the last look."""

    def __init__(self):
        super().__init__()
        self.file = tempfile.TemporaryFile()
        self._read, self._rest = 0, b""

    def look(self):
        data = os.pread(self.file.fileno(), 1 << 24, self._read)
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self += [line.decode() for line in lines]
        return self


class Server:
    """A running server. The test has to take what the server writes to stderr (errors), or stop() fails,
    because it was not expected."""

    started = []  # by the test that runs

    def __init__(self, command, port=None, env=None, prepare=None, **popen):
        self.ours = port is None
        self.asked_to_end = False
        self._waits = 0
        self.command = command
        self.handles_signals = program("day01") not in map(str, command)
        self._out, self._err = Lines(), Lines()
        self.process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, preexec_fn=prepare,
            **{"stdin": subprocess.DEVNULL, "stdout": self._out.file, "stderr": self._err.file, **popen})
        self.pid = self.process.pid
        self.address = "127.0.0.1"
        self.port = port
        self._clients = []  # kept, so that none is collected as garbage, and closed, before the server ends

    @property
    def out(self):
        """The lines of stdout until now."""
        return self._out.look()

    @property
    def err(self):
        """The lines of stderr that no test has taken yet."""
        return self._err.look()

    def listening(self):
        """Waits until the server accepts, and learns its port."""
        if self.ours:
            line = self.wait_out(r"^listening on \[?([\d.:]+?)\]?:(\d+)$")
            self.address, self.port = line[1], int(line[2])
        else:
            wait_until(self._answers, "a server on port %d" % self.port)
        return self

    def _answers(self):
        assert self.process.poll() is None, "the server ended: " + "\n".join(self.err)
        with socket.socket() as probe:
            return probe.connect_ex((self.address, self.port)) == 0

    def _family(self):
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    # ---- What it says

    def _wait(self, lines, pattern, count):
        found, looked, end = [], 0, time.monotonic() + PATIENCE
        while True:
            ended = self.process.poll() is not None  # before the look, so that no last line is missed
            lines.look()
            found += [m for m in (re.search(pattern, line) for line in lines[looked:]) if m]
            looked = len(lines)
            if len(found) >= count:
                return found[count - 1]
            assert not ended and time.monotonic() < end, (
                "the server did not say \"%s\"%s; out: %s; err: %s"
                % (re.sub(r"[\\^$()]", "", pattern.replace(r"\d+", "N")), " %d times" % count if count > 1 else "",
                   self.out[-20:], self.err[-20:]))
            time.sleep(0.001)

    def wait_out(self, pattern, count=1):
        """Waits for the count-th line on stdout that matches; returns the match."""
        return self._wait(self._out, pattern, count)

    def wait_err(self, pattern, count=1):
        return self._wait(self._err, pattern, count)

    def errors(self, at_least=0):
        """Takes the lines of stderr, which the caller expected. Waits until there are at_least so many."""
        if at_least:
            self.wait_err("", at_least)
        lines = list(self.err)
        self._err.clear()
        return lines

    # ---- What the kernel says of it, and of its children if it has any

    def processes(self):
        return list(self.family())

    def family(self):
        return family(self.pid)

    def _tasks(self, name):
        """What /proc says in the file of that name, for each thread that is still there."""
        for pid, threads in self.family().items():
            for thread in threads:
                with contextlib.suppress(OSError):
                    yield read_proc("%d/task/%s/%s" % (pid, thread, name))

    def cpu(self):
        """Seconds of CPU that it has used."""
        return sum(int(text.split()[0]) for text in self._tasks("schedstat")) / 1e9

    def clock(self):
        """Seconds, of which only differences mean something. Those in which its threads, we or a tracer were ready to
        run, but had to wait for a core, do not count."""
        found = [*self._tasks("schedstat"), read_proc("thread-self/schedstat")]
        with contextlib.suppress(OSError):  # it has ended, or there is no tracer, which is number 0
            found.append(read_proc(re.search(r"TracerPid:\s+(\d+)", status_of(self.pid))[1] + "/schedstat"))
        waits = sum(int(text.split()[1]) for text in found) / 1e9
        self._waits = max(self._waits, waits)  # a process that has ended has waited all the same
        return time.monotonic() - self._waits

    def cpu_share(self, seconds=0.2):
        """CPU that it uses while we do nothing, 1.0 for one core. Times in which it had to wait for a core do not
        count: on a busy machine a server that spins uses little, too."""
        def waited():
            return sum(int(text.split()[1]) for text in self._tasks("schedstat")) / 1e9

        def waits_now():  # schedstat has a wait only when it is over
            return not self.switches()[1] and self.cpu() - used < took / 2

        used, waits, start, took = self.cpu(), waited(), time.monotonic(), 0
        while (took < seconds or waits_now()) and time.monotonic() - start < PATIENCE:
            time.sleep(max(seconds - took, 0.01))
            took = time.monotonic() - start - (waited() - waits)
        return (self.cpu() - used) / max(took, 0.01)

    def memory(self):
        """Bytes of memory of its own (no file, nothing shared)."""
        total = 0
        for pid in self.processes():
            total += int(re.search(r"RssAnon:\s+(\d+)", status_of(pid))[1]) * 1024
        return total

    def switches(self):
        """How often it went to sleep, and whether it sleeps now."""
        count, asleep = 0, True
        for status in self._tasks("status"):
            asleep = asleep and "State:\tS" in status
            count += int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", status)[1])
        return count, asleep

    def settle(self):
        """Waits until it has done all there is to do."""
        before, start, at_rest = self.cpu(), time.monotonic(), self.at_rest()
        while not at_rest():
            took = time.monotonic() - start
            assert took < PATIENCE, "with nothing to do the server did not sleep, and took %.0f %% of a core" % (
                100 * (self.cpu() - before) / took)
            time.sleep(0.002)

    def at_rest(self):
        """A condition to wait for: asleep, and not once awake in three looks."""
        calm, last = 0, None

        def calm_now():
            nonlocal calm, last
            assert not self.ended(), "the server ended: " + "\n".join(self.err)
            now = self.switches()
            calm = calm + 1 if now[1] and now == last else 0
            last = now
            return calm >= 3

        return calm_now

    # ---- Its end

    def ended(self):
        return self.process.poll() is not None

    def state(self):
        """In words, how it has ended; nothing if it has not, or was asked to."""
        return "the server has ended, " + self.how() if self.ended() and not self.asked_to_end else ""

    def how(self):
        status = self.process.poll()
        return "killed by " + signal.Signals(-status).name if status < 0 else "with exit status %d" % status

    def send_signal(self, sig):
        self.asked_to_end = True
        self.process.send_signal(sig)

    def wait(self):
        """Waits for its end; returns the exit status."""
        return self.process.wait(PATIENCE)

    def stop(self, sig=signal.SIGTERM, within=STOP_WITHIN):
        """Asks it to end and checks that it does so as promised. Returns the line of totals:
        (clients, bytes echoed, bytes undelivered). Day 1 has neither a handler nor such a line."""
        self.resume()  # if a test failed after pause
        self.send_signal(sig)
        took = self.time_to_end()
        status = self.wait()
        report = "\n".join(self.err)
        ends = [0] if self.ours and self.handles_signals else [-sig, 0]
        assert status in ends, "%s was sent, and the server ended %s: %s" % (sig.name, self.how(), report)
        assert took < within, "stopping took %.1f s" % took
        assert not self.err, "stderr, which no test expected:\n" + report
        return self.totals()

    def time_to_end(self):
        """Seconds until it has ended, without those that the machine was late: it wakes us from short sleeps no
        sooner than it wakes the server, and it is not the server's fault if we wait too long."""
        start, late, nap = time.monotonic(), 0, 0.005
        while not self.ended() and time.monotonic() - start < PATIENCE:
            before = time.monotonic()
            time.sleep(nap)
            late += time.monotonic() - before - nap
        return time.monotonic() - start - late

    def totals(self):
        if not self.ours or not self.handles_signals:
            return None
        line = self.wait_out(r"^served (\d+) clients?: (\d+) bytes echoed, (\d+) undelivered$")
        return tuple(map(int, line.groups()))

    def let_clients_end(self):
        """Shuts down the sending side of all clients: a server that says goodbye waits for that."""
        for sock in self._clients:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # closed, or reset

    def kill(self):
        if self.process.poll() is None:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):  # a worker ends with its parent
                    os.kill(pid, signal.SIGKILL)
        self.wait()
        for sock in self._clients:
            sock.close()

    # ---- Clients

    def connect(self, receive_buffer=None, segment=None, source=None):
        """A connected socket whose calls give up after PATIENCE. receive_buffer: bytes. segment: bytes
        that fit into one TCP segment; the server's kernel makes its send buffer smaller, too. source:
        the client's own address; with thousands of connections from one, the kernel takes long to find a free port."""
        sock = socket.socket(self._family())
        if segment:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        if source:
            sock.bind((source, 0))
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect((self.address, self.port))
        self._clients.append(sock)
        return sock

    def echoes(self, sock, data=b"hello\n"):
        """Says something and waits for it to come back. Returns True."""
        sock.sendall(data)
        return receive_back(sock, data)

    def hold(self, sock):
        """Sends just enough for the server to have to hold some of it: it stops reading, but its kernel
        still has room (for the end of the connection, too). Returns what was sent."""
        sent = bytearray()
        while row_of(sock, server_side=True)[2] == 0 and len(sent) < NO_END:
            sent += send_what_fits(sock, os.urandom(1 << 14 if len(sent) < MIB else MIB))
            self.settle()
        return bytes(sent)

    def server_end(self, sock):
        """A duplicate of the server's own socket for this client: pidfd_getfd(2)."""
        call = ctypes.CDLL(None, use_errno=True).syscall
        for pid in self.processes():
            pidfd = os.pidfd_open(pid)
            try:
                for number in os.listdir("/proc/%d/fd" % pid):
                    if not os.readlink("/proc/%d/fd/%s" % (pid, number)).startswith("socket:"):
                        continue
                    fd = call(438, pidfd, int(number), 0)
                    assert fd != -1, "pidfd_getfd: " + os.strerror(ctypes.get_errno())
                    with socket.socket(fileno=fd) as end:
                        try:
                            host, port = end.getpeername()[:2]
                            if (host.removeprefix("::ffff:"), port) == sock.getsockname()[:2]:  # IPv4 on an IPv6 socket
                                return end.dup()
                        except (OSError, ValueError):
                            pass  # a listener, or not of TCP
            finally:
                os.close(pidfd)
        raise AssertionError("no process of the server has this client")

    def pause(self):
        """Sends SIGSTOP, and waits until all have stopped. resume() lets them go on."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
                os.kill(pid, signal.SIGSTOP)
                wait_until(lambda pid=pid: re.search(r"State:\t[TZ]", status_of(pid)), "the server to stop")

    def resume(self):
        """Only those that have stopped: at the end of a process LeakSanitizer hangs if SIGCONT comes."""
        for pid in self.processes():
            try:
                if "State:\tT" in status_of(pid):
                    os.kill(pid, signal.SIGCONT)
            except OSError:
                pass  # it has just ended

    def limit_descriptors_to_those_in_use(self):
        """As if the system had run out of them. Returns a function that lifts the limit again."""
        limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in self.processes()}
        for pid, limit in limits.items():
            used = set(map(int, os.listdir("/proc/%d/fd" % pid)))
            free = next(fd for fd in range(len(used) + 1) if fd not in used)  # the next that it would get
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limit[1]))

        def lift():
            for pid, limit in limits.items():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)

        return lift

    def limit_memory(self):
        """Allows it no more than it has, which is all that it needs once its last worker waits for clients."""
        self.settle()
        for pid in self.processes():
            resource.prlimit(pid, resource.RLIMIT_DATA, (4096, 4096))

    def fill(self, sock):
        """Sends until no buffer takes any more, or NO_END bytes, and reads nothing. Returns what was sent."""
        sent = bytearray()
        sock.setblocking(False)
        piece = os.urandom(1 << 16)
        stuck = 0
        while stuck < 2 and len(sent) < NO_END:
            try:
                n = sock.send(piece)
                sent += piece[:n]
                stuck = 0
            except BlockingIOError:
                self.settle()
                stuck += 1
        sock.settimeout(PATIENCE)
        return bytes(sent)


def family(pid):
    """{pid: the numbers of its threads}, of a process and all that descend from it, except zombies."""
    found, queue = {}, [pid]
    while queue:
        pid = queue.pop()
        with contextlib.suppress(OSError):  # it has just ended
            threads = os.listdir("/proc/%d/task" % pid)
            for thread in threads:
                with contextlib.suppress(OSError):  # only this thread has
                    queue += map(int, read_proc("%d/task/%s/children" % (pid, thread)).split())
            if "State:\tZ" not in status_of(pid):
                found[pid] = threads
    return found


def read_proc(name):
    """A file in /proc. Tests look at thousands of them, and open() and pathlib take three times as long."""
    file, data = os.open("/proc/" + name, os.O_RDONLY), b""
    try:
        while part := os.read(file, 1 << 16):
            data += part
    finally:
        os.close(file)
    return data.decode()


def status_of(pid):
    return read_proc("%d/status" % pid)


def wait_until(condition, what, patience=PATIENCE):
    end, nap = time.monotonic() + patience, 0.002
    while not condition():
        assert time.monotonic() < end, "waited %g s in vain for %s" % (patience, what)
        time.sleep(nap)
        nap = min(1.05 * nap, 0.05)  # what takes long may take a twentieth more


def receive(sock, length):
    """Exactly so many bytes, or fewer if the connection ends before that."""
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(min(length - len(data), 1 << 18))
        if not piece:
            break
        data += piece
    return bytes(data)


def receive_all(sock):
    """All bytes until end of file."""
    return receive(sock, 1 << 40)


def receive_back(sock, data):
    """Receives what was sent before, and says in words if something else came. Returns True."""
    back, then = bytearray(), ""
    try:
        while len(back) < len(data) and not then:
            piece = sock.recv(min(len(data) - len(back), 1 << 18))
            back += piece
            then = "" if piece else "end of file"
    except TimeoutError:
        then = "nothing for %g s" % sock.gettimeout()
    return came_back(data, back, then)


def exchange(sock, data, piece=1 << 18, half_close=False):
    """Sends data, reading all the while, and closes that direction when all is back; half_close: as soon as all
    is sent. Returns what came back until end of file, which only half_close insists on."""
    back, view, closed, poll = bytearray(), memoryview(data), False, select.poll()
    sock.setblocking(False)
    poll.register(sock, select.POLLIN | select.POLLOUT)
    while True:
        if not closed and not view and (half_close or len(back) >= len(data)):
            sock.shutdown(socket.SHUT_WR)
            closed = True
        enough = closed and not half_close
        events = poll.poll(200 if enough else PATIENCE * 1000)
        if enough and not events:
            return bytes(back)
        assert events, difference(data, back, "nothing for %g s" % PATIENCE) + (
            ", no end of file" if len(back) >= len(data) else "")
        if events[0][1] & select.POLLOUT and view:
            view = view[sock.send(view[:piece]):]
            if not view:
                poll.modify(sock, select.POLLIN)
        if events[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR):
            try:
                got = sock.recv(1 << 18)
            except ConnectionResetError:
                if not enough:
                    raise
                got = b""
            if not got:
                return bytes(back)
            back += got


def came_back(sent, back, then=""):
    """Checks that what came back is what was sent. Returns True, or fails and says in words what came instead."""
    if back != sent:
        raise AssertionError(difference(sent, back, then))
    return True


def difference(sent, back, then):
    """In words: sent 5 bytes, got 65,536 back."""
    def text(data):
        printable = len(data) <= 20 and re.fullmatch(rb"[\n -~]+", data)
        return ascii(data.decode()) if printable else "{:,} byte{}".format(len(data), "" if len(data) == 1 else "s")

    if not back:
        return "sent %s, got %s" % (text(sent), then or "nothing")
    told = "sent %s, got %s back" % (text(sent), text(back))
    wrong = next((i for i in range(0, min(len(sent), len(back)), 4096) if sent[i:i + 4096] != back[i:i + 4096]), None)
    if wrong is not None and len(sent) > 20:
        both = zip(sent[wrong:wrong + 4096], back[wrong:wrong + 4096])
        same = next((i for i, (one, other) in enumerate(both) if one != other), None)
        told += "" if same is None else ", not the same from byte {:,} on".format(wrong + same + 1)
    return told + (then and ", then " + then)


def reset(sock):
    """Closes with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def name_of(sock):
    """A client's address, as the server prints it."""
    host, port = sock.getsockname()[:2]
    return ("[%s]:%d" if ":" in host else "%s:%d") % (host, port)


def row_of(sock, server_side):
    """What the kernel says of one end of a connection: (state, tx_queue, rx_queue). tx_queue: bytes that
    the other kernel has not acknowledged; rx_queue: that the program has not read."""
    answer = diagnosis(sock, server_side)
    rx_queue, tx_queue = struct.unpack_from("=II", answer, 4 + 48 + 4)
    return "%02X" % answer[1], tx_queue, rx_queue


def has_keepalive(sock):
    """Whether the server's end has a keepalive timer, as ss -o shows it. (While bytes are on their way, another timer
    runs instead.)"""
    timer = None

    def at_rest():
        nonlocal timer
        timer = diagnosis(sock, server_side=True)[2]
        return timer in (0, 2)

    wait_until(at_rest, "the bytes to be acknowledged")
    return timer == 2


def diagnosis(sock, server_side):
    """A struct inet_diag_msg: what a row of /proc/net/tcp says, but found at once among thousands: sock_diag(7)."""
    ends = [sock.getpeername(), sock.getsockname()]
    (source, sport), (target, dport) = ends if server_side else reversed(ends)
    which = struct.pack(">HH4s12x4s12xIII", sport, dport, socket.inet_aton(source), socket.inet_aton(target),
                        0, 0xffffffff, 0xffffffff)
    request = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0xffffffff) + which
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as diag:  # NETLINK_SOCK_DIAG
        diag.send(struct.pack("=IHHII", 16 + len(request), 20, 1, 0, 0) + request)  # SOCK_DIAG_BY_FAMILY
        answer = diag.recv(1 << 16)
    assert answer[4] == 20, "no such connection: %s" % ends
    return answer[16:]


def send_what_fits(sock, data):
    """Sends as much as the kernels take while the server does not look, and waits until it has
    arrived or there is no more room. Returns what was sent."""
    sent, last, calm = 0, None, 0
    sock.setblocking(False)

    def at_rest():
        nonlocal sent, last, calm
        try:
            sent += sock.send(data[sent:])
        except BlockingIOError:
            pass
        now = sent, row_of(sock, server_side=False)[1], row_of(sock, server_side=True)[2]
        calm = calm + 1 if now == last else 0
        last = now
        return (sent == len(data) and now[1] == 0) or calm == 10

    wait_until(at_rest, "the bytes to arrive")
    sock.settimeout(PATIENCE)
    return data[:sent]


@functools.cache
def musl():
    """Whether the servers were built with musl: its texts of errors are its own, and it does not know the
    names of errno."""
    return b"ld-musl" in next(BUILD.glob("day*/server")).read_bytes()


def strerror(name):
    """A pattern for the text of an errno."""
    return "[^][]+" if musl() else re.escape(os.strerror(getattr(errno, name)))


def failure(name):
    """A pattern for the end of a line from die or complain: the text and the name of an errno."""
    return ": " + strerror(name) + ("$" if musl() else r" \[%s\]$" % name)


def free_port(ports=range(10_000, 32_000)):
    """A port that is free, and that the kernel does not choose by itself: one of those (from 32768 on,
    ip_local_port_range) may be taken before our server can have it."""
    while True:
        port = random.choice(ports)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def is_listening(port):
    """Whether there is a listener on that port, without connecting to it: {its inode, as in /proc/PID/fd}."""
    row = r"^ *\d+: \w+:%04X \w+:0000 0A (?:\S+ +){5}(\d+)" % port
    return {number for path in ("/proc/net/tcp", "/proc/net/tcp6")
            for number in re.findall(row, Path(path).read_text(), re.M)}


def use_all_descriptors():
    """Thousands of connections need them; the usual limit is 1024."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def running_in_session(sid):
    """The names of the programs that run in a session: of a process that has one of its own (start_new_session),
    and of all that it has started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            if os.getsid(int(pid)) == sid and "State:\tZ" not in status_of(int(pid)):
                found.append(read_proc(pid + "/comm").strip())
    return found


def marked(name):
    """An environment by which still_running(name) recognizes a process and all that it starts."""
    return {**os.environ, "STARTED_BY_TEST": "%s-%d" % (name, os.getpid())}


def still_running(name):
    """The names of the programs that run with that mark."""
    mark, found = ("STARTED_BY_TEST=%s-%d" % (name, os.getpid())).encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append((path / "comm").read_text().strip())
        except OSError:
            pass  # it has ended, or is not ours
    return found


class Yours(Server):
    """A server of the reader's, in any language: all that we know of it is its port, and what /proc says of
    its processes. These are all our descendants, since orphans are given to us (adopt_orphans)."""

    def __init__(self, command, port, prepare=None):
        reader, writer = os.pipe()
        try:
            super().__init__(command, port=port, prepare=prepare, start_new_session=True, stdout=writer, stderr=writer)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self.tail = b""
        threading.Thread(target=self._listen_to, args=(reader,), daemon=True).start()

    def _listen_to(self, reader):
        """It may print what it likes, and as much as it likes; we keep the end."""
        with os.fdopen(reader, "rb", 0) as said:
            while data := said.read(1 << 16):
                self.tail = (self.tail + data)[-2000:]

    def last_words(self):
        time.sleep(0.05)  # they may be on their way
        lines = re.sub(r"[^\n -~]", "?", self.tail.decode(errors="replace")).strip().split("\n")
        errors = [line for line in lines if re.match(r"(?!\s).*(Error|Exception|panic)", line)]  # a trace may follow
        return "; it said: " + (errors or lines)[-1][:150] if lines[-1] else ""

    def has_the_listener(self):
        """Whether one of its processes has the listener of the port. We look for a second at most, because the first
        processes of a daemon end while we look."""
        listeners, end = {"socket:[%s]" % number for number in is_listening(self.port)}, time.monotonic() + 1
        while time.monotonic() < end:
            for pid in self.processes():
                with contextlib.suppress(OSError):
                    if any(os.readlink(fd) in listeners for fd in Path("/proc/%d/fd" % pid).iterdir()):
                        return True
        return False

    def state(self):
        state = super().state()
        return state and state + self.last_words()

    def listening(self):
        def listens():
            assert not self.ended(), "the server ended before it listened on port %d, %s" % (self.port, self.how())
            return is_listening(self.port)

        try:
            wait_until(listens, "a server that listens on port %d" % self.port, START_WITHIN)
        except AssertionError as error:
            raise AssertionError(str(error) + self.last_words()) from None
        return self

    def settle(self):
        """For a moment at most: it may have something to do all the time, with good reason or without."""
        at_rest, end = self.at_rest(), time.monotonic() + 0.3
        while not at_rest() and time.monotonic() < end:
            time.sleep(0.002)

    def family(self):
        return {pid: threads for pid, threads in family(os.getpid()).items() if pid not in {os.getpid(), *HELPERS}}

    def ended(self):
        """Whether the last of its processes has; the first may have been only a shell, or the parent of a daemon. We
        look twice, because an orphan may have come to us during the first look."""
        self.process.poll()
        return not self.processes() and not self.processes()

    def send_signal(self, sig):
        """To all of its processes, as a terminal does, and systemd."""
        self.asked_to_end = True
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, sig)

    def stop(self, sig=signal.SIGTERM, within=STOP_WITHIN):
        self.resume()
        self.send_signal(sig)
        took = self.time_to_end()
        if not self.ended():
            self.kill()
            raise AssertionError("%s was sent, and %.0f s later the server still ran" % (sig.name, took))
        assert took < within, "%s was sent, and the server ended %.1f s later" % (sig.name, took)

    def kill(self):
        """Until we have no child left, whatever they do: orphans become our children."""
        end = time.monotonic() + PATIENCE
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < end and not (HELPERS and self.ended()):
                for pid in self.processes():
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                self.process.poll()
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                time.sleep(0.001)
        for sock in self._clients:
            sock.close()


HELPERS = set()  # processes that a test has started besides the server


def adopt_orphans():
    """Whatever descends from us, and loses its parent, becomes our child: PR_SET_CHILD_SUBREAPER, prctl(2)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def split_command(text, port):
    return shlex.split(text.replace("{port}", str(port)))
