/**
 * The drawing of the ring: the circle runs clockwise from the top; a node sits where its range ends.
 */

import { count, h, number, percent, s } from './dom.js';
import { colours, fraction, lack, look, nameOf, nodeOf, summary } from './state.js';

/** Radii in units of the drawing. */
const RING = 150;
const WIDTH = 30;
const LABEL = 190;
const NODE = 13;
/** Beyond this many nodes they are smaller and the labels have one line. */
const SOME = 12;
/** Beyond this many nodes only the remarkable ones are labelled. */
const MANY = 36;

const angle = (at) => (at - 0.25) * 2 * Math.PI;
const place = (at, radius) => [radius * Math.cos(angle(at)), radius * Math.sin(angle(at))].map((x) => Math.round(x * 100) / 100);

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

/** The part of a circle from one share to another, clockwise. */
function arc(from, share, radius, inset = 0) {
  const length = Math.min(share, 0.9999);
  const trim = Math.min(inset / (2 * Math.PI * radius), length / 3);
  const [start, end] = [place(from + trim, radius), place(from + length - trim, radius)];
  return `M${start}A${radius} ${radius} 0 ${length - 2 * trim > 0.5 ? 1 : 0} 1 ${end}`;
}

/** A curve inside the circle, the short way round; `depth` from 0, which hugs the ring, to 1. */
function link(from, to, depth) {
  const radius = RING - WIDTH / 2 - 4;
  const ahead = (((to - from) % 1) + 1) % 1;
  const way = ahead > 0.5 ? ahead - 1 : ahead;
  const pull = depth * Math.min(1, 0.25 + 1.5 * Math.abs(way));
  return `M${place(from, radius)}Q${place(from + way / 2, radius * (1 - pull))} ${place(to, radius)}`;
}

function drawRange(state, range, owners) {
  const owner = range.members[0];
  const missing = lack(state, range);
  const node = nodeOf(state, owner);
  const gone = node && !node.answering;
  return s('g', { 'data-key': `range-${range.hi}`, class: `range ${gone ? 'gone' : ''}` },
    s('path', { d: arc(range.from, range.share, RING, 1.5), class: `arc ${missing === 'unavailable' ? 'unavailable' : `colour-${owners.get(owner) ?? 'none'}`}` }),
    missing && s('path', { d: arc(range.from, range.share, RING - WIDTH / 2 - 5, 4), class: `lack ${missing}` }),
    s('title', {}, `${percent(range.share)} of the circle, kept by ${range.members.map((id) => nameOf(state, id)).join(', ')}`));
}

/** Where the labels go on the circle: beside their nodes, pushed apart where these are close. */
function labelPlaces(nodes) {
  const gap = Math.min(0.032, 0.9 / nodes.length);
  const places = nodes.map((node) => node.at);
  for (let round = 0; round < 60; round += 1) {
    places.forEach((_, index) => {
      const after = (index + 1) % places.length;
      const between = places[after] - places[index] + (after === 0 ? 1 : 0);
      const push = after === index ? 0 : Math.max(0, gap - between) / 2;
      places[index] -= push;
      places[after] += push;
    });
  }
  return places;
}

function drawLabel(state, node, at) {
  const { mark, words } = look(node);
  const [x, y] = place(at, LABEL);
  const side = Math.abs(x) < 40 ? 0 : Math.sign(x);
  const anchor = { '-1': 'end', 0: 'middle', 1: 'start' }[side];
  const two = state.nodes.length <= SOME;
  const middle = y + (two ? 0 : 8) + 9 * Math.sin(angle(at));
  const moved = Math.abs(at - node.at) > 0.008;
  return [
    moved && s('path', { d: `M${place(node.at, RING + WIDTH / 2)}L${place(at, LABEL - 8)}`, class: 'leader' }),
    s('text', { x: x - 8 * side, y: middle - 2, 'text-anchor': anchor, class: 'label' }, node.name,
      !two && mark !== 'up' && s('tspan', { class: 'label-small' }, ` ${words}`)),
    two && s('text', { x: x - 8 * side, y: middle + 14, 'text-anchor': anchor, class: 'label-small' }, mark === 'up' ? percent(node.share) : words),
  ];
}

