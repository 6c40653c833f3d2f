"""Builds the servers, and gives each test a way to start one and be sure of its end."""

import os
import resource
import shutil
import signal
import subprocess

import pytest

from harness import BUILD, ROOT, SANITIZED, Server, free_port, split_command, use_all_descriptors

# What the contract is held to: a name, the program, its options.
SERVERS = {
    "day01": ("day01", []),
    "day02": ("day02", []),
    "day03": ("day03", []),
    "day03-edge": ("day03", ["-e"]),
    "day04": ("day04", []),
    "day04-edge": ("day04", ["-e"]),
    "day05": ("day05", ["-w", "2"]),
    "day05-mutex": ("day05", ["-w", "2", "-m", "mutex"]),
    "day05-pool": ("day05", ["-w", "3", "-m", "pool-signal"]),
}


def pytest_addoption(parser):
    parser.addoption("--server", help="hold this command to the contract; {port} is the port")
    parser.addoption("--part", default="1/1", help="1/2: every second test, 2/2: the others")


def pytest_configure(config):
    config.addinivalue_line("markers", "since(day): the contract promises this from that day on")
    config.addinivalue_line("markers", "until(day): with the several processes of later days it is otherwise")
    config.addinivalue_line("markers", "ours: asks for messages or options that only our servers have")
    # The half of make test that runs in the background was started with SIGINT ignored (sh(1)), and
    # so would be all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    use_all_descriptors()
    # What a test has measured is not to take the place of what the reader has.
    os.environ["MEASURED"] = str(BUILD / "tests" / "measured")


def pytest_sessionstart(session):
    if not session.config.option.server:
        subprocess.run(["make", "-s", "-C", ROOT, "programs"], check=True)


def pytest_generate_tests(metafunc):
    """A test that asks for server_name runs once for each server that promises what it tests."""
    if "server_name" not in metafunc.fixturenames:
        return
    if metafunc.config.option.server:
        names = ["yours"]
    else:
        def mark(name, default):
            found = metafunc.definition.get_closest_marker(name)
            return found.args[0] if found else default

        # Day 5 makes the system calls of day 4 (test_source.py sees to it): once is enough to make
        # them fail.
        last = 4 if "strace" in metafunc.fixturenames else 5
        days = range(mark("since", 1), mark("until", last) + 1)
        names = [name for name in SERVERS if int(name[3:5]) in days]
    metafunc.parametrize("server_name", names)


def pytest_collection_modifyitems(config, items):
    """make check: only what any server can be held to. And one part of the tests, as asked for."""
    kept = items
    if config.option.server:
        kept = [item for item in items
                if "server_name" in item.fixturenames and not item.get_closest_marker("ours")]
    part, parts = map(int, config.option.part.split("/"))
    items[:] = kept[part - 1::parts]


@pytest.fixture
def launch():
    """launch(command, …): a Server that is gone after the test, whatever happens."""
    servers = []

    def start(command, **options):
        servers.append(Server(command, **options))
        return servers[-1]

    yield start
    for server in servers:
        ended = server.process.poll() is not None
        try:
            if not ended and server.ours:
                server.stop()
        finally:
            server.kill()
        text = "\n".join(server.err)
        assert "Sanitizer" not in text and "runtime error" not in text, text
        assert not server.err or not server.ours, "stderr, which no test expected:\n" + text


def program(day, name="server"):
    return str(BUILD / day / name)


@pytest.fixture
def start_day(launch):
    """start_day("day03", "-v", …): a day's server on a free port, ready for clients.
    wrapper: a command that runs it; limits: {resource.RLIMIT_…: value or (soft, hard)}."""

    def start(day, *arguments, wrapper=(), limits=None, **options):
        def prepare():
            for which, value in (limits or {}).items():
                resource.setrlimit(which, value if isinstance(value, tuple) else (value, value))

        command = [*wrapper, program(day), *arguments]
        return launch(command, prepare=prepare, **options).listening()

    return start


@pytest.fixture
def start(server_name, request, start_day, launch):
    """start(…): the server under test, whichever it is."""
    text = request.config.option.server

    def start_ours(*arguments, port=0, **options):
        day, extra = SERVERS[server_name]
        return start_day(day, *extra, *arguments, str(port), **options)

    def start_yours(port=None, limits=None):
        def prepare():
            for which, value in (limits or {}).items():
                resource.setrlimit(which, (value, value))

        port = port or free_port()
        return launch(split_command(text, port), port=port, prepare=prepare).listening()

    return start_yours if text else start_ours


@pytest.fixture
def server(start):
    return start()


@pytest.fixture
def day(server_name):
    """The program behind server_name: day03 for day03-edge."""
    return SERVERS[server_name][0]


@pytest.fixture(scope="session")
def strace():
    """strace("accept4:error=ECONNABORTED:when=1"): a wrapper that makes system calls fail. It detaches
    itself (-D), so that the process that we started is still the server."""
    works = shutil.which("strace") and subprocess.run(
        ["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0
    if not works:
        pytest.skip("strace is missing or may not trace: no system call can be made to fail")

    def wrapper(*faults):
        calls = ",".join(fault.split(":")[0] for fault in faults)
        inject = [part for fault in faults for part in ("-e", "inject=" + fault)]
        return ["strace", "-D", "-q", "-o", os.devnull, "-e", "trace=" + calls,
                "-e", "signal=none", *inject]

    return wrapper


@pytest.fixture(autouse=True)
def no_leak_check_under_strace(request, monkeypatch):
    """LeakSanitizer and strace both want to be the one who traces."""
    if SANITIZED and "strace" in request.fixturenames:
        monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")


@pytest.fixture
def price_of_idle_clients():
    """price_of_idle_clients(server, 900): how many times the CPU for an echo with so many idle clients
    is that without them. One echo after the other, so that each wake-up is for one client alone, and
    all on one core: moving between cores costs more than an echo."""
    cores = os.sched_getaffinity(0)

    def cpu_for_echoes(server, sock):
        server.settle()
        before = server.cpu()
        for _ in range(2000):
            assert server.echoes(sock, b"x")
        server.settle()
        return server.cpu() - before

    def price(server, idle):
        for pid in (0, server.pid):
            os.sched_setaffinity(pid, {min(cores)})
        active = server.connect()
        alone = cpu_for_echoes(server, active)
        crowd = [server.connect() for _ in range(idle)]
        assert server.echoes(crowd[-1])
        ratio = cpu_for_echoes(server, active) / alone
        print("CPU with %d idle clients is %.2f times that without" % (idle, ratio))
        return ratio

    yield price
    os.sched_setaffinity(0, cores)
