/**
 * The drawing of the ring: the circle runs clockwise from the top; a node sits where its range ends.
 */

import { age, count, h, number, part, percent, s } from './dom.js';
import { arc, link, MANY, NODE, place, RING, SOME, WIDTH } from './geometry.js';
import { drawLabel, layout } from './labels.js';
import { colours, fraction, lack, look, nameOf, nodeOf, summary } from './state.js';
import { drawSuspicions, suspectedFor } from './suspicion.js';
import { drawTrace, stops } from './trace.js';
import { drawTransfers, isStalled } from './transfers.js';

/** The marks of states, drawn in a box from -6 to 6. "up" has none. */
const MARKS = {
  starting: 'M0-5V5M-5 0H5',
  paused: 'M-2.8-4.5v9M2.8-4.5v9',
  draining: 'M-5 0H4.5M1-3.5 4.5 0 1 3.5',
  down: 'M-4.2-4.2l8.4 8.4M4.2-4.2l-8.4 8.4',
  missing: 'M-4.2-4.2l8.4 8.4M4.2-4.2l-8.4 8.4',
  silent: 'M-2.7-2.6A2.8 2.8 0 1 1 1.3-.3Q0 .5 0 1.6M0 4.6v.4',
  suspected: 'M-2.7-2.6A2.8 2.8 0 1 1 1.3-.3Q0 .5 0 1.6M0 4.6v.4',
};
const TICK = 'M-5 .5-1.6 4 5-4';
const BANG = 'M0-5.5V1.2M0 4.6v.4';

/** A node as a small picture: its colour, its mark. */
function symbol(node, colour) {
  const { mark } = look(node);
  return [
    s('circle', { r: NODE, class: `disc colour-${colour}` }),
    mark !== 'up' && s('path', { d: MARKS[mark], class: 'mark' }),
  ];
}

/** The same for a line of text. */
export function badge(state, node) {
  return s('svg', { viewBox: '-16 -16 32 32', class: `badge look-${look(node).mark}`, 'aria-hidden': 'true' }, symbol(node, colours(state).get(node.id)));
}

/** The tick, bang, cross or question mark of a verdict. */
export function verdictMark(tone, size) {
  const path = { right: TICK, degraded: BANG, wrong: MARKS.down, unknown: MARKS.silent }[tone];
  return s('svg', { viewBox: '-10 -10 20 20', width: size, height: size, class: 'verdict-mark', 'aria-hidden': 'true' }, s('path', { d: path }));
}

function drawRange(state, range, owners) {
  const owner = range.members[0];
  const missing = lack(state, range);
  const node = nodeOf(state, owner);
  const gone = node && !node.answering;
  const source = JSON.stringify([range.from, range.share, missing, gone, owners.get(owner), range.members.map((id) => nameOf(state, id))]);
  return part(`range-${range.hi}`, source, () => s('g', { 'data-key': `range-${range.hi}`, class: `range ${gone ? 'gone' : ''}` },
    s('path', { d: arc(range.from, range.share, RING, 1.5), class: `arc ${missing === 'unavailable' ? 'unavailable' : `colour-${owners.get(owner) ?? 'none'}`}` }),
    missing && s('path', { d: arc(range.from, range.share, RING - WIDTH / 2 - 5, 4), class: `lack ${missing}` }),
    s('title', {}, `${percent(range.share)} of the circle, kept by ${range.members.map((id) => nameOf(state, id)).join(', ')}`)));
}

/** What a node is to the key that was looked for: its owner, a member of its range, or nothing. */
function halo({ lookup }, node) {
  if (!lookup) return null;
  if (lookup.owner.node.position === node.id) return 'owner';
  return lookup.members.some((peer) => peer.node.position === node.id) ? 'member' : null;
}

/** The lines of a node's label: bold and small text each. */
function labelLines(state, node, view) {
  const { mark, words } = look(node);
  const since = suspectedFor(node);
  const long = since !== null && age(since + view.since);
  const plain = words.replace(', but suspected', '');
  if (state.nodes.length > SOME) return [[node.name, [mark !== 'up' && plain, long].filter(Boolean).join(' ')]];
  return [[node.name], [null, mark === 'up' || mark === 'suspected' ? percent(node.share) : plain], long && [null, `suspected ${long}`]].filter(Boolean);
}

