/* The files beside the text: they are shown as they stand at the step that is being read, and change while the
 * reader scrolls. And terminals that play. Without this program the page has all of it as well: the code and the
 * sessions stand where the notes have them. */
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

function press(buttons, pressed) {
    for (const each of buttons)
        each.setAttribute("aria-pressed", each === pressed);
}

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
const listing = make("div", { className: "listing", tabIndex: 0 }), tabs = make("div", { className: "tabs" });

/* What is to be shown. null: some lines are left out here. */
function rows_to_show() {
    const since = states[at.mode === "day" ? 0 : Math.max(at.step - 1, 0)], now = states[at.step];
    const rows = compare(since.files[at.file] ?? [], now.files[at.file] ?? []);
    let number = 0;
    rows.forEach((row, i) => {
        const before = rows[i - 1], brought = row.line.step === at.step && row.line.block;
        row.focus = at.block > 0 && (row.sign === "go" ? now.gone.get(row.line) : brought) === at.block;
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

function html_of(row) {
    const names = book.names[at.file] ?? book.names.server, { line, sign, number, focus, gap } = row ?? {};
    if (!row)
        return '<div class="row">⋯</div>';
    return `<div class="row ${sign}${focus ? " focus" : ""}${gap ? " gap" : ""}" data-number="${number}">` +
        line.html.replace(/«(.)(.*?)»/g, (_, kind, text) => kind === "a"
            ? `<a tabindex="-1" href="${address(names[text])}">${text}</a>` : `<c- ${kind}>${text}</c->`) + "</div>";
}

/* "2.3.1" is the first block of step 3 of day 2. */
function address(place) {
    const [day, step, block] = place.split(".");
    return `${find("section").id === "day-" + day ? "" : `day-${day}.html`}#day-${day}-step-${step}-${block}`;
}

function in_sight(element) {
    const { top, bottom } = element.getBoundingClientRect(), box = listing.getBoundingClientRect();
    return bottom > box.top && top < box.bottom;
}

/* Shows the file, and scrolls it as little as it takes to see what has changed. */
function draw() {
    if (!states || !wide.matches)
        return;
    const before = new Map(), same = listing.dataset.file === at.file, scrolled = same ? listing.scrollTop : 0;
    for (const element of listing.children)
        if (element.line && in_sight(element))
            before.set(element.line, { element, top: element.getBoundingClientRect().top });
    const rows = rows_to_show();
    listing.innerHTML = rows.map(html_of).join("") || `<p>${at.file ? words.same : words.none}</p>`;
    rows.forEach((row, i) => { listing.children[i].line = row?.line; });
    listing.dataset.file = at.file;
    listing.scrollTop = scrolled;
    const target = find(".focus", listing) ?? find(".come, .go, .gap", listing), height = listing.clientHeight;
    if (target && (target.offsetTop < scrolled + height * 0.1 || target.offsetTop > scrolled + height * 0.6))
        listing.scrollTop = target.offsetTop - height * 0.25;
    if (same && !calm.matches)
        move(before);
    draw_tabs();
}

/* Lets what is in sight move from where it was: lines that come slide in, and lines that go leave. */
function move(before) {
    const time = { duration: 350, easing: "ease-out" }, box = listing.getBoundingClientRect(), top = listing.scrollTop;
    for (const element of [...listing.children].filter(each => each.line && in_sight(each))) {
        const was = before.get(element.line), by = was && was.top - element.getBoundingClientRect().top;
        before.delete(element.line);
        if (by === undefined || Math.abs(by) > box.height)
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
    tabs.replaceChildren(...Object.keys(states[at.step].files).map(file => {
        const edits = at.step && book.steps[at.step][file] || [], tab = button(file, () => { at.file = file; draw(); });
        const come = edits.reduce((sum, edit) => sum + (edit[3]?.split("\n").length ?? 0), 0);
        const go = edits.reduce((sum, edit) => sum + edit[1], 0);
        if (come + go)
            tab.append(" ", make("small", {}, `+${come}` + (go ? ` −${go}` : "")));
        return tab;
    }));
    press(tabs.children, [...tabs.children].find(tab => tab.firstChild.data === at.file));
}

function set_up_column() {
    const modes = ["step", "whole", ...find("section").id === "day-1" ? [] : ["day"]].map(mode => button(words[mode], () => {
        at.mode = mode;
        press(modes, modes.find(each => each.textContent === words[mode]));
        draw();
    }));
    press(modes, modes[1]);
    listing.setAttribute("role", "region");
    listing.setAttribute("aria-label", words.file);
    find(".pane").append(make("div", { className: "bar" }, tabs, make("div", { className: "modes" }, ...modes)), listing);
    let from = null;
    listing.onkeydown = event => event.key === "Escape" && from?.focus();
    for (const size of all(".code small")) {
        size.before(button(size.textContent, event => {
            from = event.currentTarget;
            hold(from.closest(".code"));
            listing.focus();
        }, words.lines));
    }
}

/* ---- Where the reader is ----------------------------------------------------------------------- */

const stops = all("section, .code"), title = section => find("h1, h2, h3", section).firstChild.textContent.trim();
let held = null; /* where the page stood when a place was chosen, which holds until the reader scrolls on */

/* The last section or block whose beginning has come up to the reading line. */
function follow() {
    if (held !== null && Math.abs(held - scrollY) < 4)
        return;
    held = null;
    arrive(stops.findLast(stop => stop.getClientRects().length && stop.getBoundingClientRect().top < innerHeight * 0.3) ?? stops[0]);
}

function hold(stop) {
    held = scrollY;
    arrive(stop);
}

function arrive(stop) {
    const section = stop.closest("section"), step = +section.dataset.step, block = +(stop.dataset.block ?? 0);
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
    const sections = stops.filter(stop => !stop.dataset.block), here = sections.indexOf(section);
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

function start() {
    const toc = find(".toc");
    let waiting = false;
    if (states)
        set_up_column();
    follow();
    wide.onchange = draw;
    addEventListener("load", go_to_hash);
    addEventListener("hashchange", go_to_hash);
    addEventListener("scroll", () => {
        if (!waiting)
            requestAnimationFrame(() => { waiting = false; follow(); });
        waiting = true;
    }, { passive: true });
    addEventListener("click", event => { toc.open &&= Boolean(event.target.closest("summary")); });
    addEventListener("keydown", event => {
        const arrow = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
        if (event.key === "Escape")
            toc.open = false;
        else if (arrow && event.target === document.body && !event.altKey && !event.ctrlKey && !event.metaKey)
            find(`.turns [rel=${arrow}]`)?.click();
    });
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

    let run = null; /* the one that is playing */
    const typed = all("kbd", figure), texts = new Map(typed.map(each => [each, each.textContent]));
    const stop = () => {
        run = null;
        all(".unseen", figure).forEach(each => each.classList.remove("unseen"));
        texts.forEach((text, each) => { each.textContent = text; });
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
            const line = find("kbd", part), text = texts.get(line) ?? "";
            part.classList.remove("unseen");
            part.parentNode.classList.remove("unseen");
            for (let i = 1; i <= text.length && !calm.matches && run === mine; i++) {
                line.textContent = text.slice(0, i);
                await pause(Math.min(35, 1500 / text.length));
            }
            await pause(line ? 400 : 900);
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

all(".terminal").forEach(set_up_terminal);
start();
