// The ring as a circle: point 0 at the top, clockwise; this node, its neighbours, its fingers.

const SVG = "http://www.w3.org/2000/svg";
const RADIUS = 100;

/** Where a point of 40 hexadecimal digits lies on the circle, from 0 to 1. */
export const fraction = (point) => parseInt(point.slice(0, 12), 16) / 2 ** 48;

/** The share of the circle in (lo, hi], from 0 to 1; all of it if both are equal. */
export const share = (lo, hi) => (lo === hi ? 1 : (fraction(hi) - fraction(lo) + 1) % 1);

const at = (point, radius = RADIUS) => {
  const angle = 2 * Math.PI * fraction(point);
  return [radius * Math.sin(angle), -radius * Math.cos(angle)].map((number) => number.toFixed(2));
};

const shape = (name, attributes, label) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (label) element.append(Object.assign(document.createElementNS(SVG, "title"), { textContent: label }));
  return element;
};

const arc = (lo, hi) => {
  if (lo === hi) return shape("circle", { r: RADIUS, class: "arc" });
  const large = share(lo, hi) > 0.5 ? 1 : 0;
  const path = `M ${at(lo).join(" ")} A ${RADIUS} ${RADIUS} 0 ${large} 1 ${at(hi).join(" ")}`;
  return shape("path", { d: path, class: "arc" });
};

/** Draws a view of the ring into an SVG element. */
export const drawCircle = (svg, view) => {
  const me = view.me.node.position;
  const near = new Set([view.predecessor, view.successors[0]].filter(Boolean).map((peer) => peer.node.position));
  const nodes = new Map(view.members.map((member) => [member.peer.node.position, member]));
  for (const peer of [view.predecessor, ...view.successors].filter(Boolean)) {
    if (!nodes.has(peer.node.position)) nodes.set(peer.node.position, { peer, suspected_ms: null });
  }
  const parts = [shape("circle", { r: RADIUS, class: "ring-line" })];
  parts.push(arc(view.predecessor?.node.position ?? me, me));
  const fingers = new Set(view.fingers.map((finger) => finger.peer.node.position));
  for (const target of fingers) {
    if (target === me || near.has(target)) continue;
    parts.push(shape("path", { d: `M ${at(me).join(" ")} Q 0 0 ${at(target).join(" ")}`, class: "chord" }));
  }
  for (const [position, { peer, suspected_ms: suspected }] of nodes) {
    if (position === me) continue;
    const [cx, cy] = at(position);
    const kind = suspected !== null ? "suspected" : near.has(position) ? "near" : "";
    parts.push(shape("circle", { cx, cy, r: 5, class: `node ${kind}` }, `${position.slice(0, 8)} ${peer.address}`));
  }
  const [cx, cy] = at(me);
  parts.push(shape("circle", { cx, cy, r: 7, class: "node me" }, `${me.slice(0, 8)} this node`));
  const title = svg.querySelector("title");
  title.textContent = `The ring: this node and ${nodes.size - (nodes.has(me) ? 1 : 0)} others`;
  svg.replaceChildren(title, ...parts);
};
