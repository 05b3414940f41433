/**
 * What happened, and the ring as it was then. The dashboard keeps each state that differed from the one
 * before in more than numbers; the page has them from its start, and adds those that come.
 */

import { ago, clock, h, prose } from './dom.js';
import { changes } from './state.js';

/** How many changes are listed. */
const LISTED = 200;
/** How many reports of nodes are kept, as on the server. */
const REPORTS = 4000;

/** The past, and which moment of it is looked at. */
export class Timeline {
  /** @type {import('./state.js').RingState[]} oldest first */
  states = [];
  /** Newest first; `moment` is the state's `at_ms`, if it can be gone back to. */
  entries = [];
  /** The `at_ms` of the state looked at; null for now. */
  moment = null;
  #last = null;
  #counter = 0;

  /** Takes what the server kept, oldest first, before the first state comes. */
  begin(states) {
    for (const state of states) this.take(state);
  }

  /** Takes the next state. */
  take(state) {
    // The stream may bring again what the history ended with.
    if (this.#last && state.at_ms <= this.#last.at_ms) return;
    const news = changes(this.#last, state);
    this.#last = state;
    if (news.length === 0) return;
    this.states.push(state);
    let reports = this.states.reduce((total, { nodes }) => total + nodes.length, 0);
    while (reports > REPORTS && this.states.length > 1) reports -= this.states.shift().nodes.length;
    for (const { tone, text } of news) this.note(tone, text, state.at_ms);
    // Who looks back goes on seeing that moment for as long as it is kept.
    if (this.moment !== null && this.moment < this.states[0].at_ms) this.moment = this.states[0].at_ms;
  }

  /** Notes something that happened now, or then. */
  note(tone, text, moment = null) {
    this.#counter += 1;
    this.entries.unshift({ at: moment ?? Date.now(), tone, text, moment, number: this.#counter });
    this.entries.length = Math.min(this.entries.length, LISTED);
  }

  /** The state looked at; null for now. */
  get shown() {
    return this.moment === null ? null : this.states.findLast(({ at_ms }) => at_ms <= this.moment) ?? null;
  }

  /** Looks at a moment, or at now. */
  look(moment) {
    this.moment = moment;
  }

  /** Looks at the state of this number; now if it is beyond the last. */
  lookAt(index) {
    this.moment = this.states[Math.max(0, index)]?.at_ms ?? null;
  }

  /** Where the slider stands: the last place is now. */
  get place() {
    return this.moment === null ? this.states.length : this.states.indexOf(this.shown);
  }
}

/** What happened, newest first: each a step back to the ring as it was. */
export function entries(timeline) {
  const { shown } = timeline;
  const [oldest] = timeline.states;
  const can = (moment) => moment !== null && moment >= oldest.at_ms;
  const line = ({ at, tone, text, moment, number: index }) => {
    const content = [h('time', { datetime: new Date(at).toISOString() }, clock(at)), h('span', {}, prose(text))];
    const is = shown !== null && moment === shown.at_ms;
    return h('li', { 'data-key': `change-${index}`, class: `${tone} ${is ? 'shown' : ''}` },
      can(moment) ? h('button', { type: 'button', class: 'moment', 'data-moment': moment, 'aria-pressed': String(is), title: 'Show the ring as it was then' }, content) : content);
  };
  return h('ol', { class: 'changes' }, timeline.entries.map(line));
}

/** What says that this is the past, and the way back. */
export function pastBar(timeline, now) {
  const { shown } = timeline;
  return shown && [
    h('span', {}, `This is the ring as it was at ${clock(shown.at_ms)}`, h('span', { 'aria-hidden': 'true' }, `, ${ago(now - shown.at_ms)}`), '.'),
    h('button', { type: 'button', class: 'primary', 'data-now': true }, 'Back to now'),
  ];
}

/** Makes the slider tell where the page looks. */
export function showSlider(timeline) {
  const slider = document.getElementById('moment');
  slider.max = String(timeline.states.length);
  slider.value = String(timeline.place);
  slider.disabled = timeline.states.length === 0;
  const text = timeline.shown ? clock(timeline.shown.at_ms) : 'now';
  slider.setAttribute('aria-valuetext', text);
  document.getElementById('moment-text').textContent = text;
}
