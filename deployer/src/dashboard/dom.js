/**
 * Building elements, updating them in place, and writing numbers for people.
 *
 * Every panel is a function from the state to a tree of new elements; `morph` makes the tree on the
 * page equal to it and touches only what differs, so focus, selection and scrolling survive an update.
 */

const SVG = 'http://www.w3.org/2000/svg';

/** Fills a new element: attributes that are null or false are left out, true means "is there". */
function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? '' : value);
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A new HTML element. */
export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);

/** A new SVG element. */
export const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

const keyOf = (node) => node.getAttribute?.('data-key') ?? undefined;

/** The parts on the page, by their key, with what they were made from. */
const parts = new Map();

/**
 * A part of a panel that is made again only if what it is made from has changed. Its key must be the only
 * one on the page, and the element's `data-key`.
 * @param {string} key @param {string} source @param {() => Element} make
 */
export function part(key, source, make) {
  const there = parts.get(key);
  if (there?.element.isConnected && there.source === source) {
    const same = there.element.cloneNode(false);
    same.isSame = true;
    return same;
  }
  const made = make();
  made.source = source;
  return made;
}

/** Notes what a part on the page was made from. */
function note(element, { source }) {
  if (source !== undefined) parts.set(keyOf(element), { element, source });
}

/** Makes `old` equal to `next`. */
export function morph(old, next) {
  if (next.isSame) return;
  note(old, next);
  // Most of a page is as it was, and the browser finds that out much faster.
  if (old.isEqualNode(next)) return;
  if (old.nodeName !== next.nodeName || keyOf(old) !== keyOf(next)) {
    old.replaceWith(next);
    note(next, next);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // Whether <details> is open is the reader's decision.
    if (!next.hasAttribute(name) && name !== 'open') old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morphChildren(old, [...next.childNodes]);
}

function morphChildren(parent, children) {
  // What is gone goes first: then what stays need not be moved, which would take the focus from it.
  const kept = new Set(children.map(keyOf));
  for (const child of [...parent.childNodes]) {
    if (!keyOf(child) || kept.has(keyOf(child))) continue;
    parts.delete(keyOf(child));
    child.remove();
  }
  const keyed = new Map([...parent.childNodes].filter(keyOf).map((child) => [keyOf(child), child]));
  children.forEach((next, index) => {
    const there = parent.childNodes[index];
    const same = keyOf(next) ? keyed.get(keyOf(next)) : there;
    if (same && same !== there) parent.insertBefore(same, there ?? null);
    if (same) morph(same, next);
    else {
      parent.insertBefore(next, there ?? null);
      note(next, next);
    }
  });
  while (parent.childNodes.length > children.length) parent.lastChild.remove();
}

/** Shows `children` in the element of this id. */
export function show(id, ...children) {
  const element = document.getElementById(id);
  // Not a copy of the element: options that leave a list one by one would all become the chosen one.
  morphChildren(element, [...build(document.createDocumentFragment(), {}, children).childNodes]);
  return element;
}

const NUMBER = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

/** 1234.5 as "1,234.5". */
export const number = (value) => NUMBER.format(value);

/** 0.2 as "20.0 %". */
export const percent = (share) => `${(share * 100).toFixed(1)} %`;

/** "1 key", "2 keys". */
export const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? '' : 's'}`;

/** Milliseconds as the age of something: "0.4 s", "12 s", "3 min", "2 h". */
export function age(ms) {
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 120e3) return `${Math.round(ms / 1000)} s`;
  return ms < 7200e3 ? `${Math.round(ms / 60e3)} min` : `${Math.round(ms / 3600e3)} h`;
}

/** Milliseconds as a latency. */
export const latency = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : `${number(Math.round(ms))} ms`);

/** Bytes for people. */
export function bytes(value) {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = value < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(value) / 10));
  return power === 0 ? count(value, 'byte') : `${number(value / 2 ** (10 * power))} ${units[power]}`;
}

/** The time of day. */
export const clock = (ms) => new Date(ms).toLocaleTimeString('en-GB');

/** Milliseconds since something, for "when": "now", "3.2 s ago". */
export const ago = (ms) => (ms < 1000 ? 'now' : `${age(ms)} ago`);

/** A sentence whose commands stand between backticks. */
export const prose = (text) => text.split('`').map((part, index) => (index % 2 === 1 ? h('code', {}, part) : part));

/** "a", "a and b", "a, b and c". */
export function and(words) {
  if (words.length < 2) return words.join('');
  return `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`;
}
