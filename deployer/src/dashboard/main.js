/** Starts the page: the stream of states, what the user selected, and drawing after every change. */

import { age, clock, h, prose, show } from './dom.js';
import { act, askForToken } from './actions.js';
import { coverage, without } from './coverage.js';
import { browse, showBrowser, startBrowser } from './browse.js';
import { startKeys } from './keys.js';
import { facts, nodes, selectedNode, verdict } from './panels.js';
import { drawLegend, drawRing } from './ring.js';
import { nodeOf } from './state.js';
import { listSuspicions } from './suspicion.js';
import { entries, pastBar, showSlider, Timeline } from './timeline.js';
import { transfers } from './transfers.js';

/** How long the server may be silent, in milliseconds: it sends a state a second. */
const SILENCE = 8000;
/** How long the outcome of an action stays above the table, in milliseconds. */
const OUTCOME_SHOWN = 20000;
const TOKEN = 'sky-token';

const app = {
  /** @type {?import('./state.js').RingState} */
  state: null,
  /** When the state came, by this machine's clock. */
  receivedAt: 0,
  connected: false,
  /** The token, or null: the page is read-only then. */
  token: null,
  /** The position of the selected node. */
  selected: null,
  /** @type {?import('./state.js').Lookup} */
  lookup: null,
  /** What is being done, by the name of the node. */
  busy: new Map(),
  /** @type {?{tone: string, text: string}} What came of the last action, for a while. */
  outcome: null,
  timeline: new Timeline(),
  /** Whether the ring is drawn as it would be without the selected node. */
  whatIf: false,

  /** Whether changes can be asked for; asks for the token if there is none. */
  async unlocked() {
    this.token ??= await askForToken();
    if (this.token) sessionStorage.setItem(TOKEN, this.token);
    render();
    return this.token !== null;
  },

  /** The server did not take the token. */
  refused(error) {
    if (error.status !== 401) return;
    this.token = null;
    sessionStorage.removeItem(TOKEN);
    render();
  },

  found(lookup) {
    this.lookup = lookup;
    render();
  },
};

function render() {
  if (!app.state) return;
  const focused = document.activeElement;
  draw();
  // What was moved on the page has lost the focus.
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
}

function draw() {
  const { shown } = app.timeline;
  const state = shown ?? app.state;
  const since = Date.now() - app.receivedAt;
  const selected = nodeOf(state, app.selected) ? app.selected : null;
  const view = {
    selected, lookup: app.lookup, busy: app.busy, past: shown !== null, whatIf: app.whatIf && selected !== null,
    // What was then is known, whatever is now.
    connected: app.connected || shown !== null, since: app.connected || shown ? 0 : since,
  };
  const { tone, title, content } = verdict(state, view);
  const drawn = view.whatIf ? without(state, selected) : state;
  document.title = `${shown ? '⏱' : { right: '✓', degraded: '!', wrong: '✗', unknown: '?' }[tone]} ${state.name}: ${title}`;
  document.body.classList.toggle('lost', !view.connected);
  document.body.classList.toggle('past', view.past);
  show('past', pastBar(app.timeline, Date.now())).hidden = !view.past;
  show('facts', facts(state));
  show('verdict', content).dataset.verdict = tone;
  show('ring', drawRing(drawn, view));
  show('legend', drawLegend(drawn, view));
  show('suspicions', listSuspicions(state, view));
  show('transfers', transfers(state, view));
  show('coverage', coverage(state));
  show('trace-from', h('option', { value: '', 'data-key': 'any' }, 'any node'), app.state.nodes.map((node) => h('option', { value: node.name, 'data-key': node.id, disabled: !node.answering }, node.name)));
  showBrowser(app);
  show('nodes', nodes(state, view));
  show('node', selectedNode(state, view));
  show('changes', entries(app.timeline));
  showSlider(app.timeline);
  show('busy', [...app.busy.values()].map((text) => h('span', { class: 'doing' }, text)), app.outcome && h('span', { class: `outcome ${app.outcome.tone}` }, prose(app.outcome.text)));
  show('live', app.connected ? [h('span', { class: 'dot' }), 'live'] : 'not connected', ' · ', app.token ? 'changes allowed' : h('button', { type: 'button', class: 'quiet', 'data-unlock': true }, 'read-only'));
}

function showConnection() {
  const banner = document.getElementById('banner');
  banner.hidden = app.connected;
  if (app.connected) return;
  const help = 'Trying again… If sky-deploy was ended, the ring itself keeps running: “sky-deploy dashboard” shows it again.';
  // The age is hidden from screen readers, or they would read all of it every second.
  show('banner', ...(app.state
    ? [`The connection to the dashboard is lost: what you see is from ${clock(app.receivedAt)}`, h('span', { 'aria-hidden': 'true' }, `, ${age(Date.now() - app.receivedAt)} ago`), `. ${help}`]
    : [`The dashboard does not answer. ${help}`]));
}

