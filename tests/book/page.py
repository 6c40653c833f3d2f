#!/usr/bin/env python3
"""Makes the site of the book: the notes, and next to them the files as they stand at the step that is being read.

    page.py [FOLDER [LANGUAGE NAME FILE]]    write it there (build/book), with another edition of the notes

A page is a chapter of the notes (a heading ##), and a section of it a step (###). A block of code stays where the notes
have it. On a wide screen page.js shows the whole file in a second column instead; for that the page of a day carries
its steps as edits: which lines go, which come, and which block of the notes says so. A terminal shows what the test saw
that typed the block last (sessions.py), or else what the notes have.

Editions in other languages have the same headings and the same blocks in the same order as the first, and take the
names of the sections from it, so that a reader can change over anywhere.
"""

import difflib
import functools
import html
import itertools
import json
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

import sessions
import steps

try:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from pygments.lexers import CLexer
    from pygments.token import Comment, Keyword, Number, String
except ImportError:
    if __name__ != "__main__":
        raise
    if sys.executable != "/usr/bin/python3" and os.path.exists("/usr/bin/python3"):  # where Debian's packages are
        os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])
    sys.exit("book: please install markdown-it and pygments "
             "(Debian: sudo apt-get install python3-markdown-it python3-pygments)")

ROOT, BOOK = steps.ROOT, Path(__file__).resolve().parent
BUILD = ROOT / os.environ.get("BUILD", "build")
SOURCE = os.environ.get("SOURCE", "../../")  # where links to our files lead: to a forge, where the site is published

EDITIONS = [("en", "English", "NOTES.md"), ("zh-Hans", "中文", "NOTES.zh.md")]

# Chapters that share a page, or whose page has a shorter name than their heading.
PAGES = {"how-to-read": "index", "words": "index", "a-connection-seen-from-both-ends": "connection",
         "measured-side-by-side": "measured", "what-comes-after": "after", "references": "after"}

WORDS = {"en": {
    "contents": "Contents", "prev": "Previous", "next": "Next", "language": "Language", "skip": "Skip to the text",
    "beside": "The code at this step", "file": "The file", "whole": "Whole file", "step": "This step",
    "day": "Since yesterday", "same": "This step leaves the file as it is.", "lines": "Show in the file",
    "none": "There is no code yet. From step 1 on the files stand here, with the new lines of the step that you are "
            "reading marked. “This step” also shows the lines that go; the button at a caption leads to its lines.",
    "here": "A link to here", "drawing": "A drawing of what the text says", "session": "A session", "every": "All",
    "terminal": "Terminal", "play": "Play", "rest": "Show all", "copy": "Copy", "copied": "Copied", "key": "Ctrl-%s",
    "more": "… %d lines …", "notes": "as in the notes", "seen": "as printed by %s",
    "recorded": "After <code>make test-book</code>, <code>make book</code> shows in all terminals what your own machine "
                "printed.",
    "reference": r"\b(?:day (\d),? )?steps? (\d+)",
}}

escape = functools.partial(html.escape, quote=False)


