/** Who suspects whom, and for how long: on the circle, and in words. */

import { age, and, count, h, s } from './dom.js';
import { curve, link } from './geometry.js';
import { nameOf, nodeOf } from './state.js';

/** Beyond this many lines none is drawn unless it belongs to the selected node. */
const DRAWN = 60;
/** Beyond this many suspected nodes the times stand below the ring only. */
const TIMED = 3;
/** How many are named of those who suspect one node. */
const NAMED = 6;

/** The nodes that are suspected, each with who suspects it, the longest first. */
export const suspected = (state) => state.nodes
  .filter((node) => node.suspected_by.length > 0)
  .map((node) => ({ node, by: node.suspected_by.toSorted((one, other) => other[1] - one[1]) }));

/** Whom a node suspects, and for how many milliseconds. */
export const suspects = (state, id) => state.nodes.flatMap((node) => node.suspected_by.filter(([by]) => by === id).map(([, ms]) => [node.id, ms]));

/** The longest time that a node has been suspected, or null if it is not. */
export const suspectedFor = (node) => (node.suspected_by.length > 0 ? Math.max(...node.suspected_by.map(([, ms]) => ms)) : null);

/** Lines from those who suspect to whom they suspect. */
export function drawSuspicions(state, view) {
  const lines = suspected(state).flatMap(({ node, by }) => by.map(([id, ms]) => ({ node, by: nodeOf(state, id), ms }))).filter((line) => line.by);
  const isChosen = ({ node, by }) => view.selected === null || node.id === view.selected || by.id === view.selected;
  const shown = lines.length > DRAWN ? lines.filter((line) => view.selected !== null && isChosen(line)).slice(0, DRAWN) : lines;
  return s('g', { 'data-key': 'suspicions', class: 'suspicions', role: 'presentation' }, shown.map((line) => s('path', {
    'data-key': `suspicion-${line.by.id}-${line.node.id}`,
    d: link(line.by.at, line.node.at, 0.45),
    class: `suspicion ${isChosen(line) && !view.lookup ? '' : 'faint'}`,
    'marker-end': 'url(#arrow-suspicion)',
  }, s('title', {}, `${line.by.name} has suspected ${line.node.name} for ${age(line.ms)}`))),
  // The longest time stands once for each node, on the line farthest from the middle, where something is written.
  suspected(state).length <= TIMED && !view.lookup && suspected(state).map(({ node, by: [[, ms]] }) => {
    const points = shown.filter((line) => line.node === node).map((line) => curve(line.by.at, node.at, 0.45).point);
    if (points.length === 0) return null;
    const [x, y] = points.toSorted((one, other) => Math.hypot(...other) - Math.hypot(...one))[0];
    return s('text', { 'data-key': `suspected-${node.id}`, x, y, class: 'on-line bad', 'aria-hidden': 'true' }, `? ${age(ms + view.since)}`);
  }));
}

/** "n1 for 12 s, n2 for 3 s". */
const times = (state, by, since) => by.map(([id, ms]) => `${nameOf(state, id)} for ${age(ms + since)}`);

/** The same in words, for everybody. */
export function listSuspicions(state, view) {
  const list = suspected(state);
  if (list.length === 0) return [];
  return [
    h('h3', {}, 'Suspicions'),
    h('ul', { class: 'suspected' }, list.map(({ node, by }) => h('li', { 'data-key': node.id },
      h('button', { type: 'button', class: 'link', 'data-select': node.id }, node.name),
      ` is suspected by ${and([...times(state, by.slice(0, NAMED), view.since), ...(by.length > NAMED ? [`${count(by.length - NAMED, 'other')}`] : [])])}`))),
  ];
}
