"""The four explorables of the notes' page: their models do what the kernel does, and what was measured."""

import functools
import json
import re
import select
import shutil
import socket

import pytest

import figures
import stills
from harness import PATIENCE, ROOT, receive, row_of, wait_until

pytestmark = [pytest.mark.book, pytest.mark.together]  # one browser after the other

NOTES = (ROOT / "NOTES.md").read_text()
HERD = {nap: figures.load(ROOT / "tests" / "measured", name) for nap, name in
        (("no nap", "herd"), ("a nap", "herd-delay"))}
needs_node = pytest.mark.skipif(not shutil.which("node") and not shutil.which("chromium"),
                                reason="node and chromium are missing (Debian: nodejs, or chromium)")


# All that a reader may choose: a list.
EVERY = """((widget) => Object.entries(widget.choices).reduce((all, [choice, values]) =>
    all.flatMap((chosen) => values.map((value) => ({ ...chosen, [choice]: value }))), [{}]))"""


@functools.cache
def runs():
    return stills.evaluate("""Object.values(explore.widgets).flatMap((widget) =>
        %s(widget).map((chosen) => [widget.name, chosen, widget.run(chosen)]))""" % EVERY)


def run(name, **chosen):
    """The frames of a model. In the name of a choice _ stands for a space."""
    chosen = {choice.replace("_", " "): value for choice, value in chosen.items()}
    [frames] = [frames for which, how, frames in runs() if which == name and how == chosen]
    return frames


# ---- Where they stand

@pytest.mark.parametrize("name", stills.NAMES)
def test_each_has_its_place_in_the_notes(name):
    assert len(re.findall(r"^\n<!-- explore: %s -->\n$" % name, NOTES, re.M)) == 1


@needs_node
def test_the_still_pictures_are_frames_of_the_models():
    drawn = stills.draw()
    assert list(drawn) == stills.NAMES
    for name, svg in drawn.items():
        assert (stills.FOLDER / (name + ".svg")).read_text() == svg, "tests/book/stills.py draws them again"


# ---- The wait queue, and what make herd has measured

WAYS = ["accept", "poll", "epoll", "epoll-et", "exclusive", "shared", "shared-et"]


@needs_node
@pytest.mark.parametrize("nap", HERD)
@pytest.mark.parametrize("way", WAYS)
def test_the_wait_queue_counts_what_was_measured(way, nap):
    """For one newcomer, as the laboratory for many."""
    frames = run("queue", way=way, before_accept=nap, sleepers=str(HERD[nap]["workers"]))
    [row] = [row for row in HERD[nap]["ways"] if row["way"] == way]
    end = frames[-1]
    assert end["backlog"] == 0 and set(end["lane"].values()) <= {"asleep"}
    woken, returned, nothing = (end[what] / end["newcomers"] for what in ("woken", "returned", "nothing"))
    assert woken == round(row["woken"] / row["connections"])
    assert nothing == returned - 1 and row["nothing"] == row["returned"] - row["connections"]
    if nap == "a nap" or woken == 1:
        assert returned == row["returned"] / row["connections"]
    else:  # a race: now and then a second one looks before the first has accepted
        assert returned == 1 <= row["returned"] / row["connections"] < woken / 2 + 0.5


@needs_node
@pytest.mark.parametrize("way, takers", [("accept", "all in turn"), ("exclusive", "1"), ("shared-et", "1")])
def test_the_wait_queue_says_which_worker_is_next(way, takers):
    """Where that is no race."""
    frames = run("queue", way=way, before_accept="no nap", sleepers="10")
    got = [worker for before, frame in zip(frames, frames[1:]) for worker, end in frame["end"].items()
           if end == "got" != before["end"].get(worker)]
    assert len(got) == 2 and len(set(got)) == (1 if takers == "1" else 2)
    [row] = [row for row in HERD["no nap"]["ways"] if row["way"] == way]
    assert figures.takers(row["got"], 10) == takers


