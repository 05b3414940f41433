/** The forms for keys: get, put, create, delete, and the list. */

import { and, bytes, count, h, latency, prose, show } from './dom.js';
import { call } from './actions.js';
import { nameOf } from './state.js';

/** How many keys a page of the list has. */
const PAGE = 20;
/** How many bytes of a value are shown. */
const SHOWN = 4096;

/** The path of a key; "." and ".." cannot be keys, since browsers collapse them. */
function pathOf(key) {
  if (key === '.' || key === '..') throw new Error('“.” and “..” cannot be keys.');
  return encodeURIComponent(key);
}

/** Bytes as text, or none if they are not text. */
function textOf(buffer) {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(buffer);
    // Control characters other than tab and line ends mean that it is something else.
    return /[\u0000-\u0008\u000e-\u001f]/.test(text) ? null : text;
  } catch {
    return null;
  }
}

const hexOf = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');

/** What was read, with as much of it as is good to look at. */
function valueOf(buffer) {
  const text = textOf(buffer);
  const part = buffer.slice(0, text === null ? SHOWN / 4 : SHOWN);
  return [
    h('pre', { class: 'value', tabindex: 0 }, text === null ? hexOf(part) : text.slice(0, SHOWN)),
    part.byteLength < buffer.byteLength && h('p', { class: 'dim' }, `The first ${bytes(part.byteLength)} of ${bytes(buffer.byteLength)}.`),
  ];
}

/** Carries out one of the buttons; returns the sentence and what to show below it. */
async function carryOut(verb, key, value, token) {
  const path = `/api/kv/${pathOf(key)}`;
  const body = { body: value, headers: { 'Content-Type': 'text/plain; charset=utf-8' } };
  switch (verb) {
    case 'put': {
      const response = await call(path, { method: 'PUT', ...body }, token);
      return [response.status === 201 ? `“${key}” is stored.` : `“${key}” is replaced.`];
    }
    case 'create':
      await call(path, { method: 'POST', ...body }, token);
      return [`“${key}” is created.`];
    case 'delete':
      await call(path, { method: 'DELETE' }, token);
      return [`“${key}” is deleted.`];
    default: {
      const response = await call(path);
      const buffer = await response.arrayBuffer();
      const text = textOf(buffer);
      if (text !== null) document.getElementById('value').value = text;
      const type = response.headers.get('Content-Type');
      return [`“${key}” has ${bytes(buffer.byteLength)}${type ? ` of ${type.split(';')[0]}` : ''}.`, valueOf(buffer)];
    }
  }
}

/** Who keeps the key and how that was found, in a sentence. */
function whoKeepsIt(state, lookup) {
  const name = (peer) => nameOf(state, peer.node.position);
  const others = lookup.members.filter((peer) => peer.node.position !== lookup.owner.node.position).map(name);
  const time = lookup.hops.reduce((sum, hop) => sum + hop.micros, 0) / 1000;
  const hops = lookup.hops.length === 0 ? 'known at once' : `found in ${count(lookup.hops.length, 'hop')}, ${latency(time)}`;
  return h('p', {}, 'Owner: ', h('button', { type: 'button', class: 'link', 'data-select': lookup.owner.node.position }, name(lookup.owner)),
    others.length > 0 && `; replicas: ${and(others)}`, h('span', { class: 'dim' }, ` · ${hops}`));
}

async function keyForm(event, app) {
  event.preventDefault();
  const verb = event.submitter?.value ?? 'get';
  const key = document.getElementById('key').value;
  const value = document.getElementById('value').value;
  if (verb !== 'get' && !(await app.unlocked())) return;
  let content;
  try {
    const [sentence, shown] = await carryOut(verb, key, value, app.token);
    content = [h('p', { class: 'good', 'data-done': verb }, sentence), shown];
  } catch (error) {
    app.refused(error);
    content = [h('p', { class: 'bad', 'data-done': verb }, prose(error.message))];
  }
  try {
    const lookup = await (await call(`/api/lookup/${pathOf(key)}`)).json();
    app.found(lookup);
    content.push(whoKeepsIt(app.state, lookup));
  } catch {
    // The answer to the question that was asked stands above; where the key lies is an extra.
  }
  show('key-result', ...content);
}

async function listForm(event, cursor = null) {
  event?.preventDefault();
  const query = new URLSearchParams({ prefix: document.getElementById('prefix').value, limit: PAGE });
  if (cursor !== null) query.set('cursor', cursor);
  try {
    const page = await (await call(`/api/kv?${query}`)).json();
    const item = ({ key, size }) => h('li', {}, h('button', { type: 'button', class: 'link', 'data-read': key }, key), h('span', { class: 'dim' }, ` ${bytes(size)}`));
    show('key-list',
      page.keys.length === 0 ? h('p', { class: 'hint' }, cursor === null ? 'There are no such keys.' : 'These were all.') : h('ul', { class: 'keys' }, page.keys.map(item)),
      page.cursor !== null && h('button', { type: 'button', 'data-more': page.cursor }, 'More'));
  } catch (error) {
    show('key-list', h('p', { class: 'bad' }, prose(error.message)));
  }
}

/**
 * Makes the forms work.
 * @param {{state: import('./state.js').RingState, token: ?string, unlocked: () => Promise<boolean>, refused: (error: Error) => void, found: (lookup: import('./state.js').Lookup) => void}} app
 */
export function startKeys(app) {
  const form = document.getElementById('key-form');
  form.addEventListener('submit', (event) => keyForm(event, app));
  document.getElementById('list-form').addEventListener('submit', (event) => listForm(event));
  document.getElementById('key-list').addEventListener('click', ({ target }) => {
    if (target.dataset.more) listForm(null, target.dataset.more);
    if (target.dataset.read === undefined) return;
    document.getElementById('key').value = target.dataset.read;
    form.requestSubmit(form.querySelector('[value=get]'));
  });
}
