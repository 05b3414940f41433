// The page of one agent: what it sees of the ring, kept fresh.

import { drawCircle, share } from "./circle.js";
import { showData, startKeys } from "./keys.js";
import { ask, authorization, byId, element, peerLink, row, setToken, short } from "./parts.js";

const EVERY_MS = 2000;
const EVENTS_KEPT = 100;

const fill = (id, rows, columns, nothing) => {
  const none = element("tr", {}, element("td", { className: "faint", colSpan: columns }, nothing));
  byId(id).replaceChildren(...(rows.length > 0 ? rows : [none]));
};

const percent = (part) => `${(100 * part).toFixed(part < 0.1 ? 2 : 1)} %`;

const span = (seconds) => {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} days`;
};

const bytes = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(4, Math.floor(Math.log2(Math.max(count, 1)) / 10));
  return `${(count / 1024 ** power).toFixed(power > 0 ? 1 : 0)} ${units[power]}`;
};

const PHASES = {
  waiting: ["in no ring yet", "warn"],
  joining: ["joining", "warn"],
  up: ["member", "good"],
  leaving: ["leaving", "warn"],
  drained: ["left: can be stopped", "bad"],
};

const showFacts = (view) => {
  const arc = view.predecessor ? share(view.predecessor.node.position, view.me.node.position) : 1;
  const { load } = view;
  const facts = [
    ["Id", element("span", { className: "mono" }, view.me.node.position)],
    ["Address", element("span", { className: "mono" }, view.me.address)],
    ["Ring", element("span", { className: "mono" }, view.ring ?? "none yet")],
    ["Owns", view.phase === "up" ? `${percent(arc)} of the circle` : "nothing"],
    ["Keys", `${view.keys.owned.toLocaleString("en")} owned, ${view.keys.replica.toLocaleString("en")} replicas`],
    ["Requests", `${load.operations_per_second.toFixed(0)}/s, 99 % within ${load.p99_ms.toFixed(1)} ms`],
    ["Disk", load.disk_full ? `${bytes(load.disk_bytes)}, full: nothing new is stored` : bytes(load.disk_bytes)],
    ["Running for", span(load.uptime_s)],
  ];
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
};

const neighbourRow = (role, peer, members) => {
  const member = members.get(peer.node.position);
  const suspected = member?.suspected_ms ?? null;
  const state = suspected !== null
    ? element("span", { className: "mark warn" }, `silent for ${span(suspected / 1000)}`)
    : (member?.status ?? "").toLowerCase();
  const rtt = member?.rtt_us == null ? "" : `${(member.rtt_us / 1000).toFixed(2)} ms`;
  return row([role], [short(peer.node.position), "id", peer.node.position], [peerLink(peer)], [state], [rtt, "number"]);
};

const showNeighbours = (view) => {
  const members = new Map(view.members.map((member) => [member.peer.node.position, member]));
  const rows = view.successors.map((peer, index) =>
    neighbourRow(index === 0 ? "successor" : `successor ${index + 1}`, peer, members));
  if (view.predecessor) rows.unshift(neighbourRow("predecessor", view.predecessor, members));
  fill("neighbours", rows, 5, view.phase === "up" ? "This node is alone: it is its own successor." : "None yet.");
};

const showFingers = (view) => {
  const successor = view.successors[0]?.node.position ?? view.me.node.position;
  const isObvious = (finger) => finger.peer.node.position === successor;
  const all = byId("all-fingers").checked;
  const obvious = view.fingers.filter(isObvious).length;
  byId("hidden-fingers").textContent = `(${obvious}, equal to the successor)`;
  const rows = view.fingers.filter((finger) => all || !isObvious(finger)).map((finger) => {
    const made = row([String(finger.index)], [short(finger.start), "id", finger.start],
      [short(finger.peer.node.position), "id", finger.peer.node.position], [peerLink(finger.peer)]);
    if (isObvious(finger)) made.className = "obvious";
    return made;
  });
  fill("fingers", rows, 4, obvious > 0 ? "All known fingers are the successor." : "None known yet.");
};

const showRanges = (view) => {
  const me = view.me.node.position;
  const names = (peers) => peers.flatMap((peer, index) => {
    const name = peer.node.position === me ? element("b", {}, "this node") : peerLink(peer);
    return index > 0 ? [", ", name] : [name];
  });
  const rows = view.ranges.map((range) => {
    const members = element("span", {}, ...names(range.members));
    if (range.prev.length > 0) members.append("; before: ", ...names(range.prev));
    const marks = [];
    if (range.leads) marks.push("leads");
    if (range.unswept) marks.push("data on its way");
    if (range.lagging.length > 0) marks.push(`${range.lagging.length} behind`);
    const moving = range.unswept || range.lagging.length > 0;
    const state = element("span", { className: moving ? "mark warn" : "faint" }, marks.join(", "));
    return row([short(range.lo), "id", range.lo], [short(range.hi), "id", range.hi],
      [percent(share(range.lo, range.hi)), "number"], [String(range.epoch), "number"], [members, "wide"],
      [range.keys.toLocaleString("en"), "number"], [state]);
  });
  fill("ranges", rows, 7, "This node answers for no range.");
};

let view = null;
let heardAt = null;

/** Focus and selection inside what is drawn anew would be lost: nothing is drawn then. */
const isInUse = () => {
  const inside = (node) => node && byId("main").contains(node) && !byId("keys").contains(node);
  const selection = document.getSelection();
  return inside(document.activeElement?.closest("a")) || (!selection.isCollapsed && inside(selection.anchorNode));
};

const show = () => {
  const [text, kind] = PHASES[view.phase] ?? [view.phase, ""];
  byId("phase").textContent = text;
  byId("phase").className = `pill ${kind}`;
  byId("address").textContent = view.me.address;
  document.title = `${view.me.address} – Sky agent`;
  byId("version").textContent = view.load.version && `version ${view.load.version}`;
  byId("counts").textContent = `${view.keys.owned.toLocaleString("en")} owned, ${view.keys.replica.toLocaleString("en")} replicas`;
  showFacts(view);
  drawCircle(byId("circle"), view);
  if (isInUse()) return;
  showNeighbours(view);
  showFingers(view);
  showRanges(view);
};

const showAge = () => {
  const seconds = heardAt === null ? null : (performance.now() - heardAt) / 1000;
  const stale = seconds === null || seconds > 6;
  document.body.classList.toggle("stale", stale && seconds !== null);
  const text = seconds === null ? "connecting" : stale ? `no answer for ${span(seconds)}` : "live";
  if (byId("age").textContent !== text) byId("age").textContent = text;
};

let timer = null;
let running = false;

/** Asks for the view and the data, then again after a while; never twice at once. */
const refresh = async () => {
  if (running) return;
  running = true;
  clearTimeout(timer);
  try {
    view = await (await ask("/ring")).json();
    heardAt = performance.now();
    byId("main").removeAttribute("aria-busy");
    show();
    await showData();
  } catch (refusal) {
    // Otherwise the age of what is shown tells; the next turn tries again.
    if (refusal.status === 401) byId("login").hidden = false;
  }
  running = false;
  showAge();
  timer = setTimeout(refresh, document.hidden ? 10 * EVERY_MS : EVERY_MS);
};

const name = (peer) => (peer ? peer.address : "nobody");
const SENTENCES = {
  joined: (it) => `Joined the ring ${it.ring.slice(0, 8)}.`,
  successor_changed: (it) => `The successor is ${name(it.to)} now.`,
  predecessor_changed: (it) => `The predecessor is ${name(it.to)} now.`,
  suspected: (it) => `${name(it.node)} does not answer.`,
  recovered: (it) => `${name(it.node)} answers again.`,
  adopted: (it) => `Range ${short(it.hi)}, epoch ${it.epoch}: members are ${it.members.map(name).join(", ")}.`,
  sweep_started: (it) => `Range ${short(it.hi)}: its data is brought to its new members.`,
  sweep_done: (it) => `Range ${short(it.hi)}: all members have all data (${it.keys} keys handled).`,
  aligned: (it) => `Range ${short(it.hi)}: members compared (${it.keys} keys handled).`,
  drained: () => "Everything is handed over: this node can be stopped.",
  disk_full: (it) => (it.full ? "The disk is full: nothing new is stored." : "The disk has room again."),
  diverged: (it) => `Copies of ${it.count} keys differ although they are of one version: ${it.keys.join(", ")}.`,
  missed: (it) => (it.why === "other_start" ? "The agent was started anew." : `${it.count} events were missed.`),
  store_broken: (it) => `The store failed: ${it.reason}`,
};

let soon = null;
let any = false;

const happened = (message) => {
  const it = JSON.parse(message.data);
  const at = new Date(it.at_ms);
  const time = element("time", { dateTime: at.toISOString() }, at.toLocaleTimeString());
  const sentence = SENTENCES[it.event]?.(it) ?? it.event;
  if (!any) byId("events").replaceChildren();
  any = true;
  byId("events").prepend(element("li", {}, time, sentence));
  while (byId("events").children.length > EVENTS_KEPT) byId("events").lastElementChild.remove();
  clearTimeout(soon);
  soon = setTimeout(refresh, 200);
};

startKeys();
byId("all-fingers").addEventListener("change", () => view && showFingers(view));
document.addEventListener("visibilitychange", () => document.hidden || refresh());
setInterval(showAge, 1000);
byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("token").value.trim());
  byId("token").value = "";
  byId("login").hidden = true;
  refresh();
});

/** The id of the last event, from which the stream goes on after a break. */
let place = null;

/** Reads the stream of events by hand: an EventSource cannot send the token. */
const listen = async () => {
  try {
    const headers = { ...authorization(), ...(place && { "last-event-id": place }) };
    const response = await fetch("/events", { headers, cache: "no-store" });
    if (!response.ok) throw new Error(response.status);
    let text = "";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      const messages = (text + piece.value).split("\n\n");
      text = messages.pop();
      for (const message of messages) {
        const lines = message.split("\n");
        place = lines.find((line) => line.startsWith("id:"))?.slice(3).trim() ?? place;
        const data = lines.filter((line) => line.startsWith("data:"));
        if (data.length) happened({ data: data.map((line) => line.slice(5)).join("\n") });
      }
    }
  } catch {
    // The agent is gone or wants a token: asked again below.
  }
  setTimeout(listen, EVERY_MS);
};
listen();
refresh();
