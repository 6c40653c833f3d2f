"""Builds the servers, and gives each test a way to start one and be sure of its end."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "book"))

import steps
from harness import (BUILD, ROOT, SANITIZED, Server, Yours, adopt_orphans, free_port, is_listening, program,
                     split_command, use_all_descriptors, wait_until)
from parallel import Parallel
from promises import PROMISES
from score import Card, day_of, in_words

# The servers that are held to the contract: a name, the program, its options.
SERVERS = {
    "day01": ("day01", []),
    "day02": ("day02", []),
    "day03": ("day03", []),
    "day03-edge": ("day03", ["-e"]),
    "day04": ("day04", []),
    "day04-edge": ("day04", ["-e"]),
    "day05-exclusive": ("day05", ["-w", "2"]),
    "day05-epoll": ("day05", ["-w", "2", "-m", "epoll"]),
    "day05-reuseport": ("day05", ["-w", "2", "-m", "reuseport"]),
}


def pytest_addoption(parser):
    parser.addoption("--server", help="hold this command to the contract; {port} is the port")
    parser.addoption("--day", type=int, default=5, help="with --server: no more than day 1, 2, … promises")
    parser.addoption("--card", action="store_true", help="with --server: a line for each promise, not pytest's output")
    parser.addoption("--step", help="day01/4: only what the server in BUILD promises after that step")
    parser.addoption("--promised-by", type=int, help="of these, only what is new with that step")
    parser.addoption("--processes", type=int, default=1, help="how many tests run at a time")


def pytest_configure(config):
    config.addinivalue_line("markers", "since(day): the contract promises this from that day on")
    config.addinivalue_line("markers", "until(day): later days promise something else")
    config.addinivalue_line("markers", "book: types the sessions of the notes, or tests a step: make test-book")
    config.addinivalue_line("markers", "together: one process runs all tests of the file that have this mark")
    config.addinivalue_line("markers", "ours: asks for messages or options that only our servers have")
    # Started in the background of a shell we would ignore SIGINT (sh(1)), and so would all that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    use_all_descriptors()
    os.environ["PYTHON"] = sys.executable  # for what tests start with make or tests/run: they need not look for one
    # What a test measures must not replace what the reader has measured.
    os.environ["MEASURED"] = str(BUILD / "tests" / "measured")
    if config.option.server:
        adopt_orphans()
        config.option.keyword = re.sub(r"\[\S*\]", "", config.option.keyword)  # test_bytes_come_back[5], in the notes
        if config.option.card:
            config.pluginmanager.register(Card(config))
    if config.option.processes > 1:
        config.pluginmanager.register(Parallel(config.option.processes))


def pytest_sessionstart(session):
    if not session.config.option.server and BUILD.parent == ROOT:  # otherwise it has been built, from its own sources
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

        # Day 5 makes the system calls of day 4 (test_source.py checks that): once is enough to make
        # them fail, if the test does not say otherwise.
        last = 4 if "strace" in metafunc.fixturenames else 5
        days = range(mark("since", 1), mark("until", last) + 1)
        names = [name for name in SERVERS if int(name[3:5]) in days]
        if metafunc.config.option.step:
            names = [name for name in names if name.startswith(metafunc.config.option.step[:5])][:1]
    metafunc.parametrize("server_name", names)


def pytest_collection_modifyitems(config, items):
    """make check: only what any server can be held to. STEP=N: what that step and those before it promise."""
    kept = items
    if config.option.step:
        day, number = config.option.step.split("/")
        only = config.option.promised_by
        promised = {name for step in steps.read()[day][:int(number)] for name in step.promises
                    if only in (None, step.number)}
        kept = [item for item in items if name_in_the_notes(item) in promised or item.originalname in promised]
    if config.option.server:
        promised = {name for promise in PROMISES for name in promise.tests}
        kept = [item for item in items if item.originalname in promised
                and (config.option.card or day_of(item) <= config.option.day)]
    items[:] = kept


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """What has failed, in words, for those who do not want to read a trace."""
    report = (yield).get_result()
    if report.failed and "launch" in item.fixturenames:
        item.failed = True
        report.sections.insert(0, ("In words", in_words(call.excinfo.value, Server.started)))


def name_in_the_notes(item):
    """test_bytes_come_back[5]: without the name of the server."""
    parts = re.findall(r"[^][]+", item.name)
    rest = "-".join(part for part in re.split("-(?!edge|exclusive|epoll|reuseport)", parts[-1])
                    if part not in SERVERS) if len(parts) > 1 else ""
    return item.originalname + ("[%s]" % rest if rest else "")


@pytest.fixture
def launch(request):
    """launch(command, …): a Server that is gone after the test, whatever happens."""
    servers = Server.started = []

    def start(command, kind=Server, **options):
        servers.append(kind(command, **options))
        return servers[-1]

    yield start
    failed = hasattr(request.node, "failed")
    for server in servers:
        ended = server.process.poll() is not None
        try:
            # Early steps have no end of their own, and a server that a test has found broken need not end as it should.
            if not ended and server.ours and not request.config.option.step and not failed:
                server.resume()
                server.let_clients_end()
                server.stop()
        finally:
            server.kill()
        text = "\n".join(server.err)
        assert "Sanitizer" not in text and "runtime error" not in text, text
        assert not server.err or not server.ours or failed, "stderr, which no test expected:\n" + text


@pytest.fixture
def start_day(launch, request):
    """start_day("day03", "-v", …): a day's server on a free port, ready for clients.
    wrapper: a command that runs it; limits: {resource.RLIMIT_…: value or (soft, hard)}; prepare: is
    called in the new process before it becomes the server."""

    def start(day, *arguments, wrapper=(), limits=None, prepare=None, **options):
        def prepare_all():
            for which, value in (limits or {}).items():
                resource.setrlimit(which, value if isinstance(value, tuple) else (value, value))
            if prepare:
                prepare()

        command = [*wrapper, program(day), *arguments]
        change = prepare_all if limits or prepare else None  # without it, subprocess need not copy our memory: vfork
        server = launch(command, prepare=change, **options).listening()
        if request.config.option.step:  # day 5 says so before it is true, until step 5
            wait_until(lambda: is_listening(server.port), "the listener")
        return server

    return start


@pytest.fixture
def start(server_name, request, start_day, launch):
    """start(…): the server under test, whichever it is. one_process: day 5 gets one worker,
    because what is counted belongs to one process."""
    text = request.config.option.server

    def start_ours(*arguments, port=0, host=None, one_process=False, **options):
        day, extra = SERVERS[server_name]
        if request.config.option.step:
            port, extra = port or free_port(), []  # the first steps know neither port 0 nor options
        one = ["-w", "1"] if one_process and "-w" in extra else []
        where = [str(port)] if host is None else [str(port), host]
        return start_day(day, *extra, *one, *arguments, *where, **options)

    def start_yours(*_, port=None, limits=None, prepare=None, one_process=False):
        def prepare_all():
            for which, value in (limits or {}).items():
                resource.setrlimit(which, (value, value))
            if prepare:
                prepare()

        port = port or free_port()
        return launch(split_command(text, port), kind=Yours, port=port, prepare=prepare_all).listening()

    return start_yours if text else start_ours


@pytest.fixture
def server(start):
    return start()


@pytest.fixture
def talking(start):
    """The same with a line for each wake-up, and for each client that comes or goes."""
    return start("-v")


@pytest.fixture
def day(server_name):
    """The program behind server_name: day03 for day03-edge."""
    return SERVERS[server_name][0]


@pytest.fixture(scope="session")
def strace():
    """strace("accept4:error=ECONNABORTED:when=1"): a wrapper that makes system calls fail. It detaches
    itself (-D), so that the process that we started is still the server, and follows the workers."""
    works = shutil.which("strace") and subprocess.run(
        ["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0
    if not works:
        pytest.skip("strace is missing or may not trace: no system call can be made to fail")

    def wrapper(*faults):
        calls = ",".join(fault.split(":")[0] for fault in faults)
        inject = [part for fault in faults for part in ("-e", "inject=" + fault)]
        return ["strace", "-D", "-f", "-q", "-o", os.devnull, "-e", "trace=" + calls,
                "-e", "signal=none", *inject]

    return wrapper


@pytest.fixture(autouse=True)
def no_leak_check_under_strace(request, monkeypatch):
    """LeakSanitizer has to trace the process itself, and cannot while strace does."""
    if SANITIZED and "strace" in request.fixturenames:
        monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")


@pytest.fixture
def price_of_idle_clients():
    """price_of_idle_clients(server, 900): the CPU for an echo with so many idle clients, as a
    multiple of that without them. One echo after the other, so that each wake-up is for one client alone, and
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
