/** The names of nodes around the ring: on the side where the node is, one below the other, never one over another. */

import { s } from './dom.js';
import { LABEL, place, RING, WIDTH } from './geometry.js';

/** How far from the middle labels may be, up and down. */
const EXTENT = 242;
/** A line of text. */
const LINE = { few: 20, many: 17 };
/** How near the vertical axis a label may stand in the middle above or below its node. */
const AXIS = 40;

/** Puts what is on one side one below the other, as near as can be to where it belongs. */
function stack(items) {
  items.sort((one, other) => one.y - other.y);
  let free = -EXTENT;
  for (const item of items) {
    item.y = Math.max(item.y, free + item.height / 2);
    free = item.y + item.height / 2;
  }
  free = EXTENT;
  for (const item of items.toReversed()) {
    item.y = Math.min(item.y, free - item.height / 2);
    free = item.y - item.height / 2;
  }
}

/**
 * Places for labels, by the index of the item; those that find no room are left out, the last first.
 * @param {{at: number, lines: number}[]} items the most important first
 * @param {boolean} few whether there is room for large ones
 */
export function layout(items, few) {
  const line = few ? LINE.few : LINE.many;
  const sides = { '-1': [], 1: [] };
  const room = { '-1': 2 * EXTENT, 1: 2 * EXTENT };
  const isOnAxis = (at) => Math.abs(place(at, LABEL)[0]) < AXIS;
  items.forEach(({ at, lines }, index) => {
    const [x, beside] = place(at, LABEL);
    const side = x < 0 ? -1 : 1;
    const height = lines * line;
    // Above and below the ring all its lines are beyond the node.
    const y = beside + (height / 2 - 10) * (beside / LABEL);
    if (room[side] < height) return;
    room[side] -= height;
    const upper = beside < 0;
    const isAlone = isOnAxis(at) && items.every((other) => other.at === at || !isOnAxis(other.at) || place(other.at, LABEL)[1] < 0 !== upper);
    sides[side].push({ index, at, side, height, line, lines, y, isAlone, wanted: y });
  });
  const placed = new Map();
  for (const side of Object.values(sides)) {
    stack(side);
    for (const item of side) {
      const centred = item.isAlone && Math.abs(item.y - item.wanted) < 1;
      const x = centred ? place(item.at, LABEL)[0] : item.side * Math.max(14, Math.sqrt(Math.max(0, LABEL ** 2 - item.y ** 2)));
      placed.set(item.index, { ...item, x, anchor: centred ? 'middle' : item.side < 0 ? 'end' : 'start' });
    }
  }
  return placed;
}

/** One label: its lines, the first in bold, each with what follows in small letters; and a line to the node if it was moved. */
export function drawLabel({ at, side, x, y, wanted, line, lines, anchor }, texts) {
  const moved = anchor !== 'middle' && Math.hypot(x - place(at, LABEL)[0], y - wanted) > 10;
  const start = x - (anchor === 'middle' ? 0 : 8 * side);
  return [
    moved && s('path', { d: `M${place(at, RING + WIDTH / 2)}L${[x - 11 * side, y].map(Math.round)}`, class: 'leader' }),
    texts.map(([bold, small], index) => s('text', { x: Math.round(start), y: Math.round(y + (index - (lines - 1) / 2) * line + 5), 'text-anchor': anchor, class: bold ? 'label' : 'label-small' },
      bold, bold && small ? s('tspan', { class: 'label-small' }, ` ${small}`) : small)),
  ];
}
