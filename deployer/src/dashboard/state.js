/**
 * The state of the ring as `GET /api/ring` and `GET /api/events` report it, and what follows from it.
 * Nodes are named by their positions: 40 hexadecimal digits.
 *
 * @typedef {Object} RingState
 * @property {string} name the ring's name in the inventory
 * @property {?string} ring the ring's random id
 * @property {string} version of sky-deploy
 * @property {number} replicas how many members a range should have
 * @property {number} at_ms when it was put together, milliseconds since 1970
 * @property {{right: boolean, replicated: boolean, problems: string[]}} verdict
 * @property {?string} source_error why sky-deploy could not look at its nodes
 * @property {RingNode[]} nodes by position
 * @property {Range[]} ranges the newest configurations, by end point
 * @property {Transfer[]} transfers data on its way, and what came a moment ago
 *
 * @typedef {Object} RingNode everything from `phase` on is as old as `age_ms`
 * @property {string} name
 * @property {string} id its position
 * @property {number} at the position as a share of the circle, 0 to 1
 * @property {string} url
 * @property {string} provider empty if it is not in the inventory
 * @property {'starting'|'up'|'paused'|'draining'|'down'|'missing'} state
 * @property {boolean} runs whether it runs, as its provider sees it: one that is down may hang
 * @property {?string} note what sky-deploy says of it beyond its state
 * @property {?number} pid
 * @property {?string} container
 * @property {boolean} expected whether it is in the inventory
 * @property {boolean} answering
 * @property {?string} error why it did not answer last time
 * @property {?number} age_ms null if it never answered
 * @property {?('waiting'|'joining'|'up'|'leaving'|'drained')} phase
 * @property {number} share of the circle that it owns, 0 to 1
 * @property {?{owned: number, replica: number}} keys
 * @property {?{operations_per_second: number, p99_ms: number, uptime_s: number, disk_bytes: number, disk_full: boolean, version: string}} load
 * @property {?string} predecessor
 * @property {string[]} successors nearest first
 * @property {{first: number, last: number, node: string}[]} fingers
 * @property {Range[]} ranges those it answers for
 * @property {[string, number][]} suspected_by who suspects it, and for how many milliseconds
 *
 * @typedef {Object} Range (lo, hi]
 * @property {string} lo
 * @property {string} hi
 * @property {number} from `lo` as a share of the circle
 * @property {number} share of the circle
 * @property {number} epoch
 * @property {string[]} members the owner first
 * @property {string[]} prev members of the epoch before that are still asked
 * @property {string[]} lost those of `members` that lost their disk: another incarnation answers in their place
 * @property {string[]} prev_lost those of `prev` that did
 * @property {boolean} unswept
 * @property {string[]} lagging
 * @property {number} keys
 * @property {boolean} available whether a majority of its members answers
 *
 * @typedef {Object} Transfer data of (lo, hi] on its way to members
 * @property {'sweep'|'catchup'} kind all of it, to new members; or what members have missed
 * @property {string} lo
 * @property {string} hi
 * @property {number} share of the circle that the range has
 * @property {number} epoch
 * @property {string} by who brings it
 * @property {string[]} from who has it
 * @property {string[]} to who gets it; empty if no member is new
 * @property {number} keys done so far
 * @property {?number} about how many there are, as those who have them count
 * @property {number} bytes of the values done so far
 * @property {?number} done the share of the range that was gone through
 * @property {number} known_left keys found and not yet done
 * @property {number} took_ms
 * @property {number} still_ms how long nothing was done
 * @property {?number} ended_ms how long ago it ended; null while it is under way
 *
 * @typedef {Object} Lookup the last key that was looked for
 * @property {string} key
 * @property {string} hash
 * @property {{peer: Peer, micros: number, answered: boolean}[]} hops
 * @property {Peer} owner
 * @property {Peer[]} members
 * @property {?number} epoch
 * @property {string} from who looked it up
 * @property {number} at when, by this machine's clock
 *
 * @typedef {{node: {position: string}, address: string}} Peer
 */

import { and, count, number, percent } from './dom.js';

/** How it is to see a node come to look like this; bad unless it stands here. */
const TONES = { up: 'good', starting: 'plain', draining: 'plain' };
/** How many colours tell owners apart. */
const COLOURS = 7;

/** Computes what follows from a state once. States do not change. */
function once(compute) {
  const known = new WeakMap();
  return (state) => {
    if (!known.has(state)) known.set(state, compute(state));
    return known.get(state);
  };
}

