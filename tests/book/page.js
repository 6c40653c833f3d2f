/* The files next to the text, as they stand at the step that is being read, and terminals that play. Without this
 * program the page has all of that as well: the code and the sessions stand where the notes have them. */
"use strict";

const find = (query, from = document) => from.querySelector(query);
const all = (query, from = document) => [...from.querySelectorAll(query)];
const data = name => JSON.parse(find("#page-" + name)?.textContent ?? "null");
const words = data("words"), book = data("steps");
const wide = matchMedia("(min-width: 67.5rem)"), calm = matchMedia("(prefers-reduced-motion: reduce)");

function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
}

const button = (text, onclick, title = "") => make("button", { type: "button", onclick, title }, text);

const press = (buttons, pressed) => [...buttons].forEach(each => each.setAttribute("aria-pressed", each === pressed));

/* ---- The files after each step ----------------------------------------------------------------- */

/* A line is one object for as long as it stands in the file: { html, step, block }, where it came from. An edit is
 * [at, how many lines go, the block that says so, the lines that come]. gone: the block that took a line away. */
function build(steps) {
    let files = {};
    return steps.map((edits, step) => {
        const gone = new Map();
        files = { ...files };
        for (const [file, list] of Object.entries(edits)) {
            const old = files[file] ?? [], lines = [];
            let from = 0;
            for (const [at, count, block, text] of list) {
                lines.push(...old.slice(from, at), ...text?.split("\n").map(html => ({ html, step, block })) ?? []);
                old.slice(at, at + count).forEach(line => gone.set(line, block));
                from = at + count;
            }
            files[file] = lines.concat(old.slice(from));
        }
        return { files, gone };
    });
}

/* The lines of both files as rows { line, sign }: "go" for those that have gone, "come" for those that are new. */
function compare(before, after) {
    const was = new Set(before), is = new Set(after), rows = [];
    let i = 0;
    for (const line of [...after, null]) {
        while (i < before.length && !is.has(before[i]))
            rows.push({ line: before[i++], sign: "go" });
        if (line)
            rows.push({ line, sign: was.has(line) ? "" : "come" });
        i += was.has(line);
    }
    return rows;
}

/* ---- The second column ------------------------------------------------------------------------- */

const states = book && build(book.steps);
const at = { section: null, step: 0, block: 0, file: undefined, mode: "whole" };
const listing = make("div", { className: "listing", tabIndex: 0, role: "region", ariaLabel: words.file });
const tabs = make("div", { className: "tabs" });

/* What is to be shown. null: some lines are left out here. */
function rows_to_show() {
    const since = states[at.mode === "day" ? 0 : Math.max(at.step - 1, 0)], now = states[at.step];
    const rows = compare(since.files[at.file] ?? [], now.files[at.file] ?? []);
    let number = 0;
    rows.forEach((row, i) => {
        const before = rows[i - 1], brought = row.line.step === at.step && row.line.block;
        row.focus = at.block > 0 && (row.sign === "go" ? now.gone.get(row.line) : brought) === at.block;
        row.now = row.sign === "come" && row.line.step === at.step;
        row.number = row.sign === "go" ? "" : ++number;
        if (at.mode === "whole" && before?.sign === "go" && row.sign !== "go") { /* the place where lines have gone */
            row.gap = true;
            row.focus ||= before.focus;
        }
    });
    if (at.mode === "whole")
        return rows.filter(row => row.sign !== "go");
    const near = new Set(rows.flatMap((row, i) => row.sign ? [-3, -2, -1, 0, 1, 2, 3].map(by => i + by) : []));
    return rows.flatMap((row, i) => near.has(i) ? [row] : near.has(i - 1) ? [null] : []);
}

/* In a line @k…$ is a keyword, @c…$ a comment, @s…$ a string or a number, @a…$ a name. */
function html_of(row) {
    if (!row)
        return '<div class="row">⋯</div>';
    const tags = { k: "b", c: "i", s: "c-" };
    const names = book.names[at.file] ?? book.names.server, kinds = ["now", "focus", "gap"].filter(kind => row[kind]);
    return `<div class="${["row", row.sign, ...kinds].join(" ")}" data-number="${row.number}">` +
        row.line.html.replace(/@(.)(.*?)\$/g, (_, kind, text) => kind === "a"
            ? `<a tabindex="-1" href="${names[text]}">${text}</a>` : `<${tags[kind]}>${text}</${tags[kind]}>`) + "</div>";
}

