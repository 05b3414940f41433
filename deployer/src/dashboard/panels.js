/** The panels of text: facts, verdict, table of nodes, the selected node. */

import { age, ago, bytes, count, h, latency, number, part, percent, prose } from './dom.js';
import { whatIf } from './coverage.js';
import { badge, verdictMark } from './ring.js';
import { colours, fraction, look, nameOf, nodeOf, summary } from './state.js';
import { suspects } from './suspicion.js';
import { verbsFor, VERBS } from './actions.js';

/** How old data may be before it is shown as stale, in milliseconds. */
const STALE = 3000;

/** How many suspicions are named. */
const NAMED = 12;

/** The ring's name and identity. */
export function facts(state) {
  const providers = [...new Set(state.nodes.map((node) => node.provider).filter(Boolean))].join(', ');
  return [
    h('strong', {}, state.name),
    state.ring && h('span', { title: `Ring id ${state.ring}` }, `ring ${state.ring.slice(0, 8)}`),
    providers && h('span', {}, providers),
    h('span', {}, `version ${state.version}`),
  ];
}

/** The verdict with its reasons; without a connection, what it was. */
export function verdict(state, view) {
  const last = summary(state);
  const lost = { tone: 'unknown', title: 'Not known now', text: `The last report said: ${last.title.toLowerCase()}.` };
  const { tone, title, text } = view.connected ? last : lost;
  const problems = [...(state.source_error ? [`sky-deploy cannot look at its nodes: ${state.source_error}`] : []), ...state.verdict.problems];
  const reasons = (list) => h('ul', { class: 'reasons' }, list.map((problem) => h('li', {}, prose(problem))));
  return {
    tone,
    title,
    content: [
      verdictMark(tone, 44),
      h('div', {},
        h('h2', {}, title),
        h('p', {}, prose(text)),
        problems.length > 0 && reasons(problems.slice(0, 5)),
        problems.length > 5 && h('details', {}, h('summary', {}, `${problems.length - 5} more`), reasons(problems.slice(5)))),
    ],
  };
}

/** How old a node's data is by now; `since` is the age of the state itself. */
const ageOf = (node, since) => node.age_ms + since;
const isStale = (node, since) => node.age_ms === null || ageOf(node, since) > STALE;

const seen = (node, view) => (node.age_ms === null ? 'never' : ago(ageOf(node, view.since)));

/** Everything that a row of the table is made from. */
const rowSource = (state, node, view) => JSON.stringify([node.name, look(node), node.share, node.keys, node.load?.operations_per_second, node.load?.p99_ms, seen(node, view), isStale(node, view.since), view.selected === node.id, colours(state).get(node.id)]);

/** The table of nodes, one button a row. */
export function nodes(state, view) {
  const cell = (label, ...content) => h('td', { 'data-label': label }, content);
  const value = (thing, write) => (thing === null || thing === undefined ? '–' : write(thing));
  return h('table', { class: 'nodes' },
    h('thead', {}, h('tr', {}, ['Node', 'State', 'Share', 'Keys + replicas', 'Requests', 'p99', 'Seen'].map((title) => h('th', { scope: 'col' }, title)))),
    h('tbody', {}, state.nodes.map((node) => part(`row-${node.id}`, rowSource(state, node, view), () => h('tr', { 'data-key': `row-${node.id}`, class: `${view.selected === node.id ? 'selected' : ''} ${isStale(node, view.since) ? 'stale' : ''}` },
      h('th', { scope: 'row' }, h('button', { type: 'button', class: 'name', 'data-select': node.id, 'data-row': true, 'data-name': node.name, 'aria-pressed': String(view.selected === node.id) }, badge(state, node), node.name)),
      cell('State', look(node).words),
      cell('Share', percent(node.share)),
      cell('Keys', value(node.keys, (keys) => [number(keys.owned), h('span', { class: 'dim' }, ` + ${number(keys.replica)}`), h('span', { class: 'hidden' }, ' replicas')])),
      cell('Requests', value(node.load, (load) => `${number(load.operations_per_second)}/s`)),
      cell('p99', value(node.load, (load) => (load.p99_ms > 0 ? latency(load.p99_ms) : '–'))),
      cell('Seen', seen(node, view)))))));
}

const nodeLink = (state, id) => h('button', { type: 'button', class: 'link', 'data-select': id }, nameOf(state, id));
/** Items with commas that stay with them. */
const list = (items) => items.flatMap((item, index) => [h('span', { class: 'item' }, item, index < items.length - 1 && ','), ' ']);

/** Suspicions in a sentence: "n1 for 3 s, n2 for 2 s". */
const sentence = (state, suspicions, since) => suspicions.slice(0, NAMED)
  .map(([id, ms], index) => [index > 0 && ', ', nodeLink(state, id), ` for ${age(ms + since)}`])
  .concat(suspicions.length > NAMED ? [` and ${count(suspicions.length - NAMED, 'other')}`] : []);