@needs_node
def test_the_wait_queue_shows_the_figures_of_make_herd():
    shown = stills.evaluate("""explore.widgets.queue.choices.way.flatMap((way) => %s.map((nap) =>
        [way, nap, explore.widgets.queue.count({}, { way, "before accept": nap })[2]]))""" % json.dumps(list(HERD)))
    rows = {(row["way"], nap): row for nap, data in HERD.items() for row in data["ways"]}
    assert [way for way, _, _ in shown[::2]] == WAYS
    for way, nap, cells in shown:
        row = rows[way, nap]
        assert cells == ["measured", row["connections"], "-", row["woken"], row["returned"], row["nothing"]], way


# ---- The ready list, and a real epoll instance

READS = ["nothing at first", "two bytes", "all"]


@pytest.fixture
def pair():
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        far = listener.accept()[0]
        far.setblocking(False)
        with far:
            yield near, far


def arrived(far, length):
    wait_until(lambda: row_of(far, server_side=False)[2] == length, "the bytes to arrive")


@needs_node
@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("mode", ["level-triggered", "edge-triggered"])
def test_the_ready_list_reports_what_epoll_reports(pair, mode, reads):
    near, far = pair
    frames = run("ready", mode=mode, it_reads=reads)
    with select.epoll() as epoll:
        epoll.register(far, select.EPOLLIN | (select.EPOLLET if mode == "edge-triggered" else 0))
        for frame in frames:
            call, *what = frame["call"] or [None]
            if call == "send":
                near.sendall(b"x" * what[0])
                arrived(far, len(frame["unread"]))
            elif call == "wait":
                assert len(epoll.poll(0)) == what[0], frame["said"]
            elif call == "recv" and what[0] > 0:  # with 0, strace has made it fail
                try:
                    assert len(far.recv(what[0])) == what[1] > 0
                except BlockingIOError:
                    assert what[1] == 0
            if call:
                assert row_of(far, server_side=False)[2] == len(frame["unread"])
    assert frames[-1]["call"] == ["wait", 0]


@needs_node
@pytest.mark.parametrize("mode, option", [("level-triggered", " 8888"), ("edge-triggered", " -e")])
def test_the_ready_list_shows_the_experiment_of_the_notes(mode, option):
    """What strace printed there, about descriptor 6, until the client closed."""
    session = re.search(r"inject=recvfrom:error=EAGAIN:when=1 \S+server%s\n(.*?)\n```" % option, NOTES, re.S)[1]
    printed = []
    for line in session.splitlines():
        if re.match(r"epoll_wait\(5, \[\{events=EPOLLIN, data=\{u32=6", line):
            printed.append(["wait", 1])
        elif found := re.match(r"recvfrom\(6, .*, 65536, .*\) = (\d+|-1 EAGAIN)", line):
            printed.append(["recv", int(found[1]) if found[1].isdigit() else 0])
    calls = [frame["call"] for frame in run("ready", mode=mode, it_reads="nothing at first") if frame["call"]]
    made = [[call[0], call[-1]] for call in calls if call[0] == "recv" or call == ["wait", 1]]
    assert len(printed) >= 4 and made[:len(printed)] == printed
    if mode == "edge-triggered":
        assert made == printed


# ---- select's sets, and the real select

