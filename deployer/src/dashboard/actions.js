/** What can be done to the ring from here: each with a step that says what will happen. */

import { and, count, h, number, percent } from './dom.js';
import { lossOf, NOTHING, summary } from './state.js';

/** The verbs for nodes, in words. */
export const VERBS = {
  pause: { label: 'Pause', doing: 'Pausing' },
  unpause: { label: 'Unpause', doing: 'Unpausing' },
  stop: { label: 'Stop', doing: 'Stopping' },
  start: { label: 'Start', doing: 'Starting' },
  drain: { label: 'Drain', doing: 'Draining' },
};

/** Which verbs make sense for a node now. */
export function verbsFor(node) {
  if (!node.expected) return [];
  // One that is down may hang: it has to end before it can start.
  return { up: ['pause', 'stop', 'drain'], starting: ['stop'], paused: ['unpause', 'stop'], down: [node.runs ? 'stop' : 'start'], draining: ['stop'], missing: [] }[node.state];
}

/** What the ring loses, or not, while one node is away. */
function effectOfAbsence(state, node) {
  const lost = lossOf(state, node.id);
  const away = state.nodes.filter((other) => !other.answering && other.id !== node.id).map((other) => other.name);
  if (lost > NOTHING) {
    const because = away.length > 0 ? ` (${and(away)} ${away.length > 1 ? 'are' : 'is'} away as well)` : '';
    return h('p', { class: 'warning' }, `${percent(lost)} of the circle could not be read or written until it is back: too few of their members would be left${because}.`);
  }
  return h('p', {}, 'Every key can still be read and written: each range keeps a majority of its members.');
}

const EXPLAIN = {
  pause: (state, node) => [
    h('p', {}, `${node.name} freezes: it keeps its data and its connections, and answers nobody.`),
    effectOfAbsence(state, node),
    h('p', {}, 'The others suspect it within about 2 seconds, and replace it in its ranges if it stays away too long.'),
  ],
  unpause: (_, node) => [h('p', {}, `${node.name} goes on where it was, and catches up with what it missed.`)],
  stop: (state, node) => [
    h('p', {}, `The agent of ${node.name} ends. Its data stays on its disk, and it can be started again.`),
    node.state === 'up' && effectOfAbsence(state, node),
    h('p', {}, 'The others replace it in its ranges if it stays away too long.'),
  ],
  start: (_, node) => [h('p', {}, `${node.name} starts on its data, joins the ring again by itself, and catches up with what it missed.`)],
  drain: (_, node) => [
    h('p', {}, `${node.name} hands everything over: ${percent(node.share)} of the circle${node.keys ? `, ${count(node.keys.owned, 'key')} of its own and ${number(node.keys.replica)} replicas` : ''}. When all of it is read back from the others, it has left the ring.`),
    h('p', {}, 'Every key can be read and written all the time. Afterwards ', h('code', {}, `sky-deploy remove ${node.name}`), ' deletes it.'),
  ],
  add: (state) => {
    const widest = state.nodes.filter((node) => node.expected).reduce((best, node) => (node.share > (best?.share ?? 0) ? node : best), null);
    return [
      h('p', {}, `A new node is started by ${state.nodes.find((node) => node.provider)?.provider ?? 'the provider'} and joins the ring.`),
      widest && h('p', {}, `It splits the widest arc: it takes over half of what ${widest.name} owns, ${percent(widest.share / 2)} of the circle${widest.keys ? `, about ${count(Math.round(widest.keys.owned / 2), 'key')}` : ''}.`),
    ];
  },
};

/** Asks, and resolves to whether the answer is yes. */
function ask(title, text, yes) {
  const dialog = document.getElementById('confirm');
  document.getElementById('confirm-title').textContent = title;
  document.getElementById('confirm-text').replaceChildren(...text.filter(Boolean));
  document.getElementById('confirm-yes').textContent = yes;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true }));
}

/** Asks for the token; resolves to it, or to null. */
export function askForToken() {
  const dialog = document.getElementById('unlock');
  const input = document.getElementById('token');
  dialog.returnValue = 'no';
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => dialog.addEventListener('close', () => {
    const token = input.value.trim();
    input.value = '';
    resolve(dialog.returnValue === 'yes' && token !== '' ? token : null);
  }, { once: true }));
}

/**
 * Sends a request and reads the answer; an error carries the sentence of the server.
 * @param {string} path @param {RequestInit} init @param {?string} token
 */
export async function call(path, init = {}, token = null) {
  const headers = new Headers(init.headers);
  if (token) headers.set('Authorization', `Bearer ${token}`);
  let response;
  try {
    response = await fetch(path, { ...init, headers, cache: 'no-store' });
  } catch {
    throw new Error('The dashboard does not answer. Is sky-deploy still running?');
  }
  if (response.ok || response.status === 304) return response;
  const problem = await response.json().catch(() => null);
  const error = new Error(problem ? [problem.detail, problem.hint].filter(Boolean).map((text) => text.replace(/[.]?$/, '.')).join(' ') : `The answer is ${response.status}.`);
  error.status = response.status;
  throw error;
}

/**
 * Confirms and carries out one action.
 * @param {import('./state.js').RingState} state
 * @param {string} action "add" or a verb
 * @param {?string} name the node
 * @param {{token: string, started: (doing: string) => void, done: (tone: string, text: string, status?: number) => void}} app
 */
export async function act(state, action, name, app) {
  const node = state.nodes.find((other) => other.name === name);
  if (action !== 'add' && !node) return;
  const { label, doing } = action === 'add' ? { label: 'Add', doing: 'Adding' } : VERBS[action];
  const what = action === 'add' ? 'a node' : name;
  const text = EXPLAIN[action](state, node);
  if (summary(state).tone === 'wrong' && ['pause', 'stop', 'drain'].includes(action) && node.state !== 'down') {
    text.push(h('p', { class: 'warning' }, 'The ring is not right now. Waiting until it is, is safer.'));
  }
  text.push(h('p', { class: 'command' }, 'The same by command: ', h('code', {}, action === 'add' ? 'sky-deploy add' : `sky-deploy ${action} ${name}`)));
  if (!(await ask(`${label} ${what}?`, text, `${label} ${what}`))) return;
  app.started(`${doing} ${what}…`);
  try {
    const path = action === 'add' ? '/api/nodes' : `/api/nodes/${encodeURIComponent(name)}/${action}`;
    const response = await call(path, { method: 'POST' }, app.token);
    app.done('good', (await response.json()).message);
  } catch (error) {
    app.done('bad', `${doing} ${what} failed: ${error.message}`, error.status);
  }
}
