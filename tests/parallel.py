"""--processes 8: most tests wait most of the time, so several run at a time. When all are collected, processes are
forked, each of which takes the next test as soon as it has finished one. Their reports go to the first process,
which prints them as pytest always does."""

import os
import time
import traceback
from multiprocessing import connection

import pytest


class Parallel:
    def __init__(self, processes):
        self.processes = processes

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        if session.testsfailed or session.config.option.collectonly or len(session.items) < 2:
            return None  # pytest's own loop says what there is to say
        session.config._tmp_path_factory.getbasetemp()  # one folder for all of them
        queue = queue_of(range(len(portions(session.items))))
        working = dict(start_worker(session, queue, number) for number in range(min(self.processes, len(session.items))))
        done = 0
        try:
            while working:
                for reports in connection.wait(list(working)):
                    try:
                        done += pass_on(session.config, reports.recv())
                    except EOFError:
                        os.waitpid(working.pop(reports), 0)
                if session.shouldfail:  # -x, --maxfail: what they have begun is their last
                    empty(queue)
        finally:  # after Ctrl-C, which they get, too
            for pid in working.values():
                os.waitpid(pid, 0)
        if done < len(session.items) and not session.shouldfail:
            session.shouldfail = "a process ended before its tests: %d of %d are done" % (done, len(session.items))
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        return True


def portions(items):
    """What one process does in one go: a test, or all those of a file that have the mark together. These come first,
    since they take long."""
    found = {}
    for item in items:
        found.setdefault(item.path if item.get_closest_marker("together") else item.nodeid, []).append(item)
    return sorted(found.values(), key=len, reverse=True)


def queue_of(numbers):
    """A pipe with these numbers in it, from which each process reads the next. At their end is the end of file."""
    reader, writer = os.pipe()
    os.write(writer, b"".join(number.to_bytes(2, "big") for number in numbers))
    os.close(writer)
    return reader


def empty(queue):
    while os.read(queue, 1 << 16):
        pass


def take(session, queue):
    work = portions(session.items)
    while number := os.read(queue, 2):
        yield from work[int.from_bytes(number, "big")]


def start_worker(session, queue, number):
    """Returns the pipe from which its reports come, and its pid."""
    reports, send = connection.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            reports.close()
            run(session, queue, send, in_no_hurry=number > 0)
            status = 0
        except Exception:  # of no test: of pytest, or of a hook
            send.send(traceback.format_exc())
        finally:
            os._exit(status)  # the rest of pytest is the first process's
    send.close()
    return reports, pid


class Sender:
    """Sends each report to the first process. It takes the place of pytest's terminalreporter, which prints them."""

    def __init__(self, config, send):
        self.config, self.pipe = config, send

    def pytest_runtest_logreport(self, report):
        self.pipe.send(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))


def wait_for_room():
    """Waits while much more wants to run than there are cores: there are tests of what has to be done in a second. Not
    for long, since it may be something else that keeps the machine busy."""
    for _ in range(100):
        with open("/proc/loadavg", encoding="ascii") as file:
            running = int(file.read().split()[3].partition("/")[0])
        if running <= 2 * os.cpu_count():
            break
        time.sleep(0.1)


def run(session, queue, send, in_no_hurry):
    """Runs tests until there is no other. pytest wants to know the next one, and keeps the fixtures that it needs."""
    config = session.config
    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.register(Sender(config, send))
    capture = config.pluginmanager.get_plugin("capturemanager")
    capture.stop_global_capturing()  # which is that of all processes, into one file
    capture.start_global_capturing()
    tests = take(session, queue)
    test = next(tests, None)
    try:
        while test:
            following = next(tests, None)
            if in_no_hurry:
                wait_for_room()
            config.hook.pytest_runtest_protocol(item=test, nextitem=following)
            test = following
    finally:
        config.hook.pytest_sessionfinish(session=session, exitstatus=0)  # ends what is left of fixtures


def pass_on(config, data):
    """Gives pytest a report that a process has sent, or prints an error. Returns whether that was the last of a test."""
    if isinstance(data, str):
        config.get_terminal_writer().line("\n" + data)
        return False
    report = config.hook.pytest_report_from_serializable(config=config, data=data)
    config.hook.pytest_runtest_logreport(report=report)
    if report.when != "teardown":
        return False
    config.hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)
    return True