/** The labels, and how many find no room. In large rings only what is remarkable has one. */
function drawLabels(state, view) {
  const onTheWay = view.lookup ? stops(view.lookup) : new Set();
  const rank = (node) => [view.selected === node.id, halo(view, node) !== null, onTheWay.has(node.id), look(node).mark !== 'up'].indexOf(true);
  const all = state.nodes.map((node) => ({ node, rank: rank(node) }));
  const labelled = state.nodes.length > MANY ? all.filter((item) => item.rank >= 0) : all;
  labelled.sort((one, other) => (one.rank < 0 ? 9 : one.rank) - (other.rank < 0 ? 9 : other.rank));
  const items = labelled.map(({ node }) => ({ node, at: node.at, texts: labelLines(state, node, view) }));
  const few = state.nodes.length <= SOME;
  const places = layout(items.map(({ at, texts }) => ({ at, lines: texts.length })), few);
  return s('g', { 'data-key': 'labels', 'data-left-out': items.length - places.size || null, 'aria-hidden': 'true' }, items.map(({ node, texts }, index) => places.has(index)
    && s('g', { 'data-key': `label-${node.id}`, 'data-select': node.id, class: `look-${look(node).mark} name-of` }, drawLabel(places.get(index), texts))));
}

/** How large a node is drawn: in large rings they would cover each other. */
function sizeOf(state, remarkable) {
  const nodes = state.nodes.length;
  if (nodes <= SOME) return 1;
  if (nodes <= MANY) return 0.75;
  const fits = (0.9 * 2 * Math.PI * RING) / (2 * NODE * nodes);
  return remarkable ? 0.55 : Math.min(0.5, Math.max(0.22, fits));
}

function drawNode(state, node, owners, view, tabbable) {
  const { mark, words } = look(node);
  const selected = view.selected === node.id;
  const its = halo(view, node);
  const size = sizeOf(state, selected || its || mark !== 'up');
  const source = JSON.stringify([node.name, node.at, node.share, mark, words, selected, its, size, tabbable, node.suspected_by.length, owners.get(node.id)]);
  return part(`node-${node.id}`, source, () => s('g', {
    'data-key': `node-${node.id}`,
    class: `node look-${mark} ${selected ? 'selected' : ''}`,
    'data-select': node.id,
    'data-at': node.at,
    role: 'button',
    tabindex: tabbable ? 0 : -1,
    'aria-pressed': String(selected),
    'aria-label': `${node.name}, ${words}, owns ${percent(node.share)}${node.suspected_by.length > 0 ? `, suspected by ${count(node.suspected_by.length, 'node')}` : ''}${its ? `, ${its} of the key` : ''}`,
  },
  s('g', { transform: `translate(${place(node.at, RING)}) scale(${size})` },
    its && s('circle', { r: NODE + 9, class: `halo ${its}` }),
    selected && s('circle', { r: NODE + 5, class: 'chosen' }),
    symbol(node, owners.get(node.id)))));
}

/** Who the selected node points to. */
function drawLinks(state, node) {
  const to = (id) => nodeOf(state, id)?.at ?? fraction(id);
  const targets = [...new Set(node.fingers.map((finger) => finger.node))].filter((id) => id !== node.id);
  return s('g', { 'data-key': 'links', class: `links ${node.answering ? '' : 'stale'}` },
    targets.map((id) => s('path', { d: link(node.at, to(id), 0.8), class: 'finger' })),
    node.predecessor && node.predecessor !== node.id && s('path', { d: link(node.at, to(node.predecessor), 0.5), class: 'predecessor', 'marker-end': 'url(#arrow-predecessor)' }),
    node.successors[0] && s('path', { d: link(node.at, to(node.successors[0]), 0.3), class: 'successor', 'marker-end': 'url(#arrow-successor)' }));
}

function centre(state) {
  const { tone } = summary(state);
  const requests = state.nodes.reduce((sum, node) => sum + (node.answering ? node.load?.operations_per_second ?? 0 : 0), 0);
  return s('g', { 'data-key': 'centre', class: `centre tone-${tone}` },
    s('circle', { r: 22, cy: -38, class: 'seal' }),
    s('path', { d: { right: TICK, degraded: BANG, wrong: MARKS.down }[tone], transform: 'translate(0 -38) scale(1.9)', class: 'seal-mark' }),
    s('text', { y: 14, class: 'centre-big' }, count(state.ranges.reduce((keys, range) => keys + range.keys, 0), 'key')),
    s('text', { y: 36, class: 'centre-small' }, `${number(requests)} requests/s`));
}

