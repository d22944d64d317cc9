// The page: one card per camera, at most one of them enlarged, and controls that apply to all cards.
import { Card } from "./card.js";
import { clock } from "./events.js";
import { decodeBase64 } from "./heat.js";
import { Link } from "./link.js";
import { RecentEvents } from "./recent.js";
import { Sound } from "./sound.js";
import { decodesVideo } from "./video.js";
import { Wall, memory } from "./wall.js";
import { summarize } from "./words.js";

const MAX_DENSITY = 1.75; // image pixels per CSS pixel; more is not visible
const SLOW_MS = 60; // decoding time above which small images are requested
const SILENT_MS = 1200; // the server sends the status five times a second
const SCALE_STOPS = 8; // of the colour scale
const at = (id) => document.getElementById(id);
const cards = new Map();
const style = { heat: true, opacity: 0.6, palette: null, painted: false, buildingSeconds: null, lostAt: "" };
let painted = null; // whether the received images already show the heat map
let smallPixels = 640;
let requestedSizes = ""; // last sent, as JSON
let past = {}; // the last minute of each camera, by the server
const loud = new Set(); // cameras with an alarm that nobody has acknowledged

const announce = (text) => (at("announcement").textContent = text);

const recent = new RecentEvents(at("review"), (camera) => cards.get(camera)?.at(".recent"));
const sound = new Sound(at("sound"));
const wall = new Wall(at("cameras"), () => [...cards.values()], () => {
  for (const card of cards.values()) card.paint();
});

const link = new Link({
  hello(message) {
    style.palette = decodeBase64(message.palette);
    showScale(style.palette);
    if (painted === null) {
      // Without a stored choice, the heat map is off if the received images already show it.
      const stored = memory.read();
      setStyle(message.painted ? false : stored.heat ?? true, stored.opacity ?? message.opacity);
    }
    painted = style.painted = message.painted;
    style.edit = message.edit;
    past = message.history ?? {};
    for (const [camera, card] of cards) card.strip.load(past[camera] ?? []);
    smallPixels = message.small_pixels;
    requestedSizes = "";
    if (message.video) decodesVideo().then((video) => video && link.send({ video }));
    at("sign-out").hidden = !message.token;
    at("pages").hidden = !message.events;
    if (message.events) recent.load();
  },
  status(message) {
    style.lostAt = "";
    style.buildingSeconds = message.building_seconds;
    showConnection(...summarize(message.cameras, message.building_seconds));
    at("empty").hidden = message.cameras.length > 0;
    for (const status of message.cameras) cardOf(status.camera).setStatus(status);
    removeCards(new Set(message.cameras.map((status) => status.camera)));
    showProblems(message.troubles ?? []);
    at("viewers").hidden = message.viewers < 2; // this one
    at("viewers").textContent = `${message.viewers} viewers`;
  },
  events(message) {
    recent.update(message);
    for (const card of cards.values()) if (card.header) card.alarms.show(card.header);
  },
  frame(header, bytes) {
    cardOf(header.camera).addFrame(header, bytes);
  },
  lost() {
    showLoss();
    for (const card of cards.values()) card.video.close(); // the next connection begins with a key frame
  },
});

function showLoss() {
  style.lostAt ||= clock(Date.now() / 1000);
  showConnection("no connection", "bad");
  for (const card of cards.values()) card.updateAge();
}

function showConnection(text, kind) {
  const chip = at("link");
  if (chip.textContent === text) return;
  chip.textContent = text;
  chip.dataset.kind = kind;
  document.title = kind === "bad" ? `${text} – recipro-stream` : "recipro-stream";
}

// Show which colours stand for how much evidence.
function showScale(palette) {
  const stops = Array.from({ length: SCALE_STOPS + 1 }, (_, index) => {
    const level = Math.round((255 * index) / SCALE_STOPS);
    return `rgb(${palette.slice(3 * level, 3 * level + 3).join(" ")} / ${Math.round((100 * index) / SCALE_STOPS)}%)`;
  });
  at("scale").style.background = `linear-gradient(to right, ${stops.join(", ")}), var(--track)`;
}

// Sound once when an alarm begins, or when its event becomes new again.
function soundAlarms() {
  for (const [camera, card] of cards) {
    const isLoud = card.alarms.isLoud && !card.root.classList.contains("stale");
    if (isLoud && !loud.has(camera)) sound.play();
    loud[isLoud ? "add" : "delete"](camera);
  }
}

// Show the problems of sinks. Unchanged texts are not written again: a screen reader would read them again.
function showProblems(troubles) {
  const list = at("troubles");
  list.hidden = troubles.length === 0;
  while (list.children.length > troubles.length) list.lastChild.remove();
  while (list.children.length < troubles.length) {
    const row = document.createElement("li");
    row.append(document.createElement("strong"), document.createElement("span"));
    list.append(row);
  }
  troubles.forEach(({ sink, why }, index) => {
    const [name, reason] = list.children[index].children;
    if (name.textContent !== sink) name.textContent = sink;
    if (reason.textContent !== why) reason.textContent = why;
  });
}

function cardOf(camera) {
  let card = cards.get(camera);
  if (!card) {
    card = new Card(camera, style, link, announce, (...names) => recent.ofGuard(...names));
    card.at(".view").onclick = (event) => {
      if (card.why.isOpen || card.area.isOpen) return; // a box or a region is drawn
      if (!card.boxes.pick(event)) enlarge(card.root.classList.contains("large") ? null : camera);
    };
    card.why.opened = () => enlarge(camera); // the form stands beside the image
    cards.set(camera, card);
    recent.show(camera);
    card.strip.load(past[camera] ?? []);
    at("cameras").append(card.root);
    at("empty").hidden = true;
    const wanted = location.hash ? location.hash.slice(1) : encodeURIComponent(memory.read().large ?? "");
    if (wanted === encodeURIComponent(camera)) enlarge(camera);
    wall.layOut();
  }
  return card;
}

