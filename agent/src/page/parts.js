// What the other files are made of: elements, and questions to the agent.

/** The element of this id. */
export const byId = (id) => document.getElementById(id);

/** An element with properties and children; texts are never read as HTML. */
export const element = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

/** A table row; each cell is [content, class, title]. */
export const row = (...cells) => {
  const made = cells.map(([content, className = "", title = ""]) => element("td", { className, title }, content));
  return element("tr", {}, ...made);
};

/** The first eight digits of a point; small points, as in playgrounds, in full. */
export const short = (point) => (/^0{24}/.test(point) ? String(parseInt(point, 16)) : point.slice(0, 8));

/** A link to the page of another agent. */
export const peerLink = (peer) => {
  const properties = { href: `//${peer.address}/`, title: peer.node.position, className: "mono" };
  return element("a", properties, peer.address);
};

/** What an answer that is not a success says: the detail and the hint of its problem. */
export class Refusal extends Error {
  constructor(message, hint, status) {
    super(message);
    this.hint = hint;
    this.status = status;
  }
}

const TOKEN = "sky-token";
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem(TOKEN, given);
  // The token does not stay in the address, where it would be copied and kept.
  history.replaceState(null, "", location.pathname);
}

/** Keeps the token for this tab. */
export const setToken = (token) => sessionStorage.setItem(TOKEN, token);

/** The header that some agents want of every client. */
export const authorization = () => {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { authorization: `Bearer ${token}` } : {};
};

/** Asks the agent; a refusal becomes an error whose text is for people. */
export const ask = async (path, options = {}) => {
  let response;
  try {
    const headers = { ...authorization(), ...options.headers };
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10_000), ...options, headers });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Refusal(late ? "The agent did not answer within 10 seconds." : "The agent cannot be reached.",
      "See whether it still runs; any other agent of the ring can answer for the key.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refusal(problem.detail ?? problem.reason ?? `The agent answered ${response.status}.`, problem.hint, response.status);
};