function receive(state) {
  // Another version of sky-deploy has another page.
  if (app.state && app.state.version !== state.version) location.reload();
  app.timeline.take(state);
  app.state = state;
  app.receivedAt = Date.now();
  app.connected = true;
  if (!state.nodes.some((node) => node.id === app.selected)) app.selected = null;
  showConnection();
  render();
}

function listen() {
  const events = new EventSource('/api/events');
  let heard = Date.now();
  events.onmessage = ({ data }) => {
    heard = Date.now();
    receive(JSON.parse(data));
  };
  const lose = () => {
    app.connected = false;
    showConnection();
    render();
  };
  events.onerror = lose;
  const watch = setInterval(() => {
    const silent = Date.now() - heard > SILENCE;
    if (silent) lose();
    else if (!app.connected) {
      showConnection();
      render();
    }
    // A browser gives up on some errors; a new stream never does.
    if (silent || events.readyState === EventSource.CLOSED) {
      clearInterval(watch);
      events.close();
      listen();
    }
  }, 1000);
}

function select(id) {
  app.selected = app.selected === id ? null : id;
  app.whatIf = false;
  render();
}

async function startAction(action, name) {
  if (!app.state || !(await app.unlocked())) return;
  const key = name ?? '';
  await act(app.state, action, name, {
    token: app.token,
    started(doing) {
      app.busy.set(key, doing);
      app.outcome = null;
      render();
    },
    done(tone, text, status) {
      const outcome = { tone, text };
      app.busy.delete(key);
      app.timeline.note(tone, text);
      app.refused({ status });
      app.outcome = outcome;
      setTimeout(() => { if (app.outcome === outcome) app.outcome = null; }, OUTCOME_SHOWN);
      render();
    },
  });
}

/** Shows the ring as it was at a moment, or now; choosing the same again leads back. */
function lookAt(moment) {
  app.timeline.look(moment === app.timeline.moment ? null : moment);
  render();
}

/** Arrow keys walk along the table's rows and around the ring. */
function walk(event) {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const here = event.target.closest?.('[data-select], [data-key-row]');
  if (!step || !here) return;
  const group = here.hasAttribute('data-row') ? '[data-row]' : here.hasAttribute('data-key-row') ? '[data-key-row]' : '.ring g.node';
  const all = [...document.querySelectorAll(group)];
  // On the ring what is remarkable is drawn last, wherever it is.
  if (here.dataset.at) all.sort((one, other) => one.dataset.at - other.dataset.at);
  const next = all[(all.indexOf(here) + step + all.length) % all.length];
  if (!all.includes(here)) return;
  event.preventDefault();
  next.focus();
}

document.addEventListener('click', ({ target }) => {
  const at = (name) => target.closest(`[data-${name}]`);
  if (at('select')) select(at('select').dataset.select);
  else if (at('action')) startAction(at('action').dataset.action, at('action').dataset.node ?? null);
  else if (at('unlock')) app.unlocked();
  else if (at('forget')) app.found(null);
  else if (at('browse')) {
    browse(app, at('browse').dataset.browse);
    document.getElementById('browse-panel').scrollIntoView({ block: 'start' });
  }
  else if (at('whatif')) {
    app.whatIf = !app.whatIf;
    render();
  } else if (at('moment')) lookAt(Number(at('moment').dataset.moment));
  else if (at('now')) lookAt(null);
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !document.querySelector('dialog[open]')) {
    if (app.timeline.moment !== null) lookAt(null);
    else if (app.selected) select(app.selected);
  }
  if ((event.key === 'Enter' || event.key === ' ') && event.target.closest?.('g[data-select]')) {
    event.preventDefault();
    select(event.target.closest('g[data-select]').dataset.select);
  }
  walk(event);
});

// The token comes in the fragment, which is never sent anywhere, and does not stay in the address.
const given = new URLSearchParams(location.hash.slice(1)).get('token');
if (given) {
  sessionStorage.setItem(TOKEN, given);
  history.replaceState(null, '', location.pathname);
}
app.token = sessionStorage.getItem(TOKEN);
startKeys(app);
startBrowser(app);
document.getElementById('moment').addEventListener('input', ({ target }) => {
  app.timeline.lookAt(Number(target.value));
  render();
});
// Without the past the page begins with now.
const past = await fetch('/api/history').then((response) => (response.ok ? response.json() : []), () => []);
app.timeline.begin(past);
listen();
