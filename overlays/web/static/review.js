// The review: timeline, list of events, the opened event and the viewer's actions.
import { Detail } from "./detail.js";
import { KINDS, STATE_CHIPS, act, clock, get, lasted, stateWords, titleOf } from "./events.js";
import { Link } from "./link.js";
import { Timeline } from "./timeline.js";

const LIMIT = 1000; // events of one query
const SHOWN = 60; // cards added at once
const SILENT_MS = 1500;
const at = (id) => document.getElementById(id);
const filters = at("filters").elements;
const announce = (text) => (at("announcement").textContent = text);

let events = []; // those of the filters, the newest first
let cameras = [];
let shown = SHOWN;
let from = 0, to = 0;
let truncated = false;
let query = 0; // number of the last query: an older answer is not shown

const timeline = new Timeline(at("timeline"), (event) => open(event.id));
const detail = new Detail(at("detail"), {
  change: (event, verb, body) => change(event, verb, body),
  step: (event, by) => {
    const next = events[events.findIndex((each) => each.id === event.id) + by];
    if (next) open(next.id);
  },
  closed: (event) => {
    history.replaceState(null, "", location.pathname + location.search);
    cardOf(event?.id)?.querySelector(".open").focus();
  },
  isPlain: () => !at("heat").checked,
});

function readFilters() {
  const now = Date.now() / 1000;
  const span = filters.range.value;
  const day = (value, fallback) => (value ? new Date(value).getTime() / 1000 : fallback);
  [from, to] = span === "custom" ? [day(filters.from.value, now - 86400), day(filters.to.value, now)] : [now - Number(span), now];
  const values = new URLSearchParams({ after: from.toFixed(3), limit: LIMIT });
  if (span === "custom") values.set("before", to.toFixed(3));
  for (const name of ["state", "camera", "kind", "label"]) if (filters[name].value) values.set(name, filters[name].value);
  return values;
}

async function refresh() {
  const number = ++query;
  const values = readFilters();
  at("filters").querySelector(".span").hidden = filters.range.value !== "custom";
  try {
    const [page, summary] = await Promise.all([get(`api/events?${values}`), get("api/summary")]);
    if (number !== query) return;
    events = page.events;
    truncated = page.next !== null;
    if (truncated) from = Math.max(from, events.at(-1).start);
    shown = SHOWN;
    showChoices(summary);
    values.set("format", "csv");
    at("csv").href = `api/events?${values}`;
    draw();
  } catch (error) {
    if (number === query) at("count").textContent = error.message;
  }
}

function showChoices(summary) {
  cameras = filters.camera.value ? [] : summary.cameras;
  for (const [name, values, words] of [["camera", summary.cameras, {}], ["kind", summary.kinds, KINDS], ["label", summary.labels, {}]]) {
    const select = filters[name];
    const chosen = select.value;
    if (chosen && !values.includes(chosen)) values.push(chosen);
    const options = values.map((value) => new Option(words[value] ?? value, value));
    select.replaceChildren(new Option("all", ""), ...options);
    select.value = chosen;
  }
}

function draw() {
  timeline.show(events, cameras, from, to);
  const open = events.filter((event) => event.state === "new").length;
  const total = `${truncated ? "the newest " : ""}${events.length} ${events.length === 1 ? "event" : "events"}`;
  at("count").textContent = events.length ? `${total}, ${open} new` : "No events in this time.";
  const list = at("events");
  const known = new Map([...list.children].map((card) => [card.dataset.id, card]));
  const cards = events.slice(0, shown).map((event) => {
    const card = known.get(event.id) ?? makeCard(event);
    showCard(card, event);
    return card;
  });
  if (cards.length !== list.children.length || cards.some((card, index) => list.children[index] !== card)) list.replaceChildren(...cards);
  at("more").hidden = shown >= events.length;
}

function makeCard(event) {
  const card = at("event").content.firstElementChild.cloneNode(true);
  card.dataset.id = event.id;
  card.querySelector(".open").onclick = () => open(event.id);
  card.querySelector(".acknowledge").onclick = () => {
    const current = events.find((each) => each.id === event.id);
    change(current, current.state === "acknowledged" ? "reopen" : "acknowledge");
  };
  return card;
}

function showCard(card, event) {
  const part = (selector) => card.querySelector(selector);
  const write = (selector, text) => {
    if (part(selector).textContent !== text) part(selector).textContent = text;
  };
  write("strong", titleOf(event));
  write(".where", event.camera);
  write(".when", `${clock(event.start)} · ${lasted(event)}`);
  write(".what", event.label ? `${event.label} ${Math.round(event.score * 100)} %` : event.text);
  write(".state", stateWords(event));
  part(".state").dataset.kind = STATE_CHIPS[event.state];
  card.dataset.state = event.state;
  const isHandled = event.state === "acknowledged";
  write(".acknowledge", isHandled ? "Reopen" : "Acknowledge");
  part(".acknowledge").ariaLabel = `${isHandled ? "Reopen" : "Acknowledge"}: ${titleOf(event)}, ${event.camera}, ${clock(event.start)}`;
  showImage(part(".thumb"), event);
}

