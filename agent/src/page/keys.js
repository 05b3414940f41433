// The key form, and the pages of the data that this node holds.

import { Refusal, ask, byId, element, peerLink, row, short } from "./parts.js";

const PAGE = 20;
const SHOWN_BYTES = 4096;
const SHOWN_TEXT = 256 * 1024;

/** The value shown in the form, as it was read: so that an update replaces only that one. */
let loaded = null;

const keyPath = (start, key) => {
  if (key === "." || key === "..") throw new Refusal("The keys “.” and “..” cannot be used: browsers drop them.");
  try {
    return start + encodeURIComponent(key);
  } catch {
    throw new Refusal("The key is not valid Unicode.");
  }
};

const say = (text) => byId("outcome").replaceChildren(element("p", { className: "notice" }, text));

const complain = (error) => {
  const notice = element("p", { className: "notice bad" }, error.message);
  if (error.hint) notice.append(element("span", { className: "hint" }, error.hint));
  byId("outcome").replaceChildren(notice);
};

/** 16 bytes a line: offset, hexadecimal digits, and what can be read. */
const hexDump = (bytes) => {
  const lines = [];
  for (let at = 0; at < Math.min(bytes.length, SHOWN_BYTES); at += 16) {
    const part = [...bytes.subarray(at, at + 16)];
    const digits = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const readable = part.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${digits.padEnd(47)}  ${readable}`);
  }
  if (bytes.length > SHOWN_BYTES) lines.push(`… ${bytes.length - SHOWN_BYTES} more bytes`);
  return lines.join("\n");
};

const asText = (bytes) => {
  if (bytes.length > SHOWN_TEXT) return null;
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    // A text area would turn line ends into others, and cannot show the rest.
    return /[\0-\x08\x0b-\x1f\x7f]/.test(text) ? null : text;
  } catch {
    return null;
  }
};

const size = (count) => `${count.toLocaleString("en")} ${count === 1 ? "byte" : "bytes"}`;

const get = async (key) => {
  const response = await ask(keyPath("/kv/", key));
  const bytes = new Uint8Array(await response.arrayBuffer());
  const type = response.headers.get("content-type") ?? "";
  const text = asText(bytes);
  byId("value").value = text ?? "";
  loaded = text === null ? null : { key, type, etag: response.headers.get("etag") };
  byId("bytes").hidden = text !== null;
  byId("bytes").textContent = text === null ? hexDump(bytes) : "";
  say(`${size(bytes.length)}, ${type || "no type"}.`);
};

const put = async (key, method, headers) => {
  const type = loaded?.key === key ? loaded.type : "text/plain; charset=utf-8";
  const body = new TextEncoder().encode(byId("value").value);
  const response = await ask(keyPath("/kv/", key), { method, body, headers: { "content-type": type, ...headers } });
  loaded = { key, type, etag: response.headers.get("etag") };
  say(method === "POST" ? `Added: ${size(body.length)}.` : `Updated: ${size(body.length)}.`);
};

const remove = async (key) => {
  if (!confirm(`Delete the key “${key}” from the whole ring?`)) return;
  await ask(keyPath("/kv/", key), { method: "DELETE" });
  loaded = null;
  say("Deleted.");
};

const trace = async (key) => {
  const report = await (await ask(keyPath("/lookup/", key))).json();
  const hops = report.hops.map((hop) => {
    const took = hop.answered ? `${(hop.micros / 1000).toFixed(2)} ms` : "no answer";
    return element("li", {}, peerLink(hop.peer), ` ${took}`);
  });
  const owner = element("p", {}, `Point ${short(report.hash)} is owned by `, peerLink(report.owner));
  if (report.epoch !== null) {
    owner.append(`, epoch ${report.epoch}, members `);
    report.members.forEach((peer, index) => owner.append(index > 0 ? ", " : "", peerLink(peer)));
  }
  owner.append(hops.length > 0 ? "; asked on the way:" : "; nobody had to be asked.");
  const list = element("ol", { className: "trace" });
  list.append(...hops);
  byId("outcome").replaceChildren(owner, list);
};

const actions = {
  get,
  trace,
  add: (key) => put(key, "POST", {}),
  update: (key) => put(key, "PUT", { "if-match": (loaded?.key === key && loaded.etag) || "*" }),
  delete: remove,
};

const submit = async (event) => {
  event.preventDefault();
  const action = event.submitter?.value ?? "get";
  const buttons = event.target.querySelectorAll("button");
  buttons.forEach((button) => (button.disabled = true));
  if (action !== "get") byId("bytes").hidden = true;
  try {
    await actions[action](byId("key").value);
    if (action !== "get" && action !== "trace") await showData();
  } catch (error) {
    complain(error);
  } finally {
    buttons.forEach((button) => (button.disabled = false));
    event.submitter?.focus();
  }
};

/** The cursors of the pages before this one, and of this one. */
const cursors = [""];
let following = null;
let asked = 0;

/** Loads the current page of this node's data again. */
export const showData = async () => {
  const turn = ++asked;
  const cursor = cursors.at(-1);
  const query = `?limit=${PAGE}${cursor ? `&cursor=${cursor}` : ""}`;
  const page = await (await ask(`/local${query}`)).json();
  if (turn !== asked) return;
  following = page.cursor;
  const rows = page.keys.map((entry) => {
    const open = element("button", { type: "button", className: "link mono", title: "Get this key" }, entry.key);
    open.addEventListener("click", () => {
      byId("key").value = entry.key;
      byId("form").requestSubmit(byId("form").querySelector("[value=get]"));
      byId("keys").scrollIntoView({ block: "nearest" });
    });
    const mark = element("span", { className: `mark ${entry.mark}` }, entry.mark);
    return row([open, "key"], [mark], [entry.size.toLocaleString("en"), "number"], [short(entry.hash), "id", entry.hash]);
  });
  const none = element("td", { className: "faint", colSpan: 4 }, "No keys here.");
  const focused = document.activeElement?.closest("#data tr")?.rowIndex;
  byId("data").replaceChildren(...(rows.length > 0 ? rows : [element("tr", {}, none)]));
  if (focused) byId("data").rows[focused - 1]?.querySelector("button")?.focus();
  byId("previous").disabled = cursors.length === 1;
  byId("next").disabled = !following;
  byId("page-number").textContent = cursors.length > 1 || following ? `page ${cursors.length}` : "";
};

const turnPage = (change) => async () => {
  change();
  await showData().catch(complain);
};

/** Wires the form and the page buttons. */
export const startKeys = () => {
  byId("form").addEventListener("submit", submit);
  byId("key").addEventListener("input", () => (loaded = loaded?.key === byId("key").value ? loaded : null));
  byId("next").addEventListener("click", turnPage(() => following && cursors.push(following)));
  byId("previous").addEventListener("click", turnPage(() => cursors.length > 1 && cursors.pop()));
};
