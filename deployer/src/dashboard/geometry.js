/** Places on the drawing of the ring: the circle runs clockwise from the top, its centre is 0, 0. */

/** Radii in units of the drawing. */
export const RING = 150;
export const WIDTH = 30;
export const LABEL = 190;
export const NODE = 13;
/** Beyond this many nodes they are smaller and the labels have one line. */
export const SOME = 12;
/** Beyond this many nodes only the remarkable ones are labelled. */
export const MANY = 36;

const round = (x) => Math.round(x * 100) / 100;
const angle = (at) => (at - 0.25) * 2 * Math.PI;

/** The point at a share of the circle. */
export const place = (at, radius) => [radius * Math.cos(angle(at)), radius * Math.sin(angle(at))].map(round);

/** The part of a circle from one share to another, clockwise. */
export function arc(from, share, radius, inset = 0) {
  const length = Math.min(share, 0.9999);
  const trim = Math.min(inset / (2 * Math.PI * radius), length / 3);
  const [start, end] = [place(from + trim, radius), place(from + length - trim, radius)];
  return `M${start}A${radius} ${radius} 0 ${length - 2 * trim > 0.5 ? 1 : 0} 1 ${end}`;
}

/** A curve inside the circle, the short way round; `depth` from 0, which hugs the ring, to 1. With a point of it. */
export function curve(from, to, depth, part = 0.5) {
  const radius = RING - WIDTH / 2 - 4;
  const ahead = (((to - from) % 1) + 1) % 1;
  const way = ahead > 0.5 ? ahead - 1 : ahead;
  const pull = depth * Math.min(1, 0.25 + 1.5 * Math.abs(way));
  const [start, control, end] = [place(from, radius), place(from + way / 2, radius * (1 - pull)), place(to, radius)];
  return {
    d: `M${start}Q${control} ${end}`,
    point: [0, 1].map((axis) => round((1 - part) ** 2 * start[axis] + 2 * part * (1 - part) * control[axis] + part ** 2 * end[axis])),
  };
}

/** The curve alone. */
export const link = (from, to, depth) => curve(from, to, depth).d;