const byId = once((state) => new Map(state.nodes.map((node) => [node.id, node])));

/** @param {RingState} state */
export const nodeOf = (state, id) => byId(state).get(id);

/** The name of a node, or the beginning of its position if it is not known. */
export const nameOf = (state, id) => nodeOf(state, id)?.name ?? `${id.slice(0, 8)}…`;

/** A point on the circle, in hexadecimal digits, as a share of the circle. */
export const fraction = (id) => parseInt(id.slice(0, 12), 16) / 2 ** 48;

/** The range that a point lies in; undefined if nobody told of it. */
export const rangeOf = (state, point) => state.ranges.find(({ lo, hi }) => (lo < hi ? lo < point && point <= hi : lo < point || point <= hi));

/** How a node looks: the name of its mark and its state in words. */
export function look(node) {
  const runs = node.state === 'up' || node.state === 'starting' || node.state === 'draining';
  if (runs && !node.answering && node.age_ms !== null) return { mark: 'silent', words: 'does not answer' };
  if (node.state === 'up' && node.suspected_by.length > 0) return { mark: 'suspected', words: 'up, but suspected' };
  if (node.phase === 'drained' && node.answering) return { mark: 'draining', words: 'drained' };
  return { mark: node.state, words: node.expected ? node.state : `${node.state}, not in the inventory` };
}

/** How many members a range can have in this ring. */
const wanted = once((state) => {
  const members = state.nodes.filter((node) => node.answering && (node.phase === 'up' || node.phase === 'leaving'));
  return Math.min(state.replicas, members.length);
});

/** What a range lacks, worst first; null if nothing. */
export function lack(state, range) {
  if (!range.available) return 'unavailable';
  const away = range.members.some((id) => range.lost.includes(id) || !nodeOf(state, id)?.answering);
  if (away || range.members.length < wanted(state) || range.lagging.length > 0) return 'short';
  return range.unswept ? 'sweeping' : null;
}

/** Less of the circle than this is an error of rounding. */
export const NOTHING = 1e-6;

/** The nodes that answer. */
export const answering = once((state) => new Set(state.nodes.filter((node) => node.answering).map((node) => node.id)));

export const shareOf = (ranges) => ranges.reduce((sum, range) => sum + range.share, 0);

/**
 * The verdict for people: a tone, a headline, a sentence.
 * @param {RingState} state
 */
export function summary(state) {
  const { right, replicated } = state.verdict;
  const there = state.nodes.filter((node) => node.answering).length;
  if (right) {
    const each = wanted(state) === 1 ? 'one copy of every key' : `${wanted(state)} copies of every key, all caught up`;
    return { tone: 'right', title: 'The ring is right', text: `${count(there, 'node')}, ${each}.` };
  }
  if (state.nodes.length === 0) return { tone: 'wrong', title: 'There are no nodes', text: 'The inventory has none, or they were destroyed.' };
  if (there === 0) return { tone: 'wrong', title: 'No node answers', text: 'What is shown below is what they said last.' };
  if (state.ranges.length === 0) return { tone: 'wrong', title: 'There is no ring yet', text: `${count(there, 'node')} answer and wait for a ring.` };
  const stuck = state.ranges.filter((range) => !range.available);
  const gap = Math.max(0, 1 - shareOf(state.ranges));
  const lost = shareOf(stuck) + gap;
  if (lost > NOTHING) {
    const nobodyElse = state.nodes.every((node) => node.answering || node.state === 'missing');
    const forGood = stuck.some((range) => isStuckForGood(state, range)) || (gap > NOTHING && nobodyElse);
    const why = forGood
      ? 'What most or all of its nodes held is gone: `sky-deploy repair` tells what may be lost, and lets the others go on.'
      : 'Nothing is lost while the disks are there.';
    return { tone: 'wrong', title: 'Some keys are out of reach', text: `${percent(lost)} of the circle cannot be read or written now. ${why}` };
  }
  if (!replicated) {
    const short = shareOf(state.ranges.filter((range) => lack(state, range)));
    const extent = short > 0 ? `${percent(short)} of the circle lacks copies or is being repaired` : 'some keys lack copies';
    return { tone: 'wrong', title: 'The ring is not right', text: `Every key can be read and written, but ${extent}.` };
  }
  return { tone: 'degraded', title: 'The data is safe, the ring is not as it should be', text: 'Every key has all its copies, caught up.' };
}