const arrow = (name) => s('marker', { id: `arrow-${name}`, class: name, viewBox: '0 0 8 8', refX: 7, refY: 4, markerUnits: 'userSpaceOnUse', markerWidth: 15, markerHeight: 15, orient: 'auto' }, s('path', { d: 'M0 .5 8 4 0 7.5Z' }));

/**
 * @param {import('./state.js').RingState} state
 * @param {{selected: ?string, lookup: ?import('./state.js').Lookup}} view
 */
export function drawRing(state, view) {
  const owners = colours(state);
  const selected = nodeOf(state, view.selected);
  const first = selected ?? state.nodes[0];
  // What is remarkable covers what is not.
  const order = state.nodes.toSorted((one, other) => isRemarkable(view, one) - isRemarkable(view, other));
  return s('svg', { viewBox: state.nodes.length <= SOME ? '-300 -252 600 504' : '-335 -252 670 504', class: `ring ${state.nodes.length <= SOME ? 'few' : ''}`, role: 'group', 'aria-label': `Ring of ${count(state.nodes.length, 'node')}` },
    s('defs', {},
      ['successor', 'predecessor', 'hop', 'suspicion', 'transfer'].map(arrow),
      s('pattern', { id: 'hatch', width: 8, height: 8, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }, s('path', { d: 'M0 4H8', class: 'hatch' }))),
    s('circle', { r: RING, class: 'track' }),
    state.ranges.map((range) => drawRange(state, range, owners)),
    selected ? drawLinks(state, selected) : !view.lookup && centre(state),
    drawTransfers(state, view),
    drawSuspicions(state, view),
    view.lookup && drawTrace(state, view.lookup),
    order.map((node) => drawNode(state, node, owners, view, node === first)),
    drawLabels(state, view));
}

const isRemarkable = (view, node) => Number(view.selected === node.id || halo(view, node) !== null || look(node).mark !== 'up');

/** What the lines and marks mean: only those that can be seen now. */
export function drawLegend(state, view) {
  const line = (name, words, d = 'M2 8H30') => h('li', {}, s('svg', { viewBox: '0 0 32 16', width: 32, height: 16, 'aria-hidden': 'true' }, s('path', { d, class: name })), words);
  const lacks = new Set(state.ranges.map((range) => lack(state, range)));
  const node = nodeOf(state, view.selected);
  return h('ul', { class: 'legend' },
    lacks.has('unavailable') && line('lack unavailable', 'out of reach'),
    lacks.has('short') && line('lack short', 'lacks copies'),
    lacks.has('sweeping') && line('lack sweeping', 'being checked after a change'),
    node && line('successor', 'successor'),
    node && line('predecessor', 'predecessor'),
    node && line('finger', 'fingers'),
    state.nodes.some((other) => other.suspected_by.length > 0) && line('suspicion', 'suspects'),
    state.transfers.some((transfer) => transfer.ended_ms === null) && line('transfer', 'gives keys to'),
    state.transfers.some((transfer) => isStalled(transfer, view.since)) && line('transfer stalled', 'stalled'),
    view.lookup && line('hop', 'hops of the lookup, with their times'),
    view.lookup?.hops.some((hop) => !hop.answered) && line('hop silent', 'no answer'),
    view.lookup && line('hop-end', 'who was told of'),
    state.nodes.length > MANY && h('li', { class: 'hint' }, 'Only nodes that are selected, asked or not simply up are named.'),
    view.lookup && line('key-point', `“${view.lookup.key}”`, 'M16 1l7 7-7 7-7-7Z'),
    view.lookup && h('li', {}, h('button', { type: 'button', class: 'quiet', 'data-forget': true }, 'Forget the key')),
    !node && !view.lookup && lacks.size <= 1 && lacks.has(null) && h('li', { class: 'hint' }, 'Arcs are in proportion to what a node owns. Select a node to see its links.'));
}
