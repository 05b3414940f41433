/** The key browser: pages of the keys of the ring, or of what one node holds, each with who keeps it. */

import { bytes, clock, h, number, percent, prose, s, show } from './dom.js';
import { call } from './actions.js';
import { pathOf, valueOf } from './keys.js';
import { sha1 } from './sha1.js';
import { fraction, nameOf, nodeOf, rangeOf } from './state.js';

/** How many keys a page has. */
const PAGE = 20;
/** Values beyond this size are loaded only when that is asked for. */
const LARGE = 256 * 1024;
/** How many versions are asked for at once. */
const AT_ONCE = 4;

/** What is looked at: all of the ring (`node` is null), or what a node holds itself. */
const browser = {
  node: null,
  prefix: '',
  /** The places where the pages up to this one begin; null is the beginning. */
  cursors: [null],
  /** @type {?{keys: object[], cursor: ?string, at: number}} */
  page: null,
  busy: false,
  error: null,
  /** What is known of keys beside what the list said: version and media type. */
  more: new Map(),
  /** The open key, and what is shown of it. */
  open: null,
  value: null,
  /** Counts pages: a late answer about an earlier one says nothing about this one. */
  turn: 0,
};

/** Reads the page that begins at the last cursor. */
async function load(app) {
  const turn = ++browser.turn;
  Object.assign(browser, { busy: true, error: null, open: null, value: null });
  render(app);
  const query = new URLSearchParams({ limit: PAGE });
  const cursor = browser.cursors.at(-1);
  if (cursor !== null) query.set('cursor', cursor);
  if (browser.node === null) query.set('prefix', browser.prefix);
  const node = browser.node === null ? null : nodeOf(app.state, browser.node);
  try {
    if (browser.node !== null && !node) throw new Error('This node is not there any more.');
    const path = node ? `/api/nodes/${encodeURIComponent(node.name)}/local` : '/api/kv';
    const page = await (await call(`${path}?${query}`)).json();
    const keys = page.keys.map((entry) => ({ ...entry, hash: entry.hash ?? sha1(entry.key) }));
    if (turn !== browser.turn) return;
    Object.assign(browser, { page: { keys, cursor: page.cursor, at: Date.now() }, more: new Map(), busy: false });
    render(app);
    if (!node) await readVersions(app, turn);
  } catch (error) {
    if (turn !== browser.turn) return;
    Object.assign(browser, { busy: false, error: error.message, page: null });
    render(app);
  }
}

