/** The form for one key: get, put, create, delete, and the way to it. */

import { bytes, h, prose, show } from './dom.js';
import { call } from './actions.js';
import { tellTrace } from './trace.js';

/** How many bytes of a value are shown. */
const SHOWN = 4096;

/** The path of a key; "." and ".." cannot be keys, since browsers collapse them. */
export function pathOf(key) {
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
export function valueOf(buffer) {
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

async function keyForm(event, app) {
  event.preventDefault();
  const verb = event.submitter?.value ?? 'get';
  const key = document.getElementById('key').value;
  const value = document.getElementById('value').value;
  if (!['get', 'trace'].includes(verb) && !(await app.unlocked())) return;
  let content = [];
  if (verb !== 'trace') try {
    const [sentence, shown] = await carryOut(verb, key, value, app.token);
    content = [h('p', { class: 'good', 'data-done': verb }, sentence), shown];
  } catch (error) {
    app.refused(error);
    content = [h('p', { class: 'bad', 'data-done': verb }, prose(error.message))];
  }
  try {
    const lookup = await lookUp(key);
    app.found(lookup);
    content.push(h('div', verb === 'trace' ? { 'data-done': verb } : {}, tellTrace(app.state, lookup)));
  } catch (error) {
    // Beside the answer to another question, where the key lies is an extra.
    if (verb === 'trace') content = [h('p', { class: 'bad', 'data-done': verb }, prose(error.message))];
  }
  show('key-result', ...content);
}

/** Looks the key up, from the node that was chosen or from any; the answer says whose it is. */
async function lookUp(key) {
  const from = document.getElementById('trace-from').value;
  const response = await call(`/api/lookup/${pathOf(key)}${from ? `?${new URLSearchParams({ from })}` : ''}`);
  const lookup = await response.json();
  return { ...lookup, from: response.headers.get('sky-agent') ?? lookup.owner.node.position, at: Date.now() };
}

/**
 * Makes the form work.
 * @param {{state: import('./state.js').RingState, token: ?string, unlocked: () => Promise<boolean>, refused: (error: Error) => void, found: (lookup: import('./state.js').Lookup) => void}} app
 */
export function startKeys(app) {
  const form = document.getElementById('key-form');
  form.addEventListener('submit', (event) => keyForm(event, app));
}
