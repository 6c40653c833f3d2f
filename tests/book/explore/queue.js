"use strict";
/* The wait queue: some workers sleep, and a newcomer comes. Which of them does the kernel call, which of them wake,
 * which return to the program, and which of those find nothing?
 *
 * A newcomer calls the entries of the listener's wait queue one by one, from the head. An exclusive entry that has
 * woken its worker ends the walk. tests/test_explore.py compares the counts with those that make herd has measured.
 */
{
  /* measured: woken, returned, found nothing, for so many newcomers (MADE). */
  const MADE = { "no nap": 100, "a nap": 20 };
  const WAYS = {
    accept: { exclusive: true, measured: { "no nap": [100, 100, 0], "a nap": [20, 20, 0] } },
    poll: { measured: { "no nap": [1002, 137, 37], "a nap": [200, 200, 180] } },
    epoll: { measured: { "no nap": [1000, 108, 8], "a nap": [201, 200, 180] } },
    "epoll-et": { measured: { "no nap": [1004, 139, 39], "a nap": [201, 200, 180] } },
    exclusive: { exclusive: true, measured: { "no nap": [100, 100, 0], "a nap": [20, 20, 0] } },
    shared: { shared: true, goesBack: true, measured: { "no nap": [202, 102, 2], "a nap": [200, 200, 180] } },
    "shared-et": { shared: true, measured: { "no nap": [100, 100, 0], "a nap": [20, 20, 0] } },
  };

  function run(chosen) {
    const way = WAYS[chosen.way], inAccept = chosen.way === "accept", frames = [], n = Number(chosen.sleepers);
    const nap = chosen["before accept"] === "a nap" && !inAccept;
    const f = { queue: Array.from({ length: n }, (_, i) => (way.exclusive ? i + 1 : n - i)), // others enter at the head
                lane: {}, end: {}, backlog: 0, calling: 0, newcomers: 0, called: 0, woken: 0, returned: 0, nothing: 0 };
    const say = (said) => frames.push(structuredClone({ ...f, said }));
    let awake;
    const wake = (worker) => {
      f.lane[worker] = "woken";
      f.woken++;
      awake.push(worker);
    };
    const accept = (worker, when) => {
      f.lane[worker] = "accepts";
      f.end[worker] = f.backlog ? "got" : "nothing";
      f.nothing += 1 - f.backlog;
      const got = f.backlog ? "it gets the newcomer" : "it gets EAGAIN, and has returned for nothing";
      f.backlog = 0;
      say(`${when} worker ${worker} accepts: ${got}.`);
    };

    say(`${n} workers sleep, and wait for a newcomer.`);
    for (const which of ["A", "Another"]) {
      awake = [];
      Object.assign(f, { backlog: 1, newcomers: f.newcomers + 1, end: {} });
      say(`${which} newcomer is in the backlog. The kernel walks the listener's wait queue, from its head.`);
      for (f.calling of f.queue) {
        f.called++;
        wake(f.calling);
        say(way.shared ? `The only entry is called. It wakes the first sleeper of the shared instance, ${f.calling}.` :
            `The entry of worker ${f.calling} is called, and wakes it.` +
            (way.exclusive ? " It is exclusive (!), so the walk ends." : ""));
        if (way.shared || way.exclusive)
          break;
      }
      f.calling = 0;
      for (let i = 0; i < awake.length; i++) { // in a chain, it grows meanwhile
        const worker = awake[i], next = f.queue[i + 1];
        if (!f.backlog) {
          f.lane[worker] = "asleep";
          f.end[worker] = "inside";
          say(`Worker ${worker} looks: the newcomer is gone. It sleeps on inside the call; the program never knows.`);
          continue;
        }
        if (way.goesBack && next) {
          wake(next);
          say(`Worker ${worker} looks: there it is. The item goes back, so the list is not empty: ${next} is woken.`);
        }
        f.lane[worker] = "returned";
        f.returned++;
        if (!inAccept)
          say(`Worker ${worker} has found the newcomer. The call returns${nap ? ", and the nap begins" : ""}.`);
        if (!nap)
          accept(worker, inAccept ? "Inside its call" : "Then");
      }
      if (nap)
        awake.forEach((worker) => accept(worker, "After the nap"));

      f.lane = {};
      if (inAccept)
        f.queue.push(f.queue.shift());
      say("All sleep again. " + (
          awake.length > 1 ? `Of ${awake.length} that were woken, ${awake.length - 1} ran for nothing.` :
          inAccept ? `Worker ${awake} has joined the queue again, at its tail.` :
          `Worker ${awake} alone was woken, and will be the first next time, too.`));
    }
    return frames;
  }

  function draw(frame, chosen) {
    const { box, text, group } = explore, way = WAYS[chosen.way], n = frame.queue.length;
    const tops = { asleep: 66, woken: 110, returned: 154, accepts: 198 };
    const x = (worker) => 6 + 33 * frame.queue.indexOf(worker);
    const lane = (name, words) => box(0, tops[name], 340, 41, "lane") + text(6, tops[name] + 12, words, "small");
    const circle = (at, y, r, kind, words) => group(at, y, kind, `<circle r="${r}" class="plain"/>` + words);
    const entry = (worker) => group(x(worker), 34, frame.calling === worker ? "called" : "",
      box(0, 0, 28, 20, "plain") + text(14, 14, worker + (way.exclusive ? " !" : ""), "small middle"));
    const one = group(6, 34, frame.calling ? "called" : "",
      box(0, 0, 33 * n - 5, 20, "plain") + text(5, 14, "one for all", "small"));
    const sleeper = (worker) => circle(x(worker) + 14, tops[frame.lane[worker] ?? "asleep"] + 27, 11,
      frame.end[worker] ?? "", text(0, 4, worker, "middle"));
    const workers = [...frame.queue].sort((a, b) => a - b);

    return text(6, 14, "backlog", "small") + box(54, 3, 22, 16, "plain") +
      box(60, 6, 10, 10, frame.backlog ? "byte" : "hidden") +
      text(6, 30, "the listener's wait queue, from its head", "small") + (way.shared ? one : workers.map(entry).join("")) +
      lane("asleep", "asleep") + lane("woken", `woken by the kernel: ${frame.woken}`) +
      lane("returned", `returned to the program: ${frame.returned}`) +
      lane("accepts", `accepts; found nothing: ${frame.nothing}`) + workers.map(sleeper).join("") +
      [[11, "got", "got it"], [71, "nothing", "EAGAIN"], [141, "inside", "slept on, inside the call"]]
        .map(([at, kind, words]) => circle(at, 249, 5, kind, text(9, 4, words, "small"))).join("");
  }

  explore.add({
    name: "queue", title: "Sleepers in a wait queue, and one newcomer", height: 258, pace: 700,
    choices: { way: Object.keys(WAYS), "before accept": Object.keys(MADE), sleepers: ["10", "5", "2"] },
    still: [{ way: "epoll", "before accept": "a nap", sleepers: "10" }, 26],
    measured: Object.fromEntries(Object.entries(WAYS).map(([name, way]) => [name, way.measured])),
    run, draw,
    count: (f, { way, "before accept": nap }) => [
      ["", "came", "called", "woken", "returned", "nothing"],
      ["here", f.newcomers, f.called, f.woken, f.returned, f.nothing],
      ["measured", MADE[nap], "-", ...WAYS[way].measured[nap]]],
  });
}
