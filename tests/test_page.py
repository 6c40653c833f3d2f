"""The site of the book (make book), in a browser: Chromium, driven through the WebDriver protocol.

Pictures of it are left in build/book-shots. Look at them after a change of page.css.
"""

import base64
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser

import pytest

from harness import BUILD, PATIENCE, ROOT

sys.path.insert(0, str(ROOT / "tests" / "book"))
import sessions  # noqa: E402
import steps  # noqa: E402

pytestmark = [pytest.mark.book, pytest.mark.together]  # in one browser

DAYS = steps.read()
PAGES = ["index", "connection", "day-1", "day-2", "day-3", "day-4", "day-5", "measured", "after", "on-other-kernels"]
CONSOLE = [block for block in sessions.blocks("NOTES.md") if block.kind == "console"]
WIDE, NARROW = (1440, 900), (390, 844)


@functools.cache
def built(day, number):
    return steps.build(DAYS, day, number)


def make_book(folder, *arguments, **environment):
    done = subprocess.run([ROOT / "tests/book/page.py", folder, *arguments], capture_output=True, text=True, check=False,
                          env={**os.environ, **environment})
    if "please install" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    return make_book(tmp_path_factory.getbasetemp() / "site")


# ---- A browser

class Browser:
    """One window of it. Every call is a request to chromedriver."""

    def __init__(self):
        driver = shutil.which("chromedriver") or shutil.which("chromedriver", path=os.environ.get("CHROMEWEBDRIVER"))
        if not driver:
            pytest.skip("chromedriver is missing (Debian: chromium-driver)")
        self.driver = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        self.address, self.media = "http://127.0.0.1:", {}
        for line in self.driver.stdout:
            if port := re.search(r"started successfully on port (\d+)", line):
                self.address += port[1]
                break
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]}
        self.address += "/session/" + self.call("/session", capabilities={"alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}})["sessionId"]

    def call(self, path, **parameters):
        request = urllib.request.Request(self.address + path, json.dumps(parameters).encode())
        try:
            with urllib.request.urlopen(request, timeout=6 * PATIENCE) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def devtools(self, command, **parameters):
        return self.call("/goog/cdp/execute", cmd=command, params=parameters)

    def run(self, script, *arguments):
        """The script is the body of a function; it may return a promise."""
        return self.call("/execute/sync", script=script, args=arguments)

    def size(self, size):
        self.devtools("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)

    def prefer(self, **media):
        """prefer(color_scheme="dark", reduced_motion="reduce")"""
        self.media.update(media)
        self.devtools("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-" + name.replace("_", "-"), "value": value} for name, value in self.media.items()])

    def open(self, folder, page):
        self.call("/url", url="about:blank")
        self.logged("browser"), self.logged("performance")
        self.call("/url", url="%s/%s" % (folder.as_uri(), page))

    def logged(self, kind):
        return [entry["message"] for entry in self.call("/se/log", type=kind)]

    def wait(self, condition, *arguments):
        """Until the condition, an expression of JavaScript, holds; what it is then."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run("return " + condition, *arguments)):
            assert time.monotonic() < end, "in vain: " + condition
        return value

    def picture(self, name):
        folder = BUILD / "book-shots"
        folder.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(self.address + "/screenshot")
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            (folder / (name + ".png")).write_bytes(base64.b64decode(json.load(reply)["value"]))

    def close(self):
        with contextlib.suppress(Exception):
            urllib.request.urlopen(urllib.request.Request(self.address, method="DELETE"), timeout=PATIENCE).close()
        self.driver.terminate()
        self.driver.wait(PATIENCE)


@pytest.fixture(scope="session")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def calm(browser):
    """A wide window in which nothing moves."""
    browser.size(WIDE)
    browser.prefer(color_scheme="light", reduced_motion="reduce")
    return browser


# ---- What it weighs

def test_the_site_is_small():
    """Small enough to be read."""
    def lines(*patterns):
        return sum(len(path.read_text().splitlines()) for each in patterns for path in (ROOT / "tests/book").glob(each))

    assert lines("page.js", "page.css", "explore/*.js", "explore/*.css") < 1000
    assert lines("page.py") <= 500


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_by_itself_and_at_once(page, book, calm):
    """From a file, without an error and without a request to elsewhere, within a second; the page has less than 400 KB,
    and its scripts and styles less than 50."""
    times = [1000]
    while min(times) >= 1000 and len(times) < 10:  # the best of some: other programs run here, too
        calm.open(book, page + ".html")
        times.append(calm.wait("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
        assert calm.logged("browser") == []
        requests = [json.loads(entry)["message"] for entry in calm.logged("performance")]
        urls = [each["params"]["request"]["url"] for each in requests if each["method"] == "Network.requestWillBeSent"]
        assert urls and all(url.startswith((book.as_uri(), "data:", "about:")) for url in urls)
    assert min(times) < 1000
    needed = {book / url.rpartition("/")[2].partition("#")[0] for url in urls if re.search(r"\.(html|css|js)(#|$)", url)}
    html = book / (page + ".html")
    assert html in needed and len(needed) > 2 and html.stat().st_size < 400_000
    assert sum(path.stat().st_size for path in needed - {html}) < 50_000


# ---- The code beside the text

SHOWN = """const rows = [...document.querySelectorAll(".listing .row:not(.ghost)")].map(row =>
    (row.classList.contains("come") ? "+" : row.classList.contains("go") ? "-" : " ") + row.textContent);"""
ALL_FILES = """const found = [];
    for (let i = 0, tabs; i < (tabs = document.querySelectorAll(".tabs button")).length; i++) {
        tabs[i].click();
        %s
        found.push([tabs[i].firstChild.data, rows.join("\\n")]);
    }
    return JSON.stringify(found)""" % SHOWN
MODE = 'document.querySelectorAll(".modes button")[arguments[0]].click()'


def read_step(browser, day, number):
    """What each file's column then is: {name: [(sign, line), …]}"""
    where = "day-%d" % int(day[3:]) + ("-step-%d" % number if number else "-what-you-should-know")
    browser.run("location.hash = arguments[0]; dispatchEvent(new Event('hashchange'))", where)
    return {name: [(line[0], line[1:]) for line in text.split("\n") if line]
            for name, text in json.loads(browser.run(ALL_FILES))}


def shown(browser):
    return "".join(line[1:] + "\n" for line in browser.run(SHOWN + "return rows"))


@pytest.mark.parametrize("day", DAYS)
def test_every_step_shows_what_make_builds(day, book, calm):
    """All its files, and what is new in them is marked as new."""
    calm.open(book, "day-%d.html" % int(day[3:]))
    for number in range(len(DAYS[day]) + 1):
        before, after = built(day, max(number - 1, 0)), built(day, number)
        columns = read_step(calm, day, number)
        assert list(columns) == list(after), number
        for name, rows in columns.items():
            assert "".join(line + "\n" for _, line in rows) == after[name], (number, name)
            come = set(after[name].split("\n")) - set(before.get(name, "").split("\n"))
            assert come <= {line for sign, line in rows if sign == "+"}, (number, name)
            assert before.get(name) != after[name] or all(sign == " " for sign, _ in rows), (number, name)


@pytest.mark.parametrize("day", DAYS)
def test_the_difference_leads_from_one_step_to_the_next(day, book, calm):
    """Its lines with - and those without a sign are in the file before, those with + in the file after, in order."""
    def in_order(lines, text):
        rest = iter(text.split("\n"))
        return all(line in rest for line in lines)

    calm.open(book, "day-%d.html" % int(day[3:]))
    for mode in (0,) if day == "day01" else (0, 2):
        calm.run(MODE, mode)
        for number in range(1, len(DAYS[day]) + 1):
            before, after = built(day, number - 1 if mode == 0 else 0), built(day, number)
            for name, rows in read_step(calm, day, number).items():
                assert bool(rows) == (before.get(name) != after[name]), (number, name)
                rows = [row for row in rows if row[1] != "⋯"]
                assert in_order([line for sign, line in rows if sign != "+"], before.get(name, "")), (number, name)
                assert in_order([line for sign, line in rows if sign != "-"], after[name]), (number, name)


def test_scrolling_moves_the_code(book, calm):
    """And the address, and the heading; with an animation, unless the reader prefers none."""
    for motion in ("no-preference", "reduce"):
        calm.prefer(reduced_motion=motion)
        calm.open(book, "day-2.html#day-2-step-3")
        calm.wait("document.querySelector('#here').textContent.startsWith('Step 3')")
        moved = calm.run("""scrollTo(0, document.getElementById("day-2-step-4").offsetTop - 100);
            return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(
                document.querySelector(".listing").getAnimations({subtree: true}).length))))""")
        assert bool(moved) == (motion == "no-preference")
        assert calm.wait("location.hash === '#day-2-step-4'")
        assert calm.run("return document.querySelector('#here').textContent") == "Step 4: What send does not take"
        calm.wait("!document.querySelector('.ghost')")
        assert shown(calm) == built("day02", 4)["server.c"]


def test_a_block_leads_to_its_lines(book, calm):
    """When its button is pressed; Escape leads back to that."""
    calm.open(book, "day-1.html#day-1-step-6")
    for block, file, line in ((2, "server.c", "static bool fail(int fd, const char *call)"),
                              (8, "common/die.c", "void complain(const char *format, ...)")):
        calm.run("document.querySelector('#day-1-step-6-%d button').click()" % block)
        assert calm.run("return document.querySelector('.tabs [aria-pressed=true]').firstChild.data") == file
        assert line in calm.run("return [...document.querySelectorAll('.focus')].map(row => row.textContent)")
        assert calm.run("""const row = document.querySelector(".focus").getBoundingClientRect(),
            box = document.querySelector(".listing").getBoundingClientRect();
            return row.top >= box.top && row.bottom < box.bottom && document.activeElement.className === "listing" """)
        calm.run("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
        assert calm.run("return document.activeElement.closest('.code').id") == "day-1-step-6-%d" % block


def test_a_name_leads_to_where_it_came_into_the_book(book, calm):
    calm.open(book, "day-3.html#day-3-step-3")
    links = calm.run("return [...document.querySelectorAll('.listing a, article a')]"
                     ".filter(a => /-step-\\d+-\\d+$/.test(a.hash)).map(a => [a.textContent, a.href])")
    assert len(links) > 100
    for name, link in sorted(set(map(tuple, links))):
        day, step, block = map(int, re.search(r"day-(\d)-step-(\d+)-(\d+)$", link).groups())
        change = DAYS["day%02d" % day][step - 1].changes[block - 1]
        word = re.search(r"\w+", name.removeprefix("struct "))[0]
        assert re.search(r"\b%s\b" % word, "\n".join(change.text) + "".join(change.name or "")), (name, link)
    assert any("day-1.html" in link for _, link in links) and any("day-3.html" in link for _, link in links)


# ---- Terminals

def test_a_session_can_be_played_and_copied(book, calm):
    calm.open(book, "day-1.html")
    figure = "document.querySelector('#day-1-step-5 .terminal')"
    button = figure + ".querySelectorAll('button')"
    before = calm.run("return %s.innerText" % figure)
    calm.run("navigator.clipboard.writeText = async text => { window.taken = text; }")
    calm.run("[...%s].find(each => each.textContent === 'Copy').click()" % button)
    block = next(block for block in CONSOLE if block.line > DAYS["day01"][4].line)
    commands = [action.text for action in sessions.actions(block) if action.what == "$"]
    assert calm.wait("window.taken").splitlines() == commands and len(commands) == 4
    calm.run("%s[1].click()" % button)  # terminal 1
    turns = "return [...%s.querySelectorAll('.turn')].map(turn => turn.checkVisibility())" % figure
    assert calm.run(turns)[:2] == [True, False]
    calm.run("%s[0].click()" % button)
    calm.run("document.querySelector('#day-1-step-5 .play').click()")
    hidden = "%s.querySelectorAll('.unseen').length" % figure
    seen = calm.run("return " + hidden)
    assert seen > 5
    calm.wait(hidden + " < %d" % seen)
    calm.wait(hidden + " === 0")
    assert calm.wait("%s.innerText === arguments[0]" % figure, before)


def test_a_terminal_shows_what_was_seen(tmp_path):
    """If that is much, its ends and what the notes show of it. Where nothing was seen, what the notes have, and it
    says so."""
    block = next(block for block in CONSOLE if "make diff-day01 STEP=8" in "\n".join(block.text))
    lines = ["line %d" % i for i in range(100)] + ["+static void open_listener(void)"] + ["the end"]
    sessions.keep(tmp_path, block, ["\n".join(lines) + "\n"], "Linux 1.2")
    text = (make_book(tmp_path / "book", BUILD=str(tmp_path)) / "day-1.html").read_text()
    seen = re.search(r"<figcaption>as printed by Linux 1.2</figcaption>.*?</figure>", text, re.S)[0]
    assert re.search("line 0\nline 1\nline 2\n… 95 lines …\nline 98\nline 99\n.*open_listener.*\nthe end<", seen)
    others = sum(block.line in range(*(DAYS[day][0].line for day in ("day01", "day02"))) for block in CONSOLE) - 1
    assert text.count(">as printed by") == 1 and text.count(">as in the notes<") >= others > 20
    assert "After <code>make test-book</code>" in text


# ---- For everybody

@pytest.mark.parametrize("page", PAGES)
def test_without_javascript_all_of_it_is_there(page, book, calm):
    """Every block of code and every session can be seen, and nothing that does not work."""
    calm.devtools("Emulation.setScriptExecutionDisabled", value=True)
    try:
        calm.open(book, page + ".html")
        calm.run("for (const each of document.querySelectorAll('details')) each.open = true")
        calm.run("seen = query => [...document.querySelectorAll(query)].map(each => each.checkVisibility())")
        assert False not in calm.run("return seen('pre, .turn, .turn > *, svg, table')")
        assert True not in calm.run("return seen('button, .pane')")
        text = calm.run("return document.querySelector('article').textContent")
        if page.startswith("day-"):
            for step in DAYS["day0" + page[4]]:
                for change in step.changes:
                    if change.how != "sentence":
                        assert "\n".join(change.text) in text, change.line
    finally:
        calm.devtools("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("page", PAGES)
def test_a_narrow_screen_has_one_column(page, book, calm):
    calm.size((360, 740))
    calm.open(book, page + ".html")
    assert calm.run("return document.documentElement.scrollWidth") <= 360
    assert calm.run("return [...document.querySelectorAll('.code pre')].every(pre => pre.checkVisibility())")
    assert not calm.run("return document.querySelector('.pane')?.checkVisibility()")


CONTRAST = """
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true}), known = {};
    const lightness = colours => known[colours] ??= (() => { /* of colours that lie one on the other */
        for (canvas.fillStyle of ["white", ...colours])
            canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(
            c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    })();
    const behind = element => element ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : [];
    const found = new Set(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !element.checkVisibility({opacityProperty: true}) ||
                element.closest("script, svg, :disabled"))
            continue;
        const under = behind(element), a = lightness(under), b = lightness([...under, getComputedStyle(element).color]);
        if (Math.max(a, b) / Math.min(a, b) < 4.5)
            found.add(element.outerHTML.slice(0, 100) + " " + Math.max(a, b) / Math.min(a, b));
    }
    return [...found]"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(scheme, book, calm):
    """At least 4.5 to 1, as WCAG AA has it, in the differences and in the terminals, too."""
    calm.prefer(color_scheme=scheme)
    for page in PAGES:
        calm.open(book, page + (".html#day-%s-step-3" % page[4] if page.startswith("day-") else ".html"))
        calm.run("for (const each of document.querySelectorAll('details')) each.open = true")
        assert calm.run(CONTRAST) == [], page
        if page.startswith("day-"):
            calm.run(MODE, 0)
            assert calm.run(CONTRAST) == [], page


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_links_lead_somewhere_and_headings_are_in_order(book):
    pages = {path.name: Elements(path.read_text()).found for path in book.glob("*.html")}
    ids = {name: [attributes["id"] for _, attributes in found if "id" in attributes] for name, found in pages.items()}
    assert sorted(pages) == sorted(page + ".html" for page in PAGES)
    for name, found in pages.items():
        assert len(set(ids[name])) == len(ids[name]), name
        for tag, attributes in found:
            page, _, anchor = attributes.get("href", "").partition("#")
            if tag == "a" and not re.match(r"https?:|\.\./", page):
                assert not anchor or anchor in ids[page or name], (name, attributes["href"])
                assert not page or page in ids, (name, page)
            assert tag != "img" or attributes["alt"] and (book / attributes["src"]).exists()
        levels = [int(tag[1]) for tag, _ in found if re.match(r"h[1-6]$", tag)]
        assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:])), name
        assert {"header", "main", "nav", "footer"} <= {tag for tag, _ in found}
    for day, found in DAYS.items():
        name = "day-%d" % int(day[3:])
        assert [each for each in ids[name + ".html"] if re.fullmatch(name + r"-step-\d+", each)] == [
            "%s-step-%d" % (name, step.number) for step in found]


def test_a_reader_changes_the_language_at_any_step(tmp_path, calm):
    """With a second edition, which here is the first one again."""
    site = tmp_path / "book"
    shutil.copy(ROOT / "NOTES.md", tmp_path / "NOTES.xx.md")
    make_book(site, "xx", "Another", tmp_path / "NOTES.xx.md")
    calm.open(site, "day-4.html#day-4-step-6")
    calm.wait("document.querySelector('#here').textContent.startsWith('Step 6')")
    for folder, name in (("xx/", "Another"), ("", "English")):
        calm.run("document.querySelector('.languages a').click()")
        calm.wait("location.href.endsWith(arguments[0])", "book/%sday-4.html#day-4-step-6" % folder)
        calm.wait("document.querySelector('#here')?.textContent.startsWith('Step 6')")
        assert shown(calm) in built("day04", 6).values(), name
        assert calm.logged("browser") == []


# ---- Pictures

@pytest.mark.parametrize("name, size, scheme, page", [
    ("wide", WIDE, "light", "day-2.html#day-2-step-4-11"), ("wide-dark", WIDE, "dark", "day-3.html#day-3-step-5-4"),
    ("narrow", NARROW, "light", "day-1.html#day-1-step-5"), ("narrow-dark", NARROW, "dark", "day-5.html#day-5-step-7"),
    ("opening", WIDE, "light", "index.html"), ("figures", WIDE, "dark", "measured.html"),
    ("page", (1200, 750), "light", "day-2.html#day-2-step-4-11")])  # the last is the one that README shows
def test_pictures_for_those_who_look(name, size, scheme, page, book, calm):
    calm.size(size)
    calm.prefer(color_scheme=scheme)
    calm.open(book, page)
    calm.picture(name)
    assert (BUILD / "book-shots" / (name + ".png")).stat().st_size > 10_000