/** The members that have what they were given, if exactly these nodes answer. */
export const holders = (range, there) => range.members.filter((id) => there.has(id) && !range.lost.includes(id));

/** The members of this epoch and of the one before, each with those that lost their disk. */
const setsOf = (range) => [[range.members, range.lost], [range.prev, range.prev_lost]];

/** How many of a range's members can fail before it is out of reach if exactly these nodes answer; below 0 it is. */
export function spare(range, there) {
  const beyondMajority = ([ids, lost]) => ids.filter((id) => there.has(id) && !lost.includes(id)).length - Math.floor(ids.length / 2) - 1;
  return Math.min(...setsOf(range).filter(([ids]) => ids.length > 0).map(beyondMajority));
}

/** Whether nothing brings back what the members of a range held that do not answer. */
function isStuckForGood(state, range) {
  const gone = ([ids, lost]) => ids.filter((id) => !lost.includes(id) && !nodeOf(state, id)?.answering);
  return setsOf(range).flatMap(gone).every((id) => nodeOf(state, id)?.state === 'missing');
}

/** The nodes that would answer without this one. */
export const others = (state, id) => new Set([...answering(state)].filter((other) => other !== id));

/** The ranges that each node has a part in. */
const partsOf = once((state) => {
  const parts = new Map();
  for (const range of state.ranges) {
    for (const id of new Set([...range.members, ...range.prev])) parts.set(id, [...(parts.get(id) ?? []), range]);
  }
  return parts;
});

/** How much more of the circle would be out of reach without this node. */
export function lossOf(state, id) {
  const there = answering(state);
  const left = { has: (other) => other !== id && there.has(other) };
  return shareOf((partsOf(state).get(id) ?? []).filter((range) => spare(range, there) >= 0 && spare(range, left) < 0));
}

const chosen = new Map();

/**
 * A colour number for each owner: a node keeps its colour, and ring neighbours differ.
 * @param {RingState} state
 */
export const colours = once((state) => {
  const { nodes } = state;
  for (const id of [...chosen.keys()]) if (!nodeOf(state, id)) chosen.delete(id);
  nodes.forEach((node, index) => {
    if (chosen.has(node.id)) return;
    const beside = [nodes.at(index - 1), nodes[(index + 1) % nodes.length]].map((other) => chosen.get(other.id));
    const used = [...chosen.values()];
    const uses = (colour) => used.filter((other) => other === colour).length + (beside.includes(colour) ? 1000 : 0);
    const all = Array.from({ length: COLOURS }, (_, colour) => colour);
    chosen.set(node.id, all.reduce((best, colour) => (uses(colour) < uses(best) ? colour : best)));
  });
  return new Map(chosen);
});

/**
 * What happened between two states, as sentences with a tone.
 * @param {?RingState} before @param {RingState} after
 */
export function changes(before, after) {
  if (!before) return [{ tone: 'plain', text: `Watching ${count(after.nodes.length, 'node')}: ${summary(after).title.toLowerCase()}.` }];
  const list = [];
  const say = (tone, text) => list.push({ tone, text });
  for (const node of after.nodes) {
    const old = nodeOf(before, node.id);
    if (!old) {
      say('plain', `${node.name} is new (${look(node).words}).`);
      continue;
    }
    const [was, is] = [look(old), look(node)];
    if (was.words !== is.words) say(TONES[is.mark] ?? 'bad', `${node.name} is ${is.words}; it was ${was.words}.`.replace('is does', 'does').replace('was does not', 'did not'));
    const next = node.successors[0];
    if (node.answering && next && old.successors[0] && next !== old.successors[0]) {
      say('plain', `${node.name}'s successor is ${nameOf(after, next)}; it was ${nameOf(before, old.successors[0])}.`);
    }
  }
  for (const old of before.nodes) if (!nodeOf(after, old.id)) say('plain', `${old.name} has left the ring.`);
  for (const range of after.ranges) {
    const old = before.ranges.find((other) => other.hi === range.hi);
    const members = (of) => [...of.members].sort().join();
    if (old && members(old) !== members(range)) {
      const names = and(range.members.map((id) => nameOf(after, id)));
      say('plain', `The range that ends at ${nameOf(after, range.hi)} is now kept by ${names} (epoch ${number(range.epoch)}).`);
    }
  }
  const [was, is] = [summary(before), summary(after)];
  if (was.title !== is.title) say(is.tone === 'right' ? 'good' : is.tone === 'wrong' ? 'bad' : 'plain', `${is.title}.`);
  return list;
}