def slug(heading):
    """The anchor that a forge makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def name_of(day, step=None, block=None):  # day-3-step-4-1
    return "day-" + day[4:] + ("-step-%d" % step if step else "") + ("-%d" % block if block else "")


# ---- Code: coloured line by line, and the names in it

KINDS = [(Comment.PreprocFile, "s"), (Comment.Preproc, "k"), (Comment, "c"), (Keyword, "k"), (String, "s"),
         (Number, "s")]
TAGS = {"k": "b", "c": "i", "s": "c-"}
WORD = re.compile(r"\w+")
LEXER = CLexer(stripnl=False, ensurenl=False)


@functools.cache
def coloured(text, names=frozenset()):
    """The lines of a file as HTML, in which @kint$ stands for a keyword and @adrop$ for a name."""
    result, before = [], ""
    for kind, value in LEXER.get_tokens(text):
        mark = next((mark for of, mark in KINDS if kind in of), "")
        if not mark and value in names and not before.endswith((".", "->")):
            mark = "a"
        value = escape(value).replace("@", "&#64;").replace("$", "&#36;")
        result.append(re.sub(r"[^\n]*\S[^\n]*", r"@%s\g<0>$" % mark, value) if mark else value)
        before = value
    return "".join(result).replace("$@k", "").split("\n")


def in_html(line):
    line = re.sub(r"@a(.*?)\$", r"\1", line)
    return re.sub(r"@(.)(.*?)\$", lambda mark: "<{0}>{1}</{0}>".format(TAGS[mark[1]], mark[2]), line)


DEFINITIONS = [re.compile(shape, re.M) for shape in (
    r"^[a-z][\w *]*?\b(\w+)\(", r"^#define (\w+)", r"^(?:static |const )*(?:struct|enum|union) (\w+) \{", r"^\} (\w+)",
    r"^(?!enum|typedef)[a-z][^()=;{\n]*?\b(\w+)(?:\[[^]\n]*\])*(?: =|,|;)",
    r"\b([A-Z][A-Z_]+)(?= =|,|$| \})")]  # the last one in an enum


@functools.cache
def defined(text):
    found = set()
    for piece in steps.pieces(re.sub(r"/\*.*?\*/", "", text, flags=re.S)):
        for shape in DEFINITIONS if piece.startswith("enum") else DEFINITIONS[:-1]:
            found.update(shape.findall(piece))
    return found - {"main"}


def program(file):
    return file if file in (*steps.ALONE, "herd.c") else "server"


# ---- The days: their steps as edits, and where each name comes from

def differences(old, new):
    """[(i1, i2, j1, j2), …]: old[i1:i2] has become new[j1:j2]. A definition that comes does not begin with the
    brace of the one before it."""
    found = difflib.SequenceMatcher(None, old, new, False).get_opcodes()
    found = [code[1:] for code in found if code[0] != "equal"]
    for (i1, i2, j1, j2), (_, _, end, _) in zip(found, [*found[1:], (0, 0, len(new), 0)]):
        while i1 == i2 and "" in new[j1:j2] and j2 < end and new[j1] == new[j2] and new[j1] and new[j1 - 1]:
            i1, i2, j1, j2 = i1 + 1, i2 + 1, j1 + 1, j2 + 1
        yield i1, i2, j1, j2


class Days:
    def __init__(self):
        self.steps = steps.read(ROOT / EDITIONS[0][2])
        self.places = {}  # (program, name): [(day, step, block), …], each time that it is new
        self.files = {}  # (day, step): {file: text}
        self.edits = {}  # (day, step): {file: [(at, how many lines go, block, the lines that come), …]}
        for day in sorted(self.steps):
            for number in range(len(self.steps[day]) + 1):
                self.do(day, number)

    def do(self, day, number):
        """One step, block by block, so that each line of it has the block that brought it."""
        files = dict(self.files[day, number - 1]) if number else {}
        after = {file: [(text, at, 0) for at, text in enumerate(whole[:-1].split("\n"))]
                 for file, whole in files.items()}
        sizes, gone = {file: len(lines) for file, lines in after.items()}, {}
        for block, change in enumerate(self.steps[day][number - 1].changes, 1) if number else []:
            before = dict(files)
            steps.apply(files, change)
            for file in files:
                if files[file] != before.get(file):
                    after[file] = self.change(after.get(file, []), files[file][:-1].split("\n"), file, block, gone)
            for each in self.names(files) - self.names(before):
                self.places.setdefault(each, []).append((day, number, block))
        if not number:
            files = steps.build(self.steps, day, 0)
            after = {file: [(text, None, 0) for text in whole[:-1].split("\n")]
                     for file, whole in files.items()}
        self.files[day, number] = files
        edits = {file: self.edit(file, sizes.get(file, 0), lines, gone) for file, lines in after.items()}
        self.edits[day, number] = {file: found for file, found in edits.items() if found}

    @staticmethod
    def names(files):
        return {(program(file), name) for file, text in files.items() for name in defined(text)}

    @staticmethod
    def change(old, new, file, block, gone):
        """The lines after a block: (text, place before the step or None, the block that brought it)."""
        result, last = [], 0
        for i1, i2, j1, j2 in differences([text for text, _, _ in old], new):
            result += old[last:i1] + [(text, None, block) for text in new[j1:j2]]
            gone.update({(file, place): block for _, place, _ in old[i1:i2]})
            last = i2
        return result + old[last:]

    @staticmethod
    def edit(file, size, lines, gone):
        """What leads to these lines: those with no place come, and where a place is missing, one has gone."""
        edits, at, run = [], 0, None
        for text, place, block in [*lines, ("", size, 0)]:
            if place is None:
                if run != block:
                    edits.append((at, 0, run := block, []))
                edits[-1][3].append(text)
                continue
            if place > at:
                edits.append((at, place - at, gone.get((file, at), 0), []))
            at, run = place + 1, None
        return edits

    @functools.cache
    def known(self, of, day, step):
        """{name: where it came into the book}, for a program as it is at a step. The last time counts."""
        return {name: place for (program_of, name), places in self.places.items() if program_of == of
                for place in places if place[:2] <= (day, step)}

    def coloured(self, file, day, step):
        """{line: HTML} of a file as it stands after a step."""
        text = self.files[day, step].get(file, "")
        names = frozenset(WORD.findall(text)).intersection(self.known(program(file), day, step))
        return dict(zip(text.split("\n"), coloured(text, names)))


# ---- An edition: its sections

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")


class Section:
    page, id, day, step = "index", "", None, 0

    def __init__(self, level, heading):
        self.level, self.title, self.tokens = level, heading, []
        self.blocks = []  # for each block of code the number of its change in the step, or None
        self.sentences = {}  # the line of a change that is a sentence: its number

    def name(self, before, days):
        """Finds out what page and section are called, and at which step the reader is."""
        self.id = slug(self.title.content)
        self.page, self.day = (before.page, before.day) if before else ("index", None)
        if self.level == 2:
            day = re.match(r"Day (\d)", self.title.content)
            self.day = day and "day0" + day[1]
            self.page = "day-" + day[1] if day else PAGES.get(self.id, self.id)
            self.id = self.page if day else self.id
        elif self.day:
            step = re.match(r"Step (\d+)", self.title.content)
            self.step = int(step[1]) if step else len(days.steps[self.day]) if before.step else 0
            self.id = name_of(self.day, self.step) if step else self.page + "-" + self.id
            changes = days.steps[self.day][self.step - 1].changes if step else []
            numbers = {change.line: number for number, change in enumerate(changes, 1)}
            self.blocks = [numbers.get(token.map[0] + 1) for token in self.tokens if token.info in ("c", "diff")]
            self.sentences = {line: number for line, number in numbers.items()
                              if changes[number - 1].how == "sentence"}

    def shape(self):
        """What is the same in all editions: the level, and how many blocks of code there are."""
        return self.level, [token.info for token in self.tokens if token.info in ("c", "diff")]


class Edition:
    def __init__(self, language, name, file, days, first=None):
        self.language, self.name, self.days, self.folder = language, name, days, language + "/" if first else ""
        self.words = WORDS.get(language, WORDS["en"])
        self.sections, self.pages, self.anchors = [], {}, {}
        tokens = MARKDOWN.parse((ROOT / file).read_text())
        for at, token in enumerate(tokens):
            if token.type == "heading_open":
                self.sections.append(Section(int(token.tag[1]), tokens[at + 1]))
            elif token.type != "heading_close" and tokens[at - 1].type != "heading_open":
                self.sections[-1].tokens.append(token)
        for mine, theirs in itertools.zip_longest(self.sections, first.sections) if first else ():
            if not mine or not theirs or mine.shape() != theirs.shape():
                sys.exit("book: %s: from here on its headings and blocks are not those of %s: %s" % (
                    file, EDITIONS[0][2], (mine or theirs).title.content))
        for number, section in enumerate(self.sections):
            section.name(self.sections[number - 1] if number else None, days)
            for what in ("page", "id", "day", "step", "blocks") if first else ():
                setattr(section, what, getattr(first.sections[number], what))
            self.pages.setdefault(section.page, []).append(section)
            self.anchors.setdefault(slug(section.title.content), section)


# ---- A page

def raw(text):
    return Token("html_block", "", 0, content=text)


class Page:
    def __init__(self, edition, name, target):
        self.edition, self.name, self.target = edition, name, target
        self.words, self.days, self.sections = edition.words, edition.days, edition.pages[name]
        self.day, self.root = self.sections[0].day, "../" if edition.folder else ""
        self.section, self.linked, self.explorables, self.from_the_notes = None, set(), [], False

    def address(self, page, anchor):
        return ("" if page == self.name else page + ".html") + "#" + anchor

    def of_place(self, place):
        return self.address(name_of(place[0]), name_of(*place))

    # ---- Text

    def text(self, section):
        """A section's tokens as HTML."""
        self.section, self.linked, result, blocks = section, set(), [], iter(section.blocks)
        tokens = list(section.tokens)
        while tokens:
            token = tokens.pop(0)
            if token.type == "paragraph_open":
                if re.match(r"`[\w/]+\.[ch]`", tokens[0].content) and tokens[2].info in ("c", "diff"):
                    token = raw(self.code(tokens[2], next(blocks), self.inline(tokens[0])))
                    del tokens[:3]
                for line in range(token.map[0] + 1, token.map[1] + 1) if token.map else ():
                    if block := section.sentences.get(line):
                        token.attrs = {"class": "code", "id": "%s-%d" % (section.id, block)}
            elif token.type == "inline":
                self.inline(token)
            elif token.type in ("table_open", "table_close"):
                token = raw('<div class="table"><table>' if token.nesting > 0 else "</table></div>")
            elif token.type == "html_block":
                token = raw(re.sub(r"<!-- explore: (\w+) -->", self.explorable, token.content))
            elif token.type == "fence":
                token = raw(self.session(token.content[:-1].split("\n")) if token.info == "console" else
                            self.code(token, next(blocks), "") if token.info else self.drawing(token.content))
            result.append(token)
        return MARKDOWN.renderer.render(result, MARKDOWN.options, {})

    def inline(self, token):
        """Makes links in a line of text; returns it as HTML."""
        depth = 0
        for each in token.children:
            depth += each.nesting if each.type.startswith("link") else 0
            if each.type == "link_open":
                each.attrs["href"] = self.link(each.attrs["href"])
            elif each.type == "image":
                each.type, each.content = "html_inline", self.image(each.attrs["src"], each.content)
            elif each.type == "code_inline" and not depth and (place := self.place(each.content)):
                each.type = "html_inline"
                each.content = '<a href="%s"><code>%s</code></a>' % (self.of_place(place), escape(each.content))
            elif each.type == "text" and not depth and self.day:
                each.type = "html_inline"
                each.content = re.sub(self.words["reference"], self.reference, escape(each.content))
        return MARKDOWN.renderer.renderInline(token.children, MARKDOWN.options, {})

    def link(self, target):
        if target[:1] == "#" and (section := self.edition.anchors.get(target[1:])):
            return self.address(section.page, section.id)
        here = self.root if SOURCE.startswith(".") else ""
        return target if re.match(r"\w+:|#", target) else here + SOURCE + target

    def image(self, source, alt):
        shutil.copy(ROOT / source, self.target)
        sizes = re.findall(r'(?:width|height)="([\d.]+)pt"', (ROOT / source).read_text())
        return '<img src="%s" width="%d" height="%d" alt="%s" loading="lazy">' % (
            self.root + Path(source).name, *(float(size) * 4 / 3 for size in sizes), html.escape(alt))

    def place(self, code):
        """Where a name came into the book, the first time that a section has it."""
        name = re.fullmatch(r"(?:struct )?(\w+)(?:\(\))?", code)
        if not self.day or not name or name[1] in self.linked:
            return None
        self.linked.add(name[1])
        step = self.day, self.section.step
        found = [self.days.known(of, *step).get(name[1]) for of in [*map(program, self.days.edits[step]), "server"]]
        return next(filter(None, found), None)

    def reference(self, found):
        day = "day0" + (found[1] or self.day[4:])
        if int(found[2]) > len(self.days.steps.get(day, ())):
            return found[0]
        return '<a href="%s">%s</a>' % (self.address(name_of(day), name_of(day, int(found[2]))), found[0])

    @staticmethod
    def title(section):
        return MARKDOWN.renderer.renderInline(section.title.children, MARKDOWN.options, {})

    def drawing(self, text):
        role = 'role="img" aria-label="%s"' % self.words["drawing"] if text.startswith("   ") else ""
        text = textwrap.dedent(text)
        columns = max(map(len, text.split("\n")))
        return '<pre class="drawing" style="--columns: %d" %s>%s</pre>\n' % (columns, role, escape(text))

    def explorable(self, found):
        self.explorables.append(found[1])
        still = (BOOK / "explore" / (found[1] + ".svg")).read_text()
        return '<figure class="explore" data-explore="%s">%s</figure>' % (found[1], still)

    # ---- Code

    def code(self, token, number, caption):
        """A block of code, in the colours that its lines have in the file."""
        lines, result, come, go = token.content[:-1].split("\n"), [], 0, 0
        colours = dict(zip(lines, coloured(token.content)))
        if number:
            file, step = self.days.steps[self.day][self.section.step - 1].changes[number - 1].file, self.section.step
            colours = {**self.days.coloured(file, self.day, step - 1), **self.days.coloured(file, self.day, step)}
        for line in lines:
            sign, line = (line[:1], line[1:]) if token.info == "diff" else ("", line)
            come, go = come + (sign in ("+", "")), go + (sign == "-")
            line = sign + in_html(colours.get(line, escape(line))) + "\n"
            result.append({"+": "<ins>%s</ins>", "-": "<del>%s</del>"}.get(sign, "%s") % line)
        pre = "<pre><code>%s</code></pre>" % "".join(result)
        return pre if not number else (
            '<figure class="code" id="%s-%d"><figcaption>%s <small>+%d%s</small></figcaption>%s</figure>\n' % (
                self.section.id, number, caption, come, " −%d" % go if go else "", pre))

    def data(self):
        """What page.js makes the files of: the steps as edits, and where each name came into the book."""
        found, names = [], {}
        for step in range(len(self.days.steps[self.day]) + 1):
            found.append({})
            for file, edits in self.days.edits[self.day, step].items():
                colours = self.days.coloured(file, self.day, step)
                found[-1][file] = [(at, gone, block, *(["\n".join(colours[line] for line in come)] if come else ()))
                                   for at, gone, block, come in edits]
                known = self.days.known(program(file), self.day, step)
                names.setdefault(program(file), {}).update((name, self.of_place(known[name])) for name in known)
        return {"steps": found, "names": names}

    # ---- Sessions

    def session(self, text):
        """What is typed into which terminal, and what comes of it, as HTML."""
        doing = sessions.actions(sessions.Block(self.name, "console", 0, text, ""))
        system, saw = sessions.recall(BUILD, text)
        self.from_the_notes = self.from_the_notes or not system
        result, last = [], None
        for number, action in enumerate(doing):
            came = "\n".join(action.expected).strip("\n") if not system else sessions.shorten(
                saw[number], action.expected, self.words["more"])
            if action.terminal != last:
                result.append('</div><div class="turn" data-terminal="%d">' % (last := action.terminal))
            if action.what != ":":
                shape = {"$": '<p class="command">$ <kbd>%s</kbd></p>', ">": "<p>&gt; <kbd>%s</kbd></p>"}.get(
                    action.what, '<p><kbd class="key">%s</kbd></p>')
                result.append(shape % escape(action.text or self.words["key"] % action.what))
            if came.strip():
                table = ' class="table"' if re.search(r"\S {3,}\S", came) else ""
                result.append("<samp%s>%s</samp>" % (table, escape(came)))
        return ('<figure class="terminal" aria-label="%s"><figcaption>%s</figcaption>'
                '<div class="screen">%s</div></div></figure>\n') % (
                    self.words["session"], self.words["seen"] % system if system else self.words["notes"],
                    "".join(result)[6:])

    # ---- All of it

    def contents(self):
        items = []
        for name, sections in self.edition.pages.items():
            links = ['<li><a href="%s">%s</a>' % (self.address(name, section.id), self.title(section))
                     for section in sections]
            items.append("%s<ol>%s</ol>" % (links[0], "".join(links[1:])))
        return '<nav aria-label="%s"><ol class="contents">%s</ol></nav>' % (self.words["contents"], "".join(items))

    def body(self):
        result = []
        for section in self.sections:
            tag = "h%d" % (1 if section is self.sections[0] else max(section.level - self.sections[0].level + 1, 2))
            result.append('<section id="{0}" data-step="{1}" aria-labelledby="{0}-title">\n<{2} id="{0}-title">{3} '
                          '<a class="here" href="#{0}" aria-label="{4}">#</a></{2}>\n{5}</section>\n'.format(
                              section.id, section.step, tag, self.title(section), self.words["here"],
                              self.text(section)))
        if self.name == "index":
            result.insert(1, self.contents())
        return "".join(result)

    def html(self, editions):
        words, body, names = self.words, self.body(), list(self.edition.pages)
        script = '<script type="application/json" id="page-%s">%s</script>\n'
        data = {"words": words, "steps": self.data()} if self.day else {"words": words}
        turns = [(kind, names[at], self.title(self.edition.pages[names[at]][0])) for kind, at in (
            ("prev", names.index(self.name) - 1), ("next", names.index(self.name) + 1)) if 0 <= at < len(names)]
        others = "".join('<a href="{0}{1.folder}{2}.html" lang="{1.language}" hreflang="{1.language}">{1.name}</a>'.format(
            self.root, other, self.name) for other in editions if other is not self.edition)
        return (BOOK / "page.html").read_text().format(
            **words, code=self.edition.language, kind="day" if self.day else "plain", root=self.root, body=body,
            toc=self.contents(), chapter=self.title(self.sections[0]), book=self.title(self.edition.sections[0]),
            arrows="".join('<a class="%s" rel="%s" href="%s.html" title="%s: %s">%s</a>' % (
                kind, kind, name, words[kind], title, "‹" if kind == "prev" else "›") for kind, name, title in turns),
            languages='<nav class="languages" aria-label="%s">%s</nav>' % (words["language"], others) if others else "",
            foot="".join('<a rel="%s" href="%s.html">%s</a>' % turn for turn in turns),
            note='<p class="note">%s</p>' % words["recorded"] if self.from_the_notes else "",
            pane='<aside class="pane" aria-label="%s"></aside>' % words["beside"] if self.day else "",
            data="".join(script % (name, json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/"))
                         for name, value in data.items()),
            style='\n<link rel="stylesheet" href="%sexplore.css">' % self.root if self.explorables else "",
            scripts="".join('<script src="%s%s.js"></script>\n' % (self.root, name) for name in [
                "page", *(["explore"] if self.explorables else ()), *self.explorables]))


def main(target=BUILD / "book", editions=EDITIONS):
    target, days, made = Path(target), Days(), []
    for language, name, file in editions:
        if (ROOT / file).exists():
            made.append(Edition(language, name, file, days, made[0] if made else None))
    for edition in made:
        (target / edition.folder).mkdir(parents=True, exist_ok=True)
        for name in edition.pages:
            (target / edition.folder / (name + ".html")).write_text(Page(edition, name, target).html(made))
    for path in [BOOK / "page.css", BOOK / "page.js", *(BOOK / "explore").glob("*.[jc]s*")]:
        shutil.copy(path, target)
    print("the book is in %s/index.html" % target)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2], *([[EDITIONS[0], tuple(sys.argv[2:5])]] if sys.argv[2:] else []))
    except steps.Wrong as wrong:
        sys.exit("NOTES.md:%s" % wrong)
