"use strict";
/* What the four explorables have in common. Each of them is an object:
 *
 *   name, title, height    of the drawing, which is 340 units wide, so that it fits a telephone
 *   choices                {"sleepers": ["10", "5", "2"], …}; the first of each is chosen at the start
 *   run(chosen, frame)     the model, which needs no browser: a list of frames, each with a sentence, `said`.
 *                          Where a choice may change on the way (`live`), it goes on from `frame`.
 *   draw(frame, chosen)    the frame as SVG: the same elements in each, so that what differs can move
 *   count(frame, chosen)   what to count below it: the rows of a table, the head first
 *   pace, still            milliseconds for a frame; [chosen, n]: the picture for readers without JavaScript
 */
globalThis.explore = {
  widgets: {},
  add: (widget) => (explore.widgets[widget.name] = widget),

  // Pieces of a drawing. A kind is one of the classes in explore.css, or several.
  box: (x, y, width, height, kind) =>
    `<rect x="${x}" y="${y}" width="${width}" height="${height}" rx="3" class="${kind}"/>`,
  text: (x, y, words, kind = "") => `<text x="${x}" y="${y}" class="${kind}">${words}</text>`,
  group: (x, y, kind, inside) => `<g class="${kind}" style="transform: translate(${x}px, ${y}px)">${inside}</g>`,
  arrow: (x, y, toX, toY, kind) => {
    const length = Math.hypot(toX - x, toY - y), u = (toX - x) / length, v = (toY - y) / length;
    const barb = (side) => `M${toX - 5 * u + side * 3 * v} ${toY - 5 * v - side * 3 * u}L${toX} ${toY}`;
    return `<path d="M${x} ${y}L${toX} ${toY}${barb(1)}${barb(-1)}" class="arrow ${kind}"/>`;
  },
  svg: (widget, frame, chosen) => `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 340 ${widget.height}" ` +
    `role="img" aria-label="${widget.title}"><g>${widget.draw(frame, chosen)}</g></svg>`,
};

/* Makes an element like another. What stays the same element moves there, as explore.css says. */
function morph(old, fresh) {
  if (old.tagName !== fresh.tagName || old.children.length !== fresh.children.length)
    return old.replaceWith(fresh.cloneNode(true));
  for (const { name, value } of fresh.attributes)
    if (old.getAttribute(name) !== value)
      old.setAttribute(name, value);
  if (fresh.children.length === 0 && old.textContent !== fresh.textContent)
    old.textContent = fresh.textContent;
  [...old.children].forEach((child, i) => morph(child, fresh.children[i]));
}

function mount(figure, widget) {
  const chosen = Object.fromEntries(Object.entries(widget.choices).map(([name, [first]]) => [name, first]));
  let frames = widget.run(chosen), at = 0, timer;

  const radio = (name, value) => `<label><input type="radio" name="${widget.name} ${name}" value="${value}"` +
    `${chosen[name] === value ? " checked" : ""}>${value}</label>`;
  const row = (kind) => (cells) => `<tr>${cells.map((cell) => `<${kind}>${cell}</${kind}>`).join("")}</tr>`;
  const table = ([head, ...rows]) => row("th")(head) + rows.map(row("td")).join("");

  const choice = ([name, values]) =>
    `<fieldset><legend>${name}</legend>${values.map((value) => radio(name, value)).join("")}</fieldset>`;
  figure.innerHTML = `<figcaption>${widget.title}</figcaption>
    <div>${Object.entries(widget.choices).map(choice).join("")}</div>
    ${explore.svg(widget, frames[0], chosen)}<p aria-live="polite"></p>
    <div><button>back</button><button>step</button><button>play</button><button>reset</button>
    <input type="range" min="0" aria-label="how far"></div><table></table>`;
  const [svg, said, slider, counts] = ["svg", "p", "[type=range]", "table"].map((what) => figure.querySelector(what));
  const [back, step, play, reset] = figure.querySelectorAll("button");

  const show = (n) => {
    at = Math.max(0, Math.min(n, frames.length - 1));
    const fresh = svg.cloneNode(false);
    fresh.innerHTML = `<g>${widget.draw(frames[at], chosen)}</g>`;
    morph(svg, fresh);
    said.textContent = frames[at].said;
    counts.innerHTML = table(widget.count(frames[at], chosen));
    slider.max = frames.length - 1;
    slider.value = at;
    back.disabled = at === 0;
    step.disabled = at === frames.length - 1;
  };
  const go = (n) => {
    timer = clearInterval(timer);
    play.textContent = "play";
    show(n);
  };

  back.onclick = () => go(at - 1);
  step.onclick = () => go(at + 1);
  slider.oninput = () => go(Number(slider.value));
  reset.onclick = () => {
    frames = widget.run(chosen);
    go(0);
  };
  play.onclick = () => {
    if (timer)
      return go(at);
    go(step.disabled ? 0 : at);
    play.textContent = "pause";
    timer = setInterval(() => (step.disabled ? go(at) : show(at + 1)), widget.pace);
  };
  figure.onchange = ({ target: { type, name, value } }) => {
    if (type !== "radio")
      return;
    chosen[name.slice(widget.name.length + 1)] = value;
    const ended = step.disabled; // a reader who has seen the end of one way sees the end of the other
    frames = widget.live ? [...frames.slice(0, at + 1), ...widget.run(chosen, frames[at])] : widget.run(chosen);
    show(widget.live ? at + 1 : ended ? frames.length : at);
  };
  show(0);
}

globalThis.document?.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll("figure[data-explore]"))
    mount(figure, explore.widgets[figure.dataset.explore]);
});