@needs_node
@pytest.mark.parametrize("gets", ["copies", "the sets themselves"])
def test_select_answers_what_the_real_one_does(gets):
    frames = run("select", select_gets=gets)
    clients, ends = {}, {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends[3] = listener
        for fd in (4, 5, 6):
            clients[fd] = socket.create_connection(listener.getsockname(), PATIENCE)
            ends[fd] = listener.accept()[0]
        full = fill(ends[6])

        def happens(fd, what):
            if what == "comes":
                clients[7] = socket.create_connection(listener.getsockname())
            elif what == "sends":
                clients[fd].sendall(b"x")
                arrived(ends[fd], 1)
            else:
                assert len(receive(clients[fd], full)) == full
                wait_until(lambda: select.select([], [ends[fd]], [], 0)[1], "room")

        for before, frame in zip(frames, frames[1:]):
            for fd in frame["waiting"].keys() - before["waiting"].keys():
                happens(int(fd), frame["waiting"][fd])
            if before["asleep"]:
                answer = select.select(*([ends[fd] for fd in asked] for asked in before["given"]), [], 0)[:2]
                assert [[fd for fd in ends if ends[fd] in ready] for ready in answer] == (
                    [[], []] if frame["asleep"] else frame["given"]), frame["said"]
            for fd in before["waiting"].keys() - frame["waiting"].keys():  # served
                if fd == "3":
                    ends[7] = ends[3].accept()[0]
                elif before["waiting"][fd] == "sends":
                    ends[int(fd)].recv(1)
        for sock in [*clients.values(), *ends.values()]:
            sock.close()
    assert bool(frames[-1]["waiting"]) == (gets != "copies")


def fill(sock):
    """Sends until there is no room. Returns how many bytes."""
    sent = 0
    sock.setblocking(False)
    try:
        while True:
            sent += sock.send(bytes(1 << 16))
    except BlockingIOError:
        return sent


# ---- The four buffers, and the server of day 3

PLACES = ["clientReceive", "serverSend", "held", "serverReceive", "clientSend"]  # as they fill


def filled(levels):
    """The places in the order in which they came to three quarters of what they have in the end."""
    when = {name: next(i for i, level in enumerate(levels) if level[name] >= 0.75 * levels[-1][name])
            for name in PLACES}
    assert len(set(when.values())) == len(PLACES)
    return sorted(PLACES, key=when.get)


@needs_node
def test_the_buffers_fill_as_those_of_a_real_server_do(start_day):
    """A client that does not read sends 64 KiB at a time, and each time we ask what the kernels have. What is in no
    buffer is held."""
    server = start_day("day03", "0")
    client, piece, sent, levels = server.connect(), bytes(1 << 16), 0, []

    def look():
        server.settle()
        level = dict(zip(("clientSend", "clientReceive", "serverSend", "serverReceive"),
                         row_of(client, server_side=False)[1:] + row_of(client, server_side=True)[1:]))
        levels.append({**level, "held": sent - sum(level.values())})
        return levels[-1]["held"]  # below 0 until the last acknowledgement

    client.setblocking(False)
    for stuck in range(2):
        try:
            while True:
                sent += client.send(piece)
                look()
        except BlockingIOError:
            wait_until(lambda: look() >= 0, "the acknowledgements")
    assert 0 < levels[-1]["held"] <= len(piece)
    assert filled(levels) == filled(run("buffers", the_client="does not read")) == PLACES
    client.settimeout(PATIENCE)
    assert len(receive(client, sent)) == sent  # and back again


@needs_node
def test_the_buffers_lose_nothing_whenever_the_client_reads():
    """Changed at any frame, and changed back at any frame after it."""
    found = stills.evaluate("""(() => {
        const { run } = explore.widgets.buffers, [no, yes] = ["does not read", "reads"].map((how) => ({ "the client": how }));
        return [[no, yes], [yes, no]].flatMap(([first, second]) => run(first).flatMap((frame) =>
            [frame, ...run(second, frame)].map((other) => [other, ...run(first, other), "-", other, ...run(yes, other)])));
    })()""")
    assert len(found) > 300
    for frames in found:
        end = frames.index("-")
        for frame in [*frames[:end], *frames[end + 1:]]:
            assert 48 == frame["unsent"] + sum(frame[name] for name in PLACES) + frame["read"]
            assert 0 <= min(frame[name] for name in PLACES) and frame["held"] <= 4
        for before, frame in zip(frames[:end], frames[1:end]):
            assert before["held"] == 0 or not frame["moved"].get("serverReceive"), "it reads while it holds"
        assert frames[-1]["read"] == 48 and frames[-1]["unsent"] == 0


@needs_node
def test_the_buffers_say_what_the_notes_say():
    frames = run("buffers", the_client="does not read")
    assert frames[-1]["full"] == PLACES
    took = [frame for frame in frames if frame["said"].startswith("send takes")]
    assert len(took) == 1 and took[0]["held"] > 0 and "back-pressure" in frames[-1]["said"]


# ---- In a browser

@pytest.fixture(scope="module")
def browser():
    """browser(expression): what that gives in a page that has the four in it. `figure(name)` is one of them."""
    if not shutil.which("chromium"):
        pytest.skip("chromium is missing (Debian: chromium)")
    return lambda expression: stills.in_chromium("""(() => {
        const figure = (name) => document.querySelector(`[data-explore=${name}]`);
        const choose = (name, value) => figure(name).querySelector(`[value="${value}"]`).click();
        const press = (name, label) => [...figure(name).querySelectorAll("button")].find(
            (button) => button.textContent === label).click();
        const slide = (name, to) => { const slider = figure(name).querySelector("[type=range]");
            slider.value = to; slider.dispatchEvent(new Event("input", { bubbles: true })); };
        const now = (name) => [figure(name).querySelector("p").textContent,
            [...figure(name).querySelectorAll("td")].map((cell) => cell.textContent)];
        %s
    })()""" % expression)


@pytest.mark.parametrize("name", stills.NAMES)
def test_it_can_be_stepped_through_and_shows_each_frame(browser, name):
    """For all choices: what is on the screen is what the model says, and the drawing is that of the frame, although
    it was made out of the one before."""
    assert browser("""
        const name = "%s", widget = explore.widgets[name], wrong = [], ways = %s(widget);
        for (const chosen of ways) {
            press(name, "reset");
            Object.values(chosen).forEach((value) => choose(name, value));
            press(name, "reset");
            widget.run(chosen).forEach((frame, i) => {
                if (i > 0)
                    press(name, "step");
                const want = document.createElement("div");
                want.innerHTML = explore.svg(widget, frame, chosen);
                if (now(name)[0] !== frame.said || figure(name).querySelector("svg").innerHTML !== want.firstChild.innerHTML ||
                    now(name)[1].join() !== widget.count(frame, chosen).slice(1).flat().join())
                    wrong.push([chosen, i]);
            });
            if (![...figure(name).querySelectorAll("button")][1].disabled)
                wrong.push("not the end");
        }
        return [wrong, ways.length > 1, errors];
    """ % (name, EVERY)) == [[], True, []]


def test_a_choice_shows_its_consequence_at_once(browser):
    """The end of one way becomes the end of the other; the client that reads again is a step further."""
    ends, before, after, back = browser("""
        slide("queue", 1000);
        const ends = ["poll", "exclusive", "shared"].map((way) => { choose("queue", way); return now("queue")[1].slice(1, 6); });
        slide("buffers", 1000);
        const before = now("buffers");
        choose("buffers", "reads");
        const after = now("buffers");
        press("buffers", "back");
        return [ends, before, after, now("buffers")];
    """)
    assert ends == [["2", "20", "20", "2", "0"], ["2", "2", "2", "2", "0"], ["2", "2", "4", "2", "0"]]
    assert "back-pressure" in before[0] and "Our send buffer has room" in after[0] and back == before


def test_it_plays_by_itself_and_stops(browser):
    """In Chromium's own time, which runs ahead (--virtual-time-budget)."""
    playing, at, paused, later, ended, last = browser("""
        const { pace } = explore.widgets.ready, slider = figure("ready").querySelector("[type=range]");
        const label = () => figure("ready").querySelectorAll("button")[2].textContent;
        const passed = (n) => new Promise((resolve) => setTimeout(resolve, (n + 0.5) * pace));
        return (async () => {
            press("ready", "play");
            await passed(3);
            const found = [label(), slider.value];
            press("ready", "pause");
            await passed(3);
            found.push(label(), slider.value);
            press("ready", "play");
            await passed(20);
            return [...found, label(), slider.value === slider.max];
        })();
    """)
    assert (playing, at, paused, later, ended, last) == ("pause", "3", "play", "3", "play", True)
