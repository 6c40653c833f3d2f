"""The commands that measure, and what the notes say was measured."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from statistics import median

import pytest

import balance
import bench
import figures
import kernels
import measuring
import modes
import scale
from harness import MIB, PATIENCE, ROOT, receive, running_in_session, wait_until
from test_herd import WAYS, WHOLE_HERD
from test_source import code

FOLDER = ROOT / "tests" / "measured"
NOTES = (ROOT / "NOTES.md").read_text()
DATA = {name: figures.load(FOLDER, name) for name in figures.COMMANDS}


# ---- The notes say what is in the data

def test_the_data_come_from_whole_runs():
    """Not from make bench QUICK=1, nor from a run that left a server out."""
    assert {name: data["command"] for name, data in DATA.items()} == figures.COMMANDS
    assert list(DATA["bench"]["figures"]["cpu"]) == ["barest", *bench.DAYS, *bench.LIBRARIES, bench.URING]
    assert all(list(rows) == bench.COMPARED and all(row[what] for row in rows.values() for what in row)
               for rows in DATA["bench"]["in_flight"].values())
    assert list(DATA["modes"]["modes"]) == modes.MODES and len(DATA["modes"]["migrated"]) == modes.ROUNDS
    assert [list(map(int, rows)) for rows in DATA["modes"]["herds"].values()] == [modes.HERDS] * len(modes.WAYS)
    assert list(DATA["kernels"]["kernels"]) == [*kernels.RELEASES, kernels.HERE]


@pytest.mark.parametrize("name, number", [(name, number) for name, (_, tables) in figures.TABLES.items()
                                          for number in range(len(tables))])
def test_tables_are_those_of_the_data(name, number):
    """Each stands below a line that names the command and the machine."""
    needed, tables = figures.TABLES[name]
    data = [DATA[one] for one in needed]
    table = tables[number](*data)
    assert table in NOTES, "NOTES.md should have this table:\n" + table
    above = NOTES[:NOTES.index(table)].rstrip().rsplit("\n", 1)[1]
    assert above.startswith("Measured with ")
    for one in data:
        assert "`%s`" % one["command"] in above and one["machine"] in above


@pytest.mark.parametrize("name", figures.DRAW)
def test_figures_are_drawn_from_the_data(name):
    assert "](tests/measured/%s.svg)" % name in NOTES
    assert figures.checksum(FOLDER, *figures.TABLES[name][0]) in (FOLDER / (name + ".svg")).read_text()


def middle(what, name):
    return median(DATA["bench"]["figures"][what][name])


def price(name, idle, what="cpu"):
    rows = DATA["scale"]["figures"][name]
    return median(rows[idle][what]) / median(rows["0"][what])


def best(what, key):
    return key(bench.LIBRARIES, key=lambda name: middle(what, name))


KERNELS = figures.by_version(DATA["kernels"])


def test_the_notes_are_right_about_other_kernels():
    """What they say in words, and not in figures."""
    for kernel in KERNELS:
        woken, returned = kernel["ways"]["woken"], kernel["nap"]["returned"]
        assert list(woken) == list(returned) == WAYS
        for way in WAYS:
            least, most = (9, 15) if way in WHOLE_HERD else (1.8, 3.2) if way == "shared" else (0.8, 1.5)
            assert least <= woken[way] <= most
            assert round(returned[way]) == (10 if way in WHOLE_HERD or way == "shared" else 1)
    same, differ = kernels.compare(KERNELS)
    assert {group for group, _ in same} >= {"mask", "signal", "order"}
    assert {group for group, _ in differ} == {"queue", "wchan"}
    assert same["order", "accept"] == "1 2 3 1 2 3"
    assert (same["order", "exclusive"], same["order", "shared-et"]) == ("1 1 1 1 1 1", "3 3 3 3 3 3")
    for (group, _), (oldest, *others) in differ.items():
        assert oldest == ("0" if group == "wchan" else "some are reset") and oldest not in others


def each(load, what):
    """In each mode, the median of a figure of make modes."""
    return [median(DATA["modes"]["modes"][mode][load][what]) for mode in modes.MODES]


def times(these, those):
    """The median of what each round says: what disturbs a round disturbs all that takes turns in it."""
    return median(one / other for one, other in zip(these, those))


def times_exclusive(load, mode):
    rows = DATA["modes"]["modes"]
    return times(rows[mode][load]["cpu"], rows["exclusive"][load]["cpu"])


def herd(workers, what):
    """In the laboratory: that of way epoll, times that of exclusive."""
    epoll, exclusive = (DATA["modes"]["herds"][way][str(workers)][what] for way in modes.WAYS)
    return times(epoll, exclusive)


def even(load):
    return [median(figures.busiest(DATA["modes"], mode, load)) for mode in modes.MODES]


def uneven(load):
    return [max(figures.busiest(DATA["modes"], mode, load)) for mode in modes.MODES]


def quoted():
    """The sentences of the notes that contain figures, made from the data."""
    yield ("Beside a thousand idle clients an echo costs `select` %.0f times the CPU, and takes %.0f times as "
           "long." % (price("day02", "1000"), price("day02", "1000", "median")))
    yield ("On day 3 an echo beside 10,000 idle clients costs %.2f times what it costs beside none, on day 4 "
           "%.2f times, and on day 5, beside 50,000 over four workers, %.2f times."
           % (price("day03", "10000"), price("day04", "10000"), price("day05", "50000")))
    ratio = {name: figures.ratio(DATA["bench"]["figures"]["cpu"], name)
             for name in ("day03", "day04", *bench.LIBRARIES)}
    yield ("An echo costs %.2f times as much as in the barest loop on day 3, and %.2f times on day 4; with libev "
           "it is %.2f times, with libuv %.2f, with libevent %.2f." % tuple(ratio.values()))
    yield ("An idle client costs %.0f bytes on day 3 and %.0f on day 4, and no buffer."
           % (middle("memory", "day03"), middle("memory", "day04")))
    cheap = best("cpu-connection", min)
    yield ("A connection costs %.1f us of CPU on day 3, and %.1f with the cheapest of the libraries, %s."
           % (middle("cpu-connection", "day03"), middle("cpu-connection", cheap), cheap))
    fast = best("stream", max)
    yield ("The stream comes to %.2f times that of the best of them, %s, on day 3, and to %.2f times on day 4."
           % (middle("stream", "day03") / middle("stream", fast), fast,
              middle("stream", "day04") / middle("stream", fast)))
    same, differ = kernels.compare(KERNELS)
    yield ("From Linux %s to %s no way has changed, and %d of %d other facts are the same on all %d kernels."
           % (figures.release(KERNELS[0]), figures.release(KERNELS[-1]), len(same), len(same) + len(differ),
              len(KERNELS)))
    buffers = {int(size): median(cpu) for size, cpu in DATA["bench"]["buffers"].items()}
    yield ("With 64 KiB a stream costs %.2f times the CPU that it costs with 4 KiB, and %.2f times that with "
           "16 KiB. With 128 KiB it would be %.2f times that with 64."
           % (buffers[64] / buffers[4], buffers[64] / buffers[16], buffers[128] / buffers[64]))
    yield from quoted_of_io_uring()
    yield from quoted_of_machines()
    yield from quoted_of_modes()


def quoted_of_modes():
    yield ("Of clients that come one by one, the busiest of the four workers has %.2f times its fair share in mode "
           "`epoll`, %.2f times in `exclusive`, and %.2f times in `reuseport`." % tuple(even("one by one")))
    yield ("In a burst it has %.2f, %.2f and %.2f times that share, in the worst of %d rounds."
           % (*uneven("burst"), DATA["modes"]["rounds"]))
    woken = each("one by one", "woken")
    yield ("In mode `epoll` a newcomer that finds all workers asleep wakes %.0f of them, and costs %.1f times the CPU "
           "that it costs in `exclusive`, where it wakes %.0f." % (woken[0], times_exclusive("one by one", "epoll"), woken[1]))
    yield ("A whole client, with its echo and its end, costs %.2f times as much in `epoll` as in `exclusive`, and %.2f "
           "times as much in `reuseport`." % (times_exclusive("quiet", "epoll"), times_exclusive("quiet", "reuseport")))
    yield ("With 64 workers a newcomer costs %.0f times the CPU in the laboratory's way `epoll` that it costs in "
           "`exclusive`, and waits %.1f times as long for its `accept`; with two it costs %.1f times the CPU."
           % (herd(64, "cpu"), herd(64, "delay"), herd(2, "cpu")))
    yield ("One client in a hundred waits %.1f ms or longer for its first echo in mode `reuseport`, %.1f in `exclusive` "
           "and %.1f in `epoll`." % tuple(reversed(each("hang", "p99"))))
    lost = each("dying", "lost")
    yield ("With each worker that hangs and is then killed, %.1f newcomers are lost in mode `reuseport`, %.1f if "
           "`net.ipv4.tcp_migrate_req` is 1, and %.1f in `exclusive`." % (lost[2], median(DATA["modes"]["migrated"]), lost[1]))
    yield ("When the busiest worker is killed, %.0f of the 400 clients are lost in mode `epoll`, %.0f in `exclusive` and "
           "%.0f in `reuseport`." % tuple(each("one by one", "gone")))


def test_what_is_recommended_follows_from_the_data():
    """The prose says it without figures. New data that contradict it need other words, not only other numbers."""
    epoll, exclusive, reuseport = range(3)
    slow, burst, woken = even("one by one"), uneven("burst"), each("one by one", "woken")
    assert slow[exclusive] < 1.05 and slow[reuseport] < 1.2 < slow[epoll]
    assert slow[exclusive] + 0.1 < burst[exclusive] and burst[reuseport] < burst[exclusive]
    assert woken[epoll] > 3.9 and woken[exclusive] < 1.1 and woken[reuseport] < 1.1
    for load in ("one by one", "quiet"):
        assert times_exclusive(load, "reuseport") < 1 < times_exclusive(load, "epoll")
    alone = DATA["modes"]["herds"]["exclusive"]
    assert 1 < herd(2, "cpu") < herd(8, "cpu") < herd(64, "cpu") and times(alone["64"]["cpu"], alone["1"]["cpu"]) < 1.5
    quiet, hang = each("quiet", "p99"), each("hang", "p99")
    assert max(hang[:2]) < 3 and max(hang[:2]) < 3 * max(quiet[:2]) and hang[reuseport] > 1000 * modes.HANG / 2
    late = [sum(wait > 1 for wait in DATA["modes"]["modes"][mode]["hang"]["percentiles"]) for mode in modes.MODES]
    assert late[reuseport] == pytest.approx(100 / 8, abs=2.5) and max(late[:2]) < 2
    lost = each("dying", "lost")
    assert lost[reuseport] == pytest.approx(modes.HANG / modes.APART / modes.WORKERS, rel=0.3)
    assert median(DATA["modes"]["migrated"]) == 0 and max(lost[:2]) < 0.5
    assert each("one by one", "gone") == [median(map(max, DATA["modes"]["modes"][mode]["one by one"]["got"]))
                                          for mode in modes.MODES]


def played(event, what, algorithm=None):
    """Of make balance, the median, with one algorithm or with both."""
    return median(figure[event][what] for name, rounds in DATA["balance"]["figures"].items() for figure in rounds
                  if algorithm in (None, name))


def quoted_of_machines():
    dealt = [[median(machine) for machine in zip(*(figure["back"] for figure in DATA["balance"]["figures"][name]))]
             for name in balance.ALGORITHMS]
    yield ("When machine 1 is back, it gets %.0f of the next %.0f newcomers with `roundrobin`, and %.0f with "
           "`leastconn`." % (dealt[0][0], sum(dealt[0]), dealt[1][0]))
    share = [100 * played("killed", "sent on", name) / played("killed", "newcomers", name)
             for name in balance.ALGORITHMS]
    yield ("Before HAProxy knows that its server is dead, machine 1 is the first choice for %.0f %% of the newcomers "
           "with `roundrobin`, and for %.0f %% with `leastconn`." % tuple(share))
    yield ("The last of its clients knows after %.0f ms, and HAProxy after %.0f ms."
           % (played("killed", "learn"), played("killed", "noticed")))
    yield ("HAProxy notices after %.1f s, and the clients of machine 3 learn of it no sooner." % (played("silent", "noticed") / 1000))


def test_the_notes_are_right_about_machines():
    """What they say in words."""
    for name, rounds in DATA["balance"]["figures"].items():
        for figure in rounds:
            killed, drained, silent = figure["killed"], figure["drained"], figure["silent"]
            assert len(set(figure["came"])) == 1
            assert killed["learn"] < killed["noticed"] < silent["noticed"]
            assert silent["learn"] == pytest.approx(silent["noticed"], rel=0.1)
            assert 0.8 * killed["clients"] < killed["lost"] and 0.8 * silent["clients"] < silent["lost"]
            assert figure["others"] == drained["lost"] == drained["newcomers"] == drained["undelivered"] == 0
            assert killed["turned away"] < 0.2 * killed["newcomers"] and silent["turned away"] < 0.2 * silent["newcomers"]
    assert 1 / 3 < played("killed", "sent on", "roundrobin") / played("killed", "newcomers", "roundrobin") < 1 / 2
    assert played("silent", "sent on", "leastconn") < played("silent", "sent on", "roundrobin") / 4


def quoted_of_io_uring():
    loads = DATA["bench"]["in_flight"].values()
    yield ("With 1, 50 and 1000 clients in flight an echo takes %.2f, %.2f and %.2f system calls there, and "
           "%.2f, %.2f and %.2f on day 3."
           % tuple(median(rows[name]["calls"]) for name in ("uring", "day03") for rows in loads))
    yield ("It costs %.2f, %.2f and %.2f times the CPU that it costs on day 3, and %.2f, %.2f and %.2f times as many "
           "come back in a second."
           % tuple(median(rows["uring"][what]) / median(rows["day03"][what]) for what in ("cpu", "requests")
                   for rows in loads))
    memory = {name: median(row["memory"]) / MIB for name, row in DATA["bench"]["in_flight"]["1000"].items()}
    yield ("The server has %d lines of code, where the one on libev has %d, and with 1000 clients in flight it has "
           "%.1f MiB of its own, where day 3 has %.1f."
           % (code("tests/bench/uring.c"), code("tests/bench/libev.c"), memory["uring"], memory["day03"]))


def test_the_notes_are_right_about_io_uring():
    """What they say in words."""
    def times(count, what):
        rows = DATA["bench"]["in_flight"][count]
        return median(rows["uring"][what]) / median(rows["day03"][what])

    loads = DATA["bench"]["in_flight"]
    assert loads["1"]["uring"]["calls"][0] == pytest.approx(2, abs=0.1)
    assert all(2 <= rows["day03"]["calls"][0] < 3.1 for rows in loads.values())
    assert times("1", "cpu") > 1 and all(3 * times(count, "calls") < times(count, "cpu") < 1 for count in ("50", "1000"))
    assert median(loads["50"]["day03"]["cpu"]) < middle("cpu", "day03")


@pytest.mark.parametrize("sentence", quoted(), ids=lambda sentence: sentence[:30])
def test_figures_in_the_text_are_those_of_the_data(sentence):
    assert sentence in " ".join(NOTES.split()), "NOTES.md should say: " + sentence


# ---- The commands

needs_redis = pytest.mark.skipif(not measuring.REDIS_BENCHMARK, reason="redis-benchmark is missing")


@needs_redis
def test_bench_measures_all_it_promises():
    found = bench.measure("day03", quick=True)
    assert set(found) == set(bench.MEASURES) - {"memory"}
    assert all(value > 0 for value in found.values())


def test_bench_without_what_it_would_like_to_have(monkeypatch, capsys):
    """The streams and the memory are measured all the same."""
    def build(name):
        return name == "barest", "x.c:1:10: fatal error: ev.h: No such file or directory"

    monkeypatch.setattr(bench, "build", build)
    monkeypatch.setattr(bench, "can_count_calls", lambda: False)
    monkeypatch.setattr(bench, "REDIS_BENCHMARK", None)
    assert bench.contenders() == ["barest", *bench.DAYS]
    said = capsys.readouterr().out
    for name, package in {**bench.LIBRARIES, "uring": "linux-libc-dev"}.items():
        assert "%s is left out: no ev.h (Debian: %s)\n" % (name, package) in said
    assert "perf is missing or may not count (Debian: linux-perf): no system calls\n" in said
    assert "redis-benchmark is missing (Debian: redis-tools): no requests, no connections\n" in said
    assert set(bench.measure("day02", quick=True)) == {"stream", "cpu-stream"}


@needs_redis
def test_bench_of_clients_in_flight(monkeypatch):
    monkeypatch.setattr(bench, "IN_FLIGHT", {1: 4000, 30: 8000})
    assert bench.build("barest")[0]
    found = bench.measure_in_flight(["barest", "day03"], 2, quick=True)
    assert list(found) == [1, 30] and all(list(rows) == ["barest", "day03"] for rows in found.values())
    for rows in found.values():
        for row in rows.values():
            assert all(len(row[what]) == 2 and min(row[what]) > 0 for what in ("cpu", "requests", "memory"))
    if bench.can_count_calls():  # the wait, one read, one write; connecting and leaving come on top
        assert 3 <= found[1]["day03"]["calls"][0] < 4


@pytest.fixture
def uring():
    reason = bench.lacking("uring")
    if reason and "cannot be built" not in reason:
        pytest.skip("uring is left out: " + reason)
    assert not reason
    return str(measuring.program("uring"))


@pytest.mark.book  # it takes its time
def test_uring_keeps_the_contract(uring):
    """All that make check asks of any server, except how it ends: it has no handler, and says no goodbye."""
    with subprocess.Popen(
            [ROOT / "tests" / "run", "-q", "-x", ROOT / "tests" / "test_contract.py", "--server", uring + " {port}",
             "-k", "not inherited_signal_settings and not nothing_is_lost_at_the_end"],
            stdout=subprocess.PIPE, text=True) as run:
        try:
            said, _ = run.communicate(timeout=4 * PATIENCE)
        finally:
            run.send_signal(signal.SIGINT)  # if it has not ended, it ends the server
    assert run.returncode == 0 and re.search(r"\d\d passed", said), said


def test_uring_has_fewer_buffers_than_its_clients_need(launch, uring):
    """Its pool has 64. Seventy clients do not read what comes back, and two hundred more have each sent
    something when the server comes to look: all of them get their own bytes, the latter at once."""
    server = launch([uring, "0"]).listening()
    server.ours = False  # it ends by a signal, and says so
    deaf = [server.connect(receive_buffer=4096) for _ in range(70)]
    for sock in deaf:
        assert server.echoes(sock)  # so the server has accepted it
        with server.server_end(sock) as end:
            for buffer in sock, end:
                buffer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # little is enough to fill it
    socks = [server.connect() for _ in range(200)]
    filled = [server.fill(sock) for sock in deaf]
    server.pause()
    data = [os.urandom(200_000) for _ in socks]
    for sock, own in zip(socks, data):
        sock.sendall(own)
    server.resume()
    for sock, own in zip([*socks, *deaf], [*data, *filled]):
        assert receive(sock, len(own)) == own


def test_uring_where_the_kernel_forbids_it(uring, strace, tmp_path, monkeypatch):
    """It is left out, and make bench says why."""
    path = tmp_path / "uring"
    path.write_text("#!/bin/sh\nexec %s\n" % shlex.join([*strace("io_uring_setup:error=EPERM"), uring, "0"]))
    path.chmod(0o755)
    monkeypatch.setattr(bench, "build", lambda name: (True, ""))
    monkeypatch.setattr(bench, "program", lambda name: path)
    assert bench.lacking("uring") == "the kernel says io_uring_setup: Operation not permitted"


def test_a_stream_that_loses_bytes_is_no_result(launch, tmp_path):
    path = tmp_path / "forgetful.py"
    path.write_text("import socket\n"
                    "with socket.create_server(('127.0.0.1', 0)) as listener:\n"
                    "    print('listening on 127.0.0.1:%d' % listener.getsockname()[1], flush=True)\n"
                    "    for room in (1 << 40, 1 << 20):\n"
                    "        client = listener.accept()[0]\n"
                    "        while room > 0 and (data := client.recv(1 << 16)):\n"
                    "            client.sendall(data)\n"
                    "            room -= len(data)\n"
                    "        client.shutdown(socket.SHUT_WR)\n"
                    "        while client.recv(1 << 16):\n"
                    "            pass\n")
    server = launch([sys.executable, str(path)]).listening()
    server.ours = False  # it ends by a signal, and says so
    with pytest.raises(AssertionError, match="of 16777216 bytes came back"):
        measuring.with_stream(server, 16 * MIB)


@needs_redis
def test_scale(capsys):
    found = {"day02": {}, "day05": {}}
    workers = [scale.measure(name, [0, 100], 500, rows, lambda text: None) for name, rows in found.items()]
    for rows in found.values():
        assert list(rows) == [0, 100] and all(row["cpu"][0] > 0 for row in rows.values())
    assert workers[0] is None and len(workers[1]) == scale.WORKERS and sum(workers[1]) == 100
    scale.print_table("CPU", found, scale.cpu_cell)
    assert re.search(r"^ +100( +[\d.]+ x[\d.]+){2}$", capsys.readouterr().out, re.M)


def test_modes(monkeypatch, capsys):
    """A round, in the mode in which a worker that hangs and dies is noticed."""
    monkeypatch.setattr(modes, "MODES", ["reuseport"])
    found = {"modes": {}, "migrated": [], "herds": {}}
    modes.measure(found, 24, 10, [1, 3], 4, lambda text: None)
    loads = found["modes"]["reuseport"]
    for load in ("one by one", "burst"):
        got, = loads[load]["got"]
        assert len(got) == modes.WORKERS and sum(got) == 24 and loads[load]["gone"] == [max(got)]
    assert loads["one by one"]["woken"][0] >= 1  # in a burst, one that is awake may take several
    assert loads["hang"]["worst"][0] > 1000 * modes.HANG / 4
    assert loads["dying"]["lost"][0] > 0
    assert all(values[0] > 0 for load in ("quiet", "hang") for values in (loads[load]["cpu"], loads[load]["median"]))
    for way in modes.WAYS:
        assert list(found["herds"][way]) == ["1", "3"] and found["herds"][way]["3"]["woken"][0] >= 1
    if found["migrated"] is None:
        assert "tcp_migrate_req=1 is left out: " in capsys.readouterr().out
    else:
        assert found["migrated"][0] < loads["dying"]["lost"][0]


def test_modes_without_a_network_of_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert modes.die_with_migration() is None
    assert re.fullmatch("tcp_migrate_req=1 is left out: .*unshare.*not found\n", capsys.readouterr().out)


def test_tables_of_modes_on_a_terminal(capsys):
    modes.show(figures.modes_table(DATA["modes"]))
    head, first, *_ = capsys.readouterr().out.strip().splitlines()
    assert head.split()[-3:] == modes.MODES and "*" not in first
    assert head.index("exclusive") == first.index(figures.clients_of_each(DATA["modes"], "exclusive", "one by one"))


def test_a_quick_run_does_not_replace_a_whole_one(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "MEASURED", tmp_path)
    measuring.save("bench", "make bench", rounds=7)
    measuring.save("bench", "make bench QUICK=1", quick=True, rounds=1)
    assert json.loads((tmp_path / "bench.json").read_text())["rounds"] == 7
    assert json.loads((tmp_path / "quick" / "bench.json").read_text())["rounds"] == 1


def test_a_crowd_is_there_and_leaves(start_day):
    server = start_day("day03", "-v", "0")
    with measuring.Crowd(server) as crowd:
        crowd.grow(30)
        crowd.grow(50)
        server.wait_out(" connected", 50)
    server.wait_out(" left: ", 50)
    assert len(server.errors(50)) == 50  # they leave with a reset
    assert server.stop() == (50, 50, 0)


def test_interrupted(tmp_path):
    """After Ctrl-C it says so, and all that it started ends."""
    process = subprocess.Popen([sys.executable, ROOT / "tests" / "bench.py", "--quick"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                               env={**os.environ, "MEASURED": str(tmp_path)})
    wait_until(lambda: "barest" in running_in_session(process.pid), "it to start a server")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "interrupted" in said.splitlines()
    wait_until(lambda: not running_in_session(process.pid), "all that it started to end")


# ---- make figures

@pytest.fixture(scope="module")
def matplotlib():
    if not any(subprocess.run([python, "-c", "import matplotlib"], capture_output=True, check=False).returncode == 0
               for python in (sys.executable, "/usr/bin/python3") if shutil.which(python)):
        pytest.skip("matplotlib is missing")


def draw(folder, **environment):
    return subprocess.run([sys.executable, ROOT / "tests" / "figures.py", folder], capture_output=True, text=True,
                          check=False, timeout=PATIENCE, env={**os.environ, **environment})


@pytest.mark.usefixtures("matplotlib")
def test_make_figures(tmp_path):
    """It draws the figures for which there are data, and names the command for the others."""
    shutil.copy(FOLDER / "switches.json", tmp_path)
    done = draw(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no herd.svg: it needs make herd and make herd DELAY=100\n" in done.stdout
    assert [path.name for path in tmp_path.glob("*.svg")] == ["switches.svg"]
    text = (tmp_path / "switches.svg").read_text()
    assert figures.checksum(tmp_path, "switches") in text and "requests in flight" in text
    assert "#000000" not in text and "#ffffff" not in text  # for dark pages, and light ones


@pytest.mark.usefixtures("matplotlib")
def test_make_figures_of_a_bench_without_redis_benchmark(tmp_path):
    data = {**DATA["bench"], "figures": {**DATA["bench"]["figures"], "cpu": {}}}
    (tmp_path / "bench.json").write_text(json.dumps(data))
    done = draw(tmp_path)
    assert "no bench.svg: make bench had no redis-benchmark\n" in done.stdout
    assert done.returncode == 1 and done.stderr == ""


def test_make_figures_without_matplotlib(tmp_path):
    """With an interpreter that finds it nowhere."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError\n")
    done = draw(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "figures: matplotlib is missing (Debian: python3-matplotlib)\n"