/** Asks for the versions and media types of the page's keys, a few at a time. */
async function readVersions(app, turn) {
  const left = browser.page.keys.map(({ key }) => key);
  const work = async () => {
    for (let key = left.shift(); key !== undefined && turn === browser.turn; key = left.shift()) {
      const more = await call(`/api/kv/${pathOf(key)}`, { method: 'HEAD' }).then(
        (response) => ({ etag: response.headers.get('ETag'), type: response.headers.get('Content-Type') }),
        (error) => ({ gone: error.status === 404, failed: error.status !== 404 }),
      );
      if (turn !== browser.turn) return;
      browser.more.set(key, more);
      render(app);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}

/** Opens a key, or closes it; a large value only if that is meant. */
async function open(app, key, anyway = false) {
  if (browser.open === key && !anyway) {
    Object.assign(browser, { open: null, value: null });
    return render(app);
  }
  const { turn } = browser;
  const entry = browser.page.keys.find((other) => other.key === key);
  Object.assign(browser, { open: key, value: h('p', { class: 'hint' }, 'Reading…') });
  if (entry.size > LARGE && !anyway) {
    browser.value = h('p', {}, `The value has ${bytes(entry.size)}. `, h('button', { type: 'button', 'data-anyway': key }, 'Read it all the same'));
    return render(app);
  }
  render(app);
  let value;
  try {
    const response = await call(`/api/kv/${pathOf(key)}`);
    const buffer = await response.arrayBuffer();
    const type = response.headers.get('Content-Type');
    value = h('div', {}, h('p', { class: 'dim' }, [type, bytes(buffer.byteLength), `version ${response.headers.get('ETag')}`, `read at ${clock(Date.now())}`].filter(Boolean).join(' · ')), valueOf(buffer));
  } catch (error) {
    value = h('p', { class: 'bad' }, prose(error.message));
  }
  if (turn !== browser.turn || browser.open !== key) return;
  browser.value = value;
  render(app);
}

/** A small ring with the key's place. */
const mark = (hash) => s('svg', { viewBox: '-9 -9 18 18', width: 16, height: 16, class: 'place', 'aria-hidden': 'true' },
  s('circle', { r: 6.5 }), s('circle', { r: 2.6, cx: 6.5 * Math.sin(fraction(hash) * 2 * Math.PI), cy: -6.5 * Math.cos(fraction(hash) * 2 * Math.PI), class: 'spot' }));

function keyRow(state, entry) {
  const more = browser.more.get(entry.key) ?? {};
  const range = rangeOf(state, entry.hash);
  const link = (id) => h('button', { type: 'button', class: 'link', 'data-select': id }, nameOf(state, id));
  const cell = (label, ...content) => h('td', { 'data-label': label }, content);
  const [owner, ...others] = range?.members ?? [];
  const isOpen = browser.open === entry.key;
  const etag = entry.etag ?? more.etag;
  return [
    h('tr', { 'data-key': `key-${entry.key}`, class: isOpen ? 'selected' : '' },
      h('th', { scope: 'row' }, h('button', { type: 'button', class: 'name', 'data-open': entry.key, 'data-key-row': true, 'aria-expanded': String(isOpen) }, entry.key)),
      cell('Size', bytes(entry.size)),
      cell('Version', etag ? h('code', {}, etag.replaceAll('"', '')) : more.gone ? 'deleted meanwhile' : more.failed ? 'not known' : '…'),
      browser.node !== null && cell('Here', entry.mark === 'owned' ? 'owned' : 'replica'),
      cell('Owner', owner ? link(owner) : '–'),
      cell('Replicas', others.length > 0 ? others.map((id, index) => [index > 0 && ', ', link(id)]) : '–'),
      cell('Place', h('span', { title: entry.hash }, mark(entry.hash), ` ${percent(fraction(entry.hash))}`))),
    isOpen && h('tr', { 'data-key': `value-${entry.key}`, class: 'key-value' }, h('td', { colspan: browser.node === null ? 6 : 7 }, browser.value)),
  ];
}

function emptiness(state) {
  if (browser.cursors.length > 1) return 'These were all: there are no more keys after this place.';
  if (browser.node !== null) return `${nameOf(state, browser.node)} holds no keys.`;
  if (browser.page.cursor !== null) return `No key found yet that begins with “${browser.prefix}”: part of the ring was looked through.`;
  return browser.prefix === '' ? 'There are no keys in the ring yet. Put one with the form above.' : `No key begins with “${browser.prefix}”.`;
}

function content(state) {
  const { page } = browser;
  if (browser.error !== null) return h('p', { class: 'bad', 'data-browse-error': true }, prose(browser.error), ' ', h('button', { type: 'button', 'data-page': 'same' }, 'Try again'));
  if (!page) return browser.busy ? h('p', { class: 'hint' }, 'Reading…') : h('p', { class: 'hint' }, 'Lists what is stored, a page at a time, in the order of the keys’ places on the circle.');
  if (page.keys.length === 0) return h('p', { class: 'hint', 'data-empty': true }, emptiness(state));
  const titles = ['Key', 'Size', 'Version', browser.node !== null && 'Here', 'Owner', 'Replicas', 'Place'].filter(Boolean);
  return h('table', { class: 'key-table', 'aria-busy': String(browser.busy) },
    h('caption', { class: 'hidden' }, browser.node === null ? 'Keys of the ring' : `Keys that ${nameOf(state, browser.node)} holds`),
    h('thead', {}, h('tr', {}, titles.map((title) => h('th', { scope: 'col' }, title)))),
    h('tbody', {}, page.keys.map((entry) => keyRow(state, entry))));
}

function pager() {
  const { page, cursors, busy } = browser;
  const isMore = page !== null && page.cursor !== null;
  if (!page || (cursors.length === 1 && !isMore && page.keys.length === 0)) return [];
  return [
    h('button', { type: 'button', 'data-page': 'before', disabled: busy || cursors.length === 1 }, 'Previous'),
    h('span', { role: 'status' }, `Page ${number(cursors.length)}${isMore ? '' : ', the last'}`, page.keys.length > 0 && h('span', { class: 'dim' }, ` · ${number(page.keys.length)} keys`)),
    h('button', { type: 'button', 'data-page': 'after', disabled: busy || !isMore }, 'Next'),
    h('span', { class: 'dim' }, `as of ${clock(page.at)}`),
    h('button', { type: 'button', class: 'quiet', 'data-page': 'same', disabled: busy }, 'Read again'),
  ];
}

/** Draws the list; owners and replicas are those of the newest state. */
function render(app) {
  if (!app.state) return;
  show('key-list', content(app.state));
  show('key-pages', ...pager());
}

/** The nodes to choose from; and the list anew, as places may have changed hands. */
export function showBrowser(app) {
  const option = (id, text) => h('option', { value: id, 'data-key': `option-${id}` }, text);
  show('holder', option('', 'the ring'), app.state.nodes.map((node) => option(node.id, `what ${node.name} holds`)));
  if (browser.page) render(app);
}

function turnPage(app, where) {
  const { page, cursors } = browser;
  if (browser.busy) return;
  if (where === 'before' && cursors.length > 1) cursors.pop();
  else if (where === 'after' && page?.cursor) cursors.push(page.cursor);
  else if (where !== 'same') return;
  load(app);
}

/** Lists what a node holds, or the ring's keys with a prefix. */
export function browse(app, node, prefix = '') {
  Object.assign(browser, { node, prefix, cursors: [null], page: null });
  document.getElementById('holder').value = node ?? '';
  const field = document.getElementById('prefix');
  field.disabled = node !== null;
  return load(app);
}

/** Makes the form and the list work. */
export function startBrowser(app) {
  const [form, holder, prefix] = ['list-form', 'holder', 'prefix'].map((id) => document.getElementById(id));
  const start = () => browse(app, holder.value || null, holder.value ? '' : prefix.value);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    start();
  });
  holder.addEventListener('change', start);
  const panel = document.getElementById('browse-panel');
  panel.addEventListener('click', ({ target }) => {
    const at = (name) => target.closest(`[data-${name}]`);
    if (at('page')) turnPage(app, at('page').dataset.page);
    else if (at('anyway')) open(app, at('anyway').dataset.anyway, true);
    else if (at('open')) open(app, at('open').dataset.open);
  });
  panel.addEventListener('keydown', (event) => {
    const here = event.target.closest('[data-key-row]');
    const where = { PageDown: 'after', PageUp: 'before' }[event.key];
    if (!here || !where) return;
    event.preventDefault();
    turnPage(app, where);
  });
}