function drawNode(state, node, owners, labelAt, view, tabbable) {
  const { mark, words } = look(node);
  const selected = view.selected === node.id;
  const size = state.nodes.length <= SOME ? 1 : state.nodes.length <= MANY ? 0.75 : 0.5;
  const halo = view.lookup && (view.lookup.owner.node.position === node.id ? 'owner' : view.lookup.members.some((peer) => peer.node.position === node.id) && 'member');
  return s('g', {
    'data-key': `node-${node.id}`,
    class: `node look-${mark} ${selected ? 'selected' : ''}`,
    'data-select': node.id,
    role: 'button',
    tabindex: tabbable ? 0 : -1,
    'aria-pressed': String(selected),
    'aria-label': `${node.name}, ${words}, owns ${percent(node.share)}${halo ? `, ${halo} of the key` : ''}`,
  },
  s('g', { transform: `translate(${place(node.at, RING)}) scale(${size})` },
    halo && s('circle', { r: NODE + 9, class: `halo ${halo}` }),
    selected && s('circle', { r: NODE + 5, class: 'chosen' }),
    symbol(node, owners.get(node.id))),
  (state.nodes.length <= MANY || selected || halo || mark !== 'up') && drawLabel(state, node, labelAt));
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

/** Where the key lies and who was asked for it. */
function drawLookup(state, lookup) {
  const stops = [...new Set([...lookup.hops.map((hop) => hop.peer.node.position), lookup.owner.node.position])]
    .map((id) => nodeOf(state, id)?.at ?? fraction(id));
  const [x, y] = place(fraction(lookup.hash), RING);
  return s('g', { 'data-key': 'lookup', class: 'lookup' },
    stops.slice(1).map((stop, index) => s('path', { d: link(stops[index], stop, 0.6), class: 'hop', 'marker-end': 'url(#arrow-hop)' })),
    s('path', { d: 'M0-9 9 0 0 9-9 0Z', transform: `translate(${x} ${y})`, class: 'key-point' }, s('title', {}, `“${lookup.key}” lies here`)));
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

const arrow = (name) => s('marker', { id: `arrow-${name}`, class: name, viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto' }, s('path', { d: 'M0 .5 8 4 0 7.5Z' }));

/**
 * @param {import('./state.js').RingState} state
 * @param {{selected: ?string, lookup: ?import('./state.js').Lookup}} view
 */
export function drawRing(state, view) {
  const owners = colours(state);
  const labels = labelPlaces(state.nodes);
  const selected = nodeOf(state, view.selected);
  const first = selected ?? state.nodes[0];
  return s('svg', { viewBox: '-270 -232 540 464', class: 'ring', role: 'group', 'aria-label': `Ring of ${count(state.nodes.length, 'node')}` },
    s('defs', {},
      ['successor', 'predecessor', 'hop'].map(arrow),
      s('pattern', { id: 'hatch', width: 8, height: 8, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }, s('path', { d: 'M0 4H8', class: 'hatch' }))),
    s('circle', { r: RING, class: 'track' }),
    state.ranges.map((range) => drawRange(state, range, owners)),
    selected ? drawLinks(state, selected) : !view.lookup && centre(state),
    view.lookup && drawLookup(state, view.lookup),
    state.nodes.map((node, index) => drawNode(state, node, owners, labels[index], view, node === first)));
}

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
    view.lookup && line('key-point', `“${view.lookup.key}”`, 'M16 1l7 7-7 7-7-7Z'),
    view.lookup && h('li', {}, h('button', { type: 'button', class: 'quiet', 'data-forget': true }, 'Forget the key')),
    !node && !view.lookup && lacks.size <= 1 && lacks.has(null) && h('li', { class: 'hint' }, 'Arcs are in proportion to what a node owns. Select a node to see its links.'));
}