/* The rows that can be seen, with where they are. */
function in_sight() {
    const box = listing.getBoundingClientRect();
    return [...listing.children].map(element => ({ element, top: element.getBoundingClientRect().top }))
        .filter(({ element, top }) => element.line && top > box.top - 20 && top < box.bottom);
}

/* Shows the file, and scrolls it as little as it takes to see what has changed. */
function draw() {
    if (!states || !wide.matches)
        return;
    const same = listing.dataset.file === at.file, scrolled = same ? listing.scrollTop : 0;
    const before = new Map(in_sight().map(seen => [seen.element.line, seen])), rows = rows_to_show();
    listing.innerHTML = rows.map(html_of).join("") || `<p>${at.file ? words.same : words.none}</p>`;
    rows.forEach((row, i) => { listing.children[i].line = row?.line; });
    listing.dataset.file = at.file;
    listing.scrollTop = scrolled;
    const target = find(".focus", listing) ?? find(".now, .gap", listing), height = listing.clientHeight;
    if (target && (target.offsetTop < scrolled + height * 0.1 || target.offsetTop > scrolled + height * 0.6))
        listing.scrollTop = target.offsetTop - height * 0.25;
    if (same && !calm.matches)
        move(before);
    draw_tabs();
}

/* Lets what is in sight move from where it was: lines that come slide in, and lines that go leave. */
function move(before) {
    const time = { duration: 350, easing: "ease-out" }, box = listing.getBoundingClientRect(), top = listing.scrollTop;
    for (const { element, top: now } of in_sight()) {
        const by = before.get(element.line)?.top - now;
        before.delete(element.line);
        if (!(Math.abs(by) < box.height)) /* also if it was not in sight */
            element.animate([{ opacity: 0, transform: "translateX(-1.5rem)" }, { opacity: 1 }], time);
        else if (by)
            element.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], time);
    }
    for (const ghost of before.values()) {
        listing.append(ghost.element);
        ghost.element.className += " ghost";
        ghost.element.style.top = ghost.top - box.top + top + "px";
        ghost.element.animate([{ opacity: 1 }, { opacity: 0, transform: "translateX(1.5rem)" }], time)
            .onfinish = () => ghost.element.remove();
    }
}

function draw_tabs() {
    const { files } = states[at.step], before = states[Math.max(at.step - 1, 0)].files;
    tabs.replaceChildren(...Object.keys(files).map(file => {
        const tab = button(file, () => { at.file = file; draw(); }), rows = compare(before[file] ?? [], files[file]);
        const [come, go] = ["come", "go"].map(sign => rows.filter(row => row.sign === sign).length);
        if (come + go)
            tab.append(" ", make("small", {}, `+${come}` + (go ? ` −${go}` : "")));
        return tab;
    }));
    press(tabs.children, [...tabs.children].find(tab => tab.firstChild.data === at.file));
}

function set_up_column() {
    const modes = ["step", "whole", ...find("section").id === "day-1" ? [] : ["day"]].map(mode => button(words[mode], event => {
        at.mode = mode;
        press(modes, event.currentTarget);
        draw();
    }));
    press(modes, modes[1]);
    find(".pane").append(make("div", { className: "bar" }, tabs, make("div", { className: "modes" }, ...modes)), listing);
    for (const size of all(".code small")) {
        const show = button(size.textContent, () => {
            hold(show.closest(".code"));
            listing.onkeydown = event => event.key === "Escape" && show.focus();
            listing.focus();
        }, words.lines);
        size.before(show);
    }
}

/* ---- Where the reader is ----------------------------------------------------------------------- */

