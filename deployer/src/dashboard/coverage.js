/** What keeps the circle: gaps, missing copies, and what the ring would be without some node. */

import { and, count, h, percent, prose } from './dom.js';
import { answering, holders, lack, lossOf, nameOf, nodeOf, NOTHING, others, shareOf, spare } from './state.js';

/**
 * The state as it would be at once if this node failed: before anybody takes its place.
 * @param {import('./state.js').RingState} state
 */
export function without(state, id) {
  const left = others(state, id);
  return {
    ...state,
    verdict: { ...state.verdict, right: false, replicated: false },
    nodes: state.nodes.map((node) => (node.id === id ? { ...node, state: 'down', answering: false, suspected_by: [] } : node)),
    ranges: state.ranges.map((range) => ({ ...range, available: spare(range, left) >= 0 })),
  };
}

/** Where ranges that should meet do not, in sentences. */
function seams(state) {
  const said = [];
  state.ranges.forEach((range, index) => {
    const next = state.ranges[(index + 1) % state.ranges.length];
    if (next.lo === range.hi) return;
    const ahead = (((next.from - (range.from + range.share)) % 1) + 1) % 1;
    const names = `the range up to ${nameOf(state, range.hi)} and the one up to ${nameOf(state, next.hi)}`;
    said.push(ahead < 0.5 ? `Nobody keeps ${percent(ahead)} of the circle between ${names}.` : `${percent(1 - ahead)} of the circle is in both ${names}: one of them is of an older epoch.`);
  });
  return said;
}

/** How many members the ranges have that answer: "3 of 3 members: 100.0 %". */
function copies(state, there) {
  const shares = new Map();
  for (const range of state.ranges) {
    const name = `${holders(range, there).length} of ${range.members.length}`;
    shares.set(name, (shares.get(name) ?? 0) + range.share);
  }
  return [...shares].sort();
}

/** The panel. */
export function coverage(state) {
  if (state.ranges.length === 0) return h('p', { class: 'hint' }, 'No node has told of a range yet.');
  const there = answering(state);
  // How many nodes can fail at once, whichever they are, before some key is out of reach.
  const canFail = Math.min(...state.ranges.map((range) => spare(range, there)));
  const parts = { unavailable: 'out of reach until nodes that keep it are back; if they never will be, `sky-deploy repair` helps', short: 'without all its copies', sweeping: 'being checked after a change' };
  const problems = [
    ...seams(state),
    ...Object.entries(parts)
      .map(([kind, words]) => [shareOf(state.ranges.filter((range) => lack(state, range) === kind)), words])
      .filter(([share]) => share > NOTHING)
      .map(([share, words]) => `${percent(share)} of the circle is ${words}.`),
  ];
  const fatal = state.nodes.filter((node) => node.answering)
    .map((node) => ({ node, lost: lossOf(state, node.id) }))
    .filter(({ lost }) => lost > NOTHING)
    .sort((one, other) => other.lost - one.lost);
  const link = ({ node, lost }) => h('li', { 'data-key': node.id }, h('button', { type: 'button', class: 'link', 'data-select': node.id }, node.name), ` ${percent(lost)}`);
  return [
    h('table', { class: 'copies' },
      h('caption', { class: 'hidden' }, 'How much of the circle is kept by how many members that answer'),
      h('tbody', {}, copies(state, there).map(([name, share]) => h('tr', { 'data-key': name },
        h('th', { scope: 'row' }, `${name} members answer`),
        h('td', {}, percent(share)),
        h('td', { 'aria-hidden': 'true' }, h('meter', { min: 0, max: 1, value: share })))))),
    problems.map((problem) => h('p', { class: 'remark' }, prose(problem))),
    fatal.length > 0
      ? [h('p', { class: 'remark' }, 'If one of these failed now, so much would be out of reach until it is back:'), h('ul', { class: 'fatal' }, fatal.slice(0, 12).map(link)), fatal.length > 12 && h('p', { class: 'dim' }, `and ${fatal.length - 12} more`)]
      : canFail > 0 && h('p', { class: 'good' }, canFail === 1 ? 'Any one node can fail now, and every key stays within reach.' : `Any ${canFail} nodes can fail at once now, and every key stays within reach.`),
  ];
}

/** What would follow if this node failed now, in sentences. */
export function consequences(state, id) {
  const there = answering(state);
  const node = nodeOf(state, id);
  if (!there.has(id)) return [`${node.name} does not answer: what you see is what there is without it.`];
  const lost = lossOf(state, id);
  const kept = state.ranges.filter((range) => range.members.includes(id));
  const owned = state.ranges.filter((range) => range.members[0] === id);
  const heirs = [...new Set(owned.map((range) => holders(range, there).find((member) => member !== id)).filter(Boolean))];
  const keys = kept.reduce((total, range) => total + range.keys, 0);
  const left = others(state, id).size;
  return [
    lost > NOTHING
      ? `${percent(lost)} of the circle is out of reach until it is back, or until the ring is repaired by \`sky-deploy repair\`.`
      : 'Every key can still be read and written.',
    owned.length > 0 && heirs.length > 0 && `${and(heirs.map((heir) => nameOf(state, heir)))} answers for the ${percent(shareOf(owned))} of the circle that it owns.`,
    kept.length > 0 && `${count(kept.length, 'range')} with ${count(keys, 'key')} have one copy less${lost <= NOTHING && left >= Math.min(state.replicas, 2) ? ', until other nodes take its place' : ''}.`,
    lost <= NOTHING && left < state.replicas && `Only ${count(left, 'node')} would be left: fewer than the ${state.replicas} copies that every key should have.`,
  ].filter(Boolean);
}

/** The same for the panel of the node, with the button that draws it. */
export function whatIf(state, view) {
  const is = view.whatIf;
  return [
    h('button', { type: 'button', 'data-whatif': true, 'data-key': 'what-if', 'aria-pressed': String(is) }, is ? 'Show it as it is' : 'What if it fails?'),
    is && h('div', { class: 'whatif', role: 'status', 'data-key': 'what-if-text' },
      h('p', {}, h('strong', {}, `If ${nameOf(state, view.selected)} failed now`), ' (the ring above shows it):'),
      h('ul', { class: 'reasons' }, consequences(state, view.selected).map((text) => h('li', {}, prose(text))))),
  ];
}