// Show the image of an event with heat or plain; an event may have one of them, or none.
function showImage(holder, event) {
  const wanted = at("heat").checked ? "heat" : "plain";
  const kind = event.images.includes(wanted) ? wanted : event.images[0];
  const [image, none] = holder.children;
  image.hidden = !kind;
  none.hidden = Boolean(kind);
  // A worse frame replaces the image of an open event.
  const source = kind ? `api/events/${event.id}/${kind}.jpg?seen=${event.figure?.value ?? 0}` : "";
  if (kind && image.getAttribute("src") !== source) image.src = source;
}

function cardOf(id) {
  return [...at("events").children].find((card) => card.dataset.id === id);
}

async function open(id) {
  try {
    const event = await get(`api/events/${encodeURIComponent(id)}`);
    history.replaceState(null, "", `${location.pathname}${location.search}#${id}`);
    const index = events.findIndex((each) => each.id === id);
    detail.show(event, { hasNewer: index > 0, hasOlder: index >= 0 && index + 1 < events.length });
    return event;
  } catch (error) {
    announce(error.message);
    at("count").textContent = error.message;
    return null;
  }
}

async function change(event, verb, body = {}) {
  try {
    merge(await act(event, verb, body));
    announce(`${titleOf(event)}: ${verb === "note" ? "note saved" : verb + "d"}`.replace("reopend", "reopened"));
  } catch (error) {
    if (error.current) merge(error.current); // another viewer was faster
    announce(error.message);
    at("count").textContent = error.message;
    detail.warn(error.message);
  }
}

function matches(event) {
  const value = (name) => filters[name].value;
  return (
    (!value("state") || value("state") === event.state) && (!value("camera") || value("camera") === event.camera) &&
    (!value("kind") || value("kind") === event.kind) && (!value("label") || value("label") === event.label) &&
    (filters.range.value !== "custom" || event.start < to) && (event.end ?? Infinity) >= from
  );
}

// Put a changed or a new event into the list.
function merge(event) {
  const index = events.findIndex((each) => each.id === event.id);
  if (index >= 0) events[index] = event; // it stays where it is, even if the filter no longer admits it
  else if (matches(event)) events = [...events, event].sort((a, b) => (a.id < b.id ? 1 : -1));
  else return;
  if (filters.range.value !== "custom") to = Math.max(to, Date.now() / 1000);
  detail.update(event);
  draw();
}

const link = new Link(
  {
    hello(message) {
      if (message.starting) at("count").textContent = "The run is starting.";
      else if (!message.events) at("count").textContent = "This run keeps no events; add --sink events.sqlite";
      else refresh();
    },
    status() {
      showConnection("live", "good");
    },
    events(message) {
      if (message.reload) refresh();
      else message.changed.forEach(merge);
    },
    lost() {
      showConnection("no connection", "bad");
    },
  },
  "events",
);

function showConnection(text, kind) {
  if (at("link").textContent === text) return;
  at("link").textContent = text;
  at("link").dataset.kind = kind;
}

at("filters").onchange = refresh;
at("filters").onsubmit = (event) => event.preventDefault();
at("more").onclick = () => {
  shown += SHOWN;
  draw();
};
at("heat").onchange = () => {
  draw();
  detail.showImage();
};
at("by").value = localStorage.getItem("by") ?? "";
at("by").onchange = (event) => localStorage.setItem("by", event.target.value.trim());

function focusCard(by) {
  const cards = [...at("events").children];
  const index = cards.indexOf(document.activeElement?.closest(".event"));
  const next = cards[Math.min(Math.max(index + by, 0), cards.length - 1)];
  next?.querySelector(".open").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select, textarea")) return;
  const focused = events.find((each) => each.id === document.activeElement?.closest(".event")?.dataset.id);
  const current = detail.event ?? focused;
  if (event.key === "j" || event.key === "k") {
    const step = event.key === "j" ? 1 : -1;
    if (detail.event) detail.step(step);
    else focusCard(step);
  } else if (event.key === "p") at("heat").click();
  else if (event.key === "a" && current) change(current, "acknowledge");
  else if (event.key === "z" && current) change(current, "snooze", { minutes: 60 });
  else return;
  event.preventDefault();
});

addEventListener("resize", () => timeline.show(events, cameras, from, to));
addEventListener("hashchange", openHash);

// A link to an event opens it, with the events around it in the list.
async function openHash() {
  const id = decodeURIComponent(location.hash.slice(1));
  if (!id || detail.event?.id === id) return;
  const event = await open(id);
  if (!event || events.some((each) => each.id === id)) return;
  const local = (unix) => new Date((unix - new Date(unix * 1000).getTimezoneOffset() * 60) * 1000).toISOString().slice(0, 16);
  filters.range.value = "custom";
  filters.from.value = local(event.start - 1800);
  filters.to.value = local((event.end ?? event.start) + 1800);
  await refresh();
}
openHash();

setInterval(() => {
  if (performance.now() - link.receivedAt > SILENT_MS) showConnection("no connection", "bad");
  for (const event of events.slice(0, shown)) if (event.end === null && cardOf(event.id)) showCard(cardOf(event.id), event);
}, 1000);