/** Neighbours that see it differently, in sentences. */
function disagreements(state, node) {
  if (!node.answering) return [];
  const says = [];
  const next = nodeOf(state, node.successors[0]);
  if (next?.answering && next.predecessor && next.predecessor !== node.id) {
    says.push(`${next.name}, its successor, says that its predecessor is ${nameOf(state, next.predecessor)}.`);
  }
  const before = nodeOf(state, node.predecessor);
  if (before?.answering && before.successors[0] && before.successors[0] !== node.id) {
    says.push(`${before.name}, its predecessor, says that its successor is ${nameOf(state, before.successors[0])}.`);
  }
  return says;
}

function rangeItem(state, range) {
  const remarks = [
    !range.available && 'out of reach',
    range.unswept && 'being checked after a change',
    range.prev.length > 0 && `also asks ${range.prev.map((id) => nameOf(state, id)).join(', ')}`,
    range.lagging.length > 0 && `behind: ${range.lagging.map((id) => nameOf(state, id)).join(', ')}`,
  ].filter(Boolean);
  return h('li', { 'data-key': range.hi },
    h('span', { class: 'range-title' }, `${percent(range.share)} up to ${nameOf(state, range.hi)}`),
    h('span', { class: 'dim' }, ` · ${count(range.keys, 'key')} · epoch ${number(range.epoch)} · `),
    list(range.members.map((id, index) => (index === 0 ? h('strong', {}, nodeLink(state, id)) : nodeLink(state, id)))),
    remarks.length > 0 && h('span', { class: 'remark' }, remarks.join('; ')));
}

function fingerItem(state, finger) {
  const bits = finger.first === finger.last ? `${finger.first}` : `${finger.first}–${finger.last}`;
  return h('li', { 'data-key': `finger-${finger.first}` }, h('span', { class: 'dim' }, `+2`, h('sup', {}, bits), ' '), nodeLink(state, finger.node));
}

/** Everything about the selected node. */
export function selectedNode(state, view) {
  const node = nodeOf(state, view.selected);
  if (!node) {
    return [h('h2', { id: 'node-title' }, 'No node selected'), h('p', { class: 'hint' }, 'Select one in the table or on the ring: its neighbours, fingers and ranges are shown here, and what can be done to it.')];
  }
  const row = (term, ...content) => [h('dt', {}, term), h('dd', {}, content.length > 0 ? content : '–')];
  const body = node.container ? `${node.provider}, container ${node.container.slice(0, 12)}` : node.pid ? `process ${node.pid}` : node.provider;
  const verbs = view.past ? [] : verbsFor(node);
  const [question, answer] = whatIf(state, view);
  const suspecting = suspects(state, node.id);
  return [
    h('div', { class: 'panel-head' },
      h('h2', { id: 'node-title' }, badge(state, node), node.name, h('span', { class: 'dim' }, ` ${look(node).words}`)),
      h('div', { class: 'buttons' }, verbs.map((verb) => h('button', { type: 'button', 'data-action': verb, 'data-node': node.name, 'data-key': verb, disabled: view.busy.has(node.name) }, `${VERBS[verb].label}…`)), question,
        !view.past && node.answering && h('button', { type: 'button', 'data-browse': node.id, 'data-key': 'browse' }, 'Its keys'))),
    answer,
    node.error && h('p', { class: 'remark' }, `Last question to its agent: ${node.error}.`),
    isStale(node, view.since) && node.age_ms !== null && h('p', { class: 'remark' }, `What follows is ${age(ageOf(node, view.since))} old.`),
    node.suspected_by.length > 0 && h('p', { class: 'remark' }, 'Suspected by ', sentence(state, node.suspected_by, view.since), '.'),
    suspecting.length > 0 && h('p', { class: 'remark' }, 'It suspects ', sentence(state, suspecting, view.since), '.'),
    node.load?.disk_full && h('p', { class: 'remark' }, 'Its disk is full: it stores nothing more.'),
    disagreements(state, node).map((text) => h('p', { class: 'remark' }, text)),
    h('dl', {},
      row('Id', h('code', { class: 'id' }, node.id), h('span', { class: 'dim' }, ` ${percent(fraction(node.id))} round`)),
      row('Address', h('a', { href: `${node.url}/`, target: '_blank', rel: 'noreferrer' }, node.url.replace('http://', ''))),
      row('Runs as', node.expected ? body : 'not in the inventory'),
      row('Predecessor', node.predecessor ? nodeLink(state, node.predecessor) : '–'),
      row('Successors', ...list(node.successors.map((id) => nodeLink(state, id)))),
      row('Fingers', node.fingers.length > 0 ? h('ul', { class: 'fingers' }, node.fingers.map((finger) => fingerItem(state, finger))) : '–'),
      row('Ranges', node.ranges.length > 0 ? h('ul', { class: 'ranges' }, node.ranges.map((range) => rangeItem(state, range))) : '–'),
      node.load && row('Agent', `version ${node.load.version}, up ${age(node.load.uptime_s * 1000)}, ${bytes(node.load.disk_bytes)} on disk`)),
  ];
}