const stops = all("section, .code"), title = section => find("h1, h2, h3", section).textContent.replace(/ #$/, "");
let held = null; /* where the page stood when a place was chosen, which holds until the reader scrolls on */

/* The last section or block whose beginning has come up to the reading line. */
function follow() {
    if (held !== null && Math.abs(held - scrollY) < 4)
        return;
    held = null;
    arrive(stops.findLast(stop => stop.getClientRects().length && stop.getBoundingClientRect().top < innerHeight * 0.3) ?? stops[0]);
}

const hold = stop => { held = scrollY; arrive(stop); };

function arrive(stop) {
    const section = stop.closest("section"), step = +section.dataset.step, block = stop === section ? 0 : +/\d+$/.exec(stop.id);
    if (section === at.section && block === at.block)
        return;
    const edits = Object.entries(step && book.steps[step]), files = states?.[step].files ?? {};
    if (section !== at.section) {
        enter(section);
        at.file = edits[0]?.[0] ?? (at.file in files ? at.file : Object.keys(files)[0]);
    }
    at.file = edits.find(([, list]) => list.some(edit => edit[2] === block))?.[0] ?? at.file;
    Object.assign(at, { section, step, block });
    for (const each of all(".code"))
        each.classList.toggle("here", each === stop);
    draw();
}

/* The address, the heading above, previous and next, and the other languages go with the reader. */
function enter(section) {
    const sections = all("section"), here = sections.indexOf(section);
    if (held === null && at.section)
        history.replaceState(null, "", "#" + section.id);
    find("#here").textContent = here ? title(section) : "";
    for (const link of all(".turns a")) {
        const there = sections[here + (link.rel === "prev" ? -1 : 1)];
        link.page ??= [link.getAttribute("href"), link.title];
        [link.href, link.title] = there ? ["#" + there.id, `${words[link.rel]}: ${title(there)}`] : link.page;
    }
    for (const link of all(".languages a"))
        link.hash = section.id;
    for (const link of all(".toc a"))
        link.classList.toggle("current", link.hash === "#" + section.id && link.pathname === location.pathname);
}

function go_to_hash() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target)
        hold(target.closest(".code, section") ?? stops[0]);
}

/* ---- Terminals --------------------------------------------------------------------------------- */

function set_up_terminal(figure) {
    const turns = all(".turn", figure), numbers = new Set(turns.map(turn => turn.dataset.terminal).sort());
    const tabs = (numbers.size > 1 ? ["", ...numbers] : []).map(number => button(number || words.every, event => {
        stop();
        turns.forEach(turn => { turn.hidden = number && turn.dataset.terminal !== number; });
        press(tabs, event.currentTarget);
    }));
    tabs.slice(1).forEach(tab => tab.prepend(make("span", {}, words.terminal + " ")));
    press(tabs, tabs[0]);

    let run = null; /* the present one, while it plays */
    const texts = new Map(all("kbd", figure).map(typed => [typed, typed.textContent]));
    const stop = () => {
        run = null;
        all(".unseen", figure).forEach(each => each.classList.remove("unseen"));
        texts.forEach((text, typed) => { typed.textContent = text; });
        play.textContent = words.play;
    };
    const play = button(words.play, async () => {
        if (run)
            return stop();
        const mine = run = {}, parts = turns.filter(turn => !turn.hidden).flatMap(turn => [...turn.children]);
        const pause = time => new Promise(done => setTimeout(done, time));
        play.textContent = words.rest;
        [...turns, ...parts].forEach(each => each.classList.add("unseen"));
        for (const part of parts) {
            const typed = find("kbd", part), text = texts.get(typed) ?? "";
            part.classList.remove("unseen");
            part.parentNode.classList.remove("unseen");
            for (let i = 1; i <= text.length && !calm.matches && run === mine; i++) {
                typed.textContent = text.slice(0, i);
                await pause(Math.min(35, 1500 / text.length));
            }
            await pause(typed ? 400 : 900);
            if (run !== mine)
                return;
        }
        stop();
    });
    const copy = button(words.copy, async () => {
        const commands = all(".turn:not([hidden]) .command kbd", figure).map(each => texts.get(each) + "\n");
        await navigator.clipboard.writeText(commands.join(""));
        copy.textContent = words.copied;
        setTimeout(() => { copy.textContent = words.copy; }, 1500);
    });
    play.className = "play";
    find("figcaption", figure).prepend(make("span", { className: "tools" }, ...tabs, play, copy));
}

/* ---- From the beginning ------------------------------------------------------------------------ */

const toc = find(".toc");
all("pre, .table, .screen").forEach(wide => { wide.tabIndex = 0; }); /* so that the keyboard scrolls them */
all(".terminal").forEach(set_up_terminal);
if (states)
    set_up_column();
follow();
wide.onchange = draw;
addEventListener("scroll", follow);
addEventListener("load", go_to_hash);
addEventListener("hashchange", go_to_hash);
addEventListener("click", event => { toc.open &&= Boolean(event.target.closest("summary")); });
addEventListener("keydown", event => { toc.open &&= event.key !== "Escape"; });
