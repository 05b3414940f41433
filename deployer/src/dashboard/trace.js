/** The way of a lookup: drawn on the circle hop by hop, and told in words. */

import { and, count, h, latency, s } from './dom.js';
import { curve, place, RING } from './geometry.js';
import { fraction, nameOf, nodeOf } from './state.js';

const position = (peer) => peer.node.position;

/**
 * The hops with where each starts: the node that told whom to ask next. The first is told by the node that
 * looks the key up, which asks each of them itself.
 * @param {import('./state.js').Lookup} lookup
 */
export function steps(lookup) {
  let here = lookup.from;
  return lookup.hops.map((hop, index) => {
    const step = { number: index + 1, from: here, to: position(hop.peer), ms: hop.micros / 1000, answered: hop.answered };
    if (hop.answered) here = step.to;
    return step;
  });
}

/** The node that knew the owner. */
const last = (lookup) => steps(lookup).findLast((step) => step.answered)?.to ?? lookup.from;

/** The time of all hops, in milliseconds. */
const total = (lookup) => lookup.hops.reduce((sum, hop) => sum + hop.micros, 0) / 1000;

/** All nodes that have a part in it. */
export const stops = (lookup) => new Set([lookup.from, ...lookup.hops.map((hop) => position(hop.peer)), position(lookup.owner)]);

/** Where the key lies, and the hops, each with its number and time. */
export function drawTrace(state, lookup) {
  const at = (id) => nodeOf(state, id)?.at ?? fraction(id);
  const [x, y] = place(fraction(lookup.hash), RING);
  const [end, owner] = [last(lookup), position(lookup.owner)];
  const hops = steps(lookup).map((step, index) => ({ ...step, index, line: curve(at(step.from), at(step.to), 0.62, index % 2 === 0 ? 0.4 : 0.62) }));
  // A new way is drawn anew: with its time in the keys its elements are new ones.
  return s('g', { 'data-key': `lookup-${lookup.at}`, class: 'lookup', role: 'presentation' },
    hops.map(({ line, index, answered }) => s('path', { d: line.d, pathLength: answered ? 1 : null, 'data-order': Math.min(index, 9), class: `hop ${answered ? '' : 'silent'}`, 'marker-end': 'url(#arrow-hop)' })),
    end !== owner && s('path', { d: curve(at(end), at(owner), 0.62).d, 'data-order': Math.min(hops.length, 9), class: 'hop-end', 'marker-end': 'url(#arrow-hop)' }),
    hops.map(({ line: { point }, number, ms, answered, index }) => s('g', { transform: `translate(${point})`, 'data-order': Math.min(index, 9), class: `hop-mark ${answered ? '' : 'silent'}` },
      s('circle', { r: 10 }),
      s('text', { y: 4.5, class: 'hop-number' }, number),
      s('text', { x: 14, y: 4.5, class: 'hop-time' }, answered ? latency(ms) : `no answer, ${latency(ms)}`))),
    s('path', { d: 'M0-9 9 0 0 9-9 0Z', transform: `translate(${x} ${y})`, class: 'key-point' }, s('title', {}, `“${lookup.key}” lies here`)));
}

/** The same in words: who keeps the key, and how that was found. */
export function tellTrace(state, lookup) {
  const link = (id) => h('button', { type: 'button', class: 'link', 'data-select': id }, nameOf(state, id));
  const owner = position(lookup.owner);
  const others = lookup.members.map(position).filter((id) => id !== owner);
  const silent = lookup.hops.filter((hop) => !hop.answered).length;
  const way = steps(lookup);
  const item = (step) => h('li', { class: step.answered ? '' : 'silent' }, link(step.to),
    step.answered ? ` answered after ${latency(step.ms)}` : ` did not answer: time-out after ${latency(step.ms)}`);
  return h('div', { class: 'trace' },
    h('p', {}, 'Owner: ', link(owner), others.length > 0 && ['; replicas: ', others.flatMap((id, index) => [index > 0 && (index === others.length - 1 ? ' and ' : ', '), link(id)])],
      lookup.epoch !== null && h('span', { class: 'dim' }, ` · epoch ${lookup.epoch}`)),
    h('p', {}, 'Looked up by ', link(lookup.from), way.length === 0 ? ', which knew the owner: no other node was asked.' : ', which asked:'),
    way.length > 0 && h('ol', { class: 'steps' }, way.map(item)),
    way.length > 0 && h('p', { 'data-total': true }, and([count(way.length, 'hop'), silent > 0 && count(silent, 'time-out'), `${latency(total(lookup))} in all`].filter(Boolean)), '.'),
    h('p', { class: 'dim' }, 'Hash ', h('code', { class: 'id' }, lookup.hash), `: ${(fraction(lookup.hash) * 100).toFixed(2)} % round`));
}