// Remove the cards of cameras that left the run. One message does not count: a frame may overtake the status of a new
// camera, and follow that of a removed one.
function removeCards(listed) {
  for (const [camera, card] of cards) {
    card.unlisted = listed.has(camera) ? 0 : (card.unlisted ?? 0) + 1;
    if (card.unlisted < 2) continue;
    if (card.root.classList.contains("large")) enlarge(null, { isRemembered: true });
    card.root.remove();
    card.video.close();
    cards.delete(camera);
  }
  wall.layOut();
}

// isRemembered: leave what the page remembers, because the viewer did not choose this
function enlarge(camera, { isRemembered = false } = {}) {
  for (const [name, card] of cards) {
    const large = name === camera;
    card.root.classList.toggle("large", large);
    card.at(".view").setAttribute("aria-expanded", String(large));
    card.updateAge();
  }
  if (!isRemembered) memory.write({ large: camera });
  history.replaceState(null, "", camera === null ? location.pathname + location.search : `#${encodeURIComponent(camera)}`);
  wall.layOut();
  if (camera !== null && !wall.isKiosk) {
    cards.get(camera).at(".view").focus({ preventScroll: true });
    scrollTo({ top: 0, behavior: "instant" });
  }
}

function setStyle(heat, opacity) {
  Object.assign(style, { heat, opacity });
  at("heat").checked = heat;
  at("opacity").disabled = !heat;
  at("opacity").value = Math.round(opacity * 100);
  at("percent").textContent = `${Math.round(opacity * 100)} %`;
  for (const card of cards.values()) card.paint();
}

function storeStyle() {
  memory.write({ heat: style.heat, opacity: style.opacity });
}

at("heat").onchange = (event) => {
  setStyle(event.target.checked, style.opacity);
  storeStyle();
};
at("opacity").oninput = (event) => {
  setStyle(style.heat, event.target.value / 100);
  storeStyle();
};

at("full-screen").onclick = () => wall.toggleFullScreen();
for (const button of document.querySelectorAll(".help-open")) button.onclick = () => at("help").showModal();

// Keys that apply to one camera.
const ACTIONS = {
  s: (card) => card.snapshot(),
  c: (card) => card.clip(),
  w: (card) => {
    card.area.close();
    card.why.open();
  },
  r: (card) => card.area.open(),
  m: (card) => card.boxes.maps.toggle(card.boxes.selected),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range]") || at("help").open) return;
  const all = [...cards.keys()];
  const large = all.find((name) => cards.get(name).root.classList.contains("large"));
  const focused = document.activeElement?.closest(".card")?.dataset.camera;
  const hovered = document.querySelector(".card:hover")?.dataset.camera;
  const chosen = large ?? focused ?? hovered ?? (all.length === 1 ? all[0] : undefined);
  if (event.key === "Escape" && (closeEditors() || closeQuestions() || releaseBoxes())) event.preventDefault();
  else if (event.key === "Escape" && large !== undefined) enlarge(null);
  else if (event.key === "h") {
    setStyle(!style.heat, style.opacity);
    storeStyle();
  } else if (event.key === "f") wall.toggleFullScreen();
  else if (event.key === "?") at("help").showModal();
  else if (event.key in ACTIONS) {
    if (chosen === undefined) announce(`${event.key} applies to one camera: choose it with ← →, or point at it`);
    else ACTIONS[event.key](cards.get(chosen));
  }
  else if ((event.key === "ArrowRight" || event.key === "ArrowLeft") && all.length) {
    const step = event.key === "ArrowRight" ? 1 : -1;
    const next = chosen === undefined ? 0 : (all.indexOf(chosen) + step + all.length) % all.length;
    if (large !== undefined) enlarge(all[next]);
    else cards.get(all[next]).at(".view").focus();
  } else return;
  event.preventDefault();
});

// End the selection of boxes of all cameras; return false if there is none.
function releaseBoxes() {
  return [...cards.values()].filter((card) => card.boxes.release()).length > 0;
}

// End the drawing of regions; return false if none was drawn.
function closeEditors() {
  return [...cards.values()].filter((card) => card.area.close()).length > 0;
}

// Go back to the live images; return false if none was held.
function closeQuestions() {
  return [...cards.values()].filter((card) => card.why.close()).length > 0;
}

// Request small images where large ones would look the same, or take this machine too long to decode.
function requestSizes() {
  const all = [...cards.values()];
  const large = all.find((card) => card.root.classList.contains("large"));
  const width = Math.max(0, ...all.filter((card) => card !== large).map((card) => card.canvas.clientWidth));
  const slow = all.length > 1 && Math.max(...all.map((card) => card.decodingMs)) > SLOW_MS;
  const fits = width > 0 && width * Math.min(devicePixelRatio, MAX_DENSITY) <= smallPixels;
  const small = fits || slow || navigator.connection?.saveData === true;
  const sizes = JSON.stringify({ small, large: large?.camera ?? "" });
  if (sizes === requestedSizes || !all.length || !link.send(JSON.parse(sizes))) return;
  requestedSizes = sizes;
}

setInterval(() => {
  requestSizes();
  wall.layOut();
  if (performance.now() - link.receivedAt > SILENT_MS) showLoss();
  soundAlarms();
  for (const card of cards.values()) {
    card.updateAge();
    if (!style.lostAt) card.strip.draw(); // without the server, time does not go on
    card.boxes.updateList();
  }
}, 200);
