"use strict";
/* select's two sets, through three rounds: what goes in, what comes out, and why each round needs a copy.
 *
 * In its first set the server has the listener (3) and the clients 4 and 5, in its second the client 6, for which
 * it holds something. If it gives select the sets themselves instead of copies, all that is left of them is the
 * answer. tests/test_explore.py asks the real select the same.
 */
{
  const FDS = [3, 4, 5, 6, 7];
  const ROUNDS = [
    { happens: "Client 5 sends.", news: { 5: "sends" } },
    { happens: "A newcomer connects, and client 6 reads: there is room.", news: { 3: "comes", 6: "room" } },
    { happens: "Client 4 sends, but does not read.", news: { 4: "sends" } },
  ];
  const ANSWERS = [["sends", "comes"], ["room"]]; // which news the first set reports, and which the second

  /* What the server does about it: into which set (0, 1) goes which descriptor, and in words. */
  const SERVED = {
    3: [0, 7, "accept gives it 7, which goes into the first set."],
    4: [1, 4, "send does not take all of the answer, so 4 goes into the second set."],
    5: [0, 5, "It reads from 5, and answers."],
    6: [0, 6, "It sends what it held for 6, so 6 goes back into the first set."],
  };

  function run(chosen) {
    const copy = chosen["select gets"] === "copies", frames = [];
    const sets = [[3, 4, 5], [6]]; // what the server waits for: to read, to write
    let given; // to select: the sets, or copies of them
    const f = { calls: 0, served: 0, asleep: false, question: [[], []], waiting: {} };
    const say = (said) => frames.push(structuredClone({ ...f, sets, given, said }));

    say("The server waits to read from 3 (its listener), 4 and 5. For 6 it holds something, so it waits to write.");
    for (const { happens, news } of ROUNDS) {
      if (!f.asleep) {
        given = copy ? structuredClone(sets) : sets;
        Object.assign(f, { calls: f.calls + 1, asleep: true, question: structuredClone(sets) });
        say(`The question: ${copy ? "copies of both sets" : "both sets themselves"} go into select, which sleeps.`);
      }
      Object.assign(f.waiting, news);
      const answer = given.map((set, i) => set.filter((fd) => ANSWERS[i].includes(f.waiting[fd])));
      const found = answer.flat().sort();
      if (found.length === 0) {
        say(`${happens} But that was not in the question, and select sleeps on.`);
        continue;
      }
      given.splice(0, 2, ...answer);
      f.asleep = false;
      say(`${happens} select returns ${found.length}. It has written its answer over the question.`);
      for (const fd of found) {
        const [to, which] = SERVED[fd];
        sets[1 - to] = sets[1 - to].filter((other) => other !== which);
        sets[to] = [...new Set([...sets[to], which])].sort();
        delete f.waiting[fd];
        f.served++;
      }
      say("The server looks at each bit. " + found.map((fd) => SERVED[fd][2]).join(" "));
    }
    say(copy ? "All were served. The sets say what to wait for, as before, and the next question is whole again." :
        `All that is left in the sets is ${sets[0]}. The others wait for ever, since the server is deaf to them.`);
    return frames;
  }

  function draw(frame, chosen) {
    const { box, text } = explore, given = frame.given ?? [[], []], x = (i) => 100 + 48 * i;
    const row = (y, words, kind) => text(2, y + 15, words, "small") + FDS.map((fd, i) =>
      box(x(i), y, 42, 22, kind(fd)) + text(x(i) + 21, y + 15, kind(fd) === "plain" ? "" : fd, "middle")).join("");
    const mine = (i) => (fd) => (frame.sets[i].includes(fd) ? "byte" : "plain");
    const its = (i) => (fd) => given[i].includes(fd) ? (frame.asleep ? "byte" : "answer") :
      frame.question[i].includes(fd) ? "gone" : "plain";
    const there = (fd) => fd !== 7 || frame.sets[0].includes(7);
    const column = (fd, i) => text(x(i) + 21, 12, !there(fd) ? "" : fd === 3 ? "listener" : "client", "small middle") +
      text(x(i) + 21, 26, there(fd) ? fd : "", "middle") + text(x(i) + 21, 42, frame.waiting[fd] ?? "",
        "small middle " + (frame.asleep && !given.flat().includes(fd) ? "warn" : ""));

    return FDS.map(column).join("") + text(2, 42, "what happens", "small") +
      text(2, 66, "the server's sets") + row(72, "1: to read", mine(0)) + row(98, "2: to write", mine(1)) +
      text(2, 144, (chosen["select gets"] === "copies" ? "the copies" : "the same two") + " in select" +
        (!frame.given ? "" : frame.asleep ? ": it sleeps" : ": its answer")) +
      row(150, "can be read", its(0)) + row(176, "can be written", its(1));
  }

  explore.add({
    name: "select", title: "select's two sets, through three rounds", height: 202, pace: 2500,
    choices: { "select gets": ["copies", "the sets themselves"] },
    still: [{ "select gets": "copies" }, 5],
    run, draw,
    count: (f) => [["", "select called", "returned", "served", "still waiting"],
                   ["now", f.calls, f.calls - f.asleep, f.served, Object.keys(f.waiting).length]],
  });
}
