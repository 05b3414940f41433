/** Data on its way between nodes: from whom to whom, how far it has got, and whether it has stopped. */

import { age, ago, and, bytes, count, h, number, percent, s } from './dom.js';
import { curve } from './geometry.js';
import { lack, nameOf, nodeOf } from './state.js';

/** How long nothing may move before it is said, in milliseconds. */
const STALL = 5000;
/** Beyond this many arrows they are no help. */
const DRAWN = 40;
/** How many transfers are listed. */
const LISTED = 12;

/** Whether nothing has moved for some time; `since` is the age of the state itself. */
const stillFor = (transfer, since) => transfer.still_ms + since;
export const isStalled = (transfer, since) => transfer.ended_ms === null && stillFor(transfer, since) >= STALL;
const isUnderWay = (transfer) => transfer.ended_ms === null;

/** Arrows from those who have the data to those who get it. */
export function drawTransfers(state, view) {
  const arrows = state.transfers.filter(isUnderWay).flatMap((transfer) => transfer.to.flatMap((to) => transfer.from
    .filter((from) => from !== to && nodeOf(state, from)?.answering && nodeOf(state, to))
    .map((from) => ({ transfer, from: nodeOf(state, from), to: nodeOf(state, to) }))));
  return s('g', { 'data-key': 'transfers', class: 'transfers', role: 'presentation' }, arrows.slice(0, DRAWN).map(({ transfer, from, to }) => s('path', {
    'data-key': `transfer-${transfer.hi}-${transfer.by}-${from.id}-${to.id}`,
    d: curve(from.at, to.at, 0.7).d,
    class: `transfer ${isStalled(transfer, view.since) ? 'stalled' : ''}`,
    'marker-end': 'url(#arrow-transfer)',
  }, s('title', {}, `${from.name} gives ${to.name} keys`))));
}

const names = (state, ids) => and(ids.map((id) => nameOf(state, id)));

/** What is moved, in words: "n1 and n2 → n5". */
function course(state, { kind, from, to, hi, share }) {
  const what = `${percent(share)} of the circle, up to ${nameOf(state, hi)}`;
  if (to.length === 0) return h('p', {}, h('strong', {}, `All copies at ${names(state, from)}`), h('span', { class: 'dim' }, ` · checked after a change · ${what}`));
  return h('p', {}, h('strong', {}, names(state, from), h('span', { 'aria-hidden': 'true' }, ' → '), h('span', { class: 'hidden' }, ' to '), names(state, to)),
    h('span', { class: 'dim' }, ` · ${kind === 'catchup' ? 'writes that were missed' : 'all keys'} · ${what}`));
}

/** How far it is, in figures. */
function figures(transfer) {
  const { keys, about, known_left: left, took_ms: took } = transfer;
  const of = isUnderWay(transfer) && about !== null && about >= keys ? ` of about ${number(about)}` : '';
  return [
    `${number(keys)}${of} ${keys === 1 && !of ? 'key' : 'keys'}`,
    bytes(transfer.bytes),
    isUnderWay(transfer) && left > 0 && `${number(left)} known to be left`,
    isUnderWay(transfer) && took >= 1000 && keys > 0 && `${number(Math.round(keys / (took / 1000)))} keys/s on average`,
  ].filter(Boolean);
}

function item(state, transfer, view) {
  const under = isUnderWay(transfer);
  const stalled = isStalled(transfer, view.since);
  const key = `${transfer.by}-${transfer.hi}-${transfer.epoch}-${transfer.kind}-${under ? 'now' : transfer.took_ms}`;
  return h('li', { 'data-key': key, class: `transfer-item ${stalled ? 'stalled' : under ? 'moving' : 'over'}` },
    course(state, transfer),
    under && transfer.done !== null && h('progress', { max: 1, value: transfer.done, 'aria-label': `Part of the range that was gone through: ${percent(transfer.done)}` }),
    h('p', { class: 'figures' }, under && transfer.done !== null && `${percent(transfer.done)} of the range · `, figures(transfer).join(' · '),
      under ? ` · for ${age(transfer.took_ms + view.since)}, by ${nameOf(state, transfer.by)}` : ` · took ${age(transfer.took_ms)}, done ${ago(transfer.ended_ms + view.since)}`),
    stalled && h('p', { class: 'bad' }, `Stalled: nothing has moved for ${age(stillFor(transfer, view.since))}.`));
}

/** Ranges that wait for a sweep that nobody carries out now. */
function waiting(state) {
  const swept = new Set(state.transfers.filter(isUnderWay).map(({ hi }) => hi));
  return state.ranges.filter((range) => range.unswept && !swept.has(range.hi));
}

/** The panel. */
export function transfers(state, view) {
  const order = (transfer) => [isStalled(transfer, view.since) ? 0 : isUnderWay(transfer) ? 1 : 2, transfer.ended_ms ?? 0];
  const sorted = state.transfers.toSorted((one, other) => order(one)[0] - order(other)[0] || order(one)[1] - order(other)[1]);
  const idle = waiting(state);
  if (sorted.length === 0 && idle.length === 0) {
    const short = state.ranges.some((range) => lack(state, range) === 'short');
    return h('p', { class: 'hint' }, short ? 'No data is on its way now, though some ranges lack copies.' : 'No data is on its way between nodes.');
  }
  return [
    idle.length > 0 && h('p', { class: 'remark' }, `${count(idle.length, 'range')} (up to ${and(idle.slice(0, 6).map(({ hi }) => nameOf(state, hi)))}${idle.length > 6 ? ', …' : ''}) ${idle.length === 1 ? 'waits' : 'wait'} for a node to bring the data.`),
    h('ul', { class: 'transfer-list' }, sorted.slice(0, LISTED).map((transfer) => item(state, transfer, view))),
    sorted.length > LISTED && h('p', { class: 'dim' }, `and ${number(sorted.length - LISTED)} more`),
  ];
}
