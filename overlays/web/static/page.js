// The page: one card per camera, at most one of them enlarged, and controls that apply to all cards.
import { Card } from "./card.js";
import { decodeBase64 } from "./heat.js";
import { RecentEvents } from "./recent.js";
import { Link } from "./link.js";
import { decodesVideo } from "./video.js";

const MAX_DENSITY = 1.75; // image pixels per CSS pixel; more is not visible
const SLOW_MS = 60; // decoding time above which small images are requested
const MANY = 6; // with more cameras, cards show fewer details
const SILENT_MS = 1200; // the server sends the status five times a second
const at = (id) => document.getElementById(id);
const cards = new Map();
const style = { heat: true, opacity: 0.6, palette: null };
let painted = null; // whether the received images already show the heat map
let smallPixels = 640;
let requestedSizes = ""; // last sent, as JSON

const announce = (text) => (at("announcement").textContent = text);

const recent = new RecentEvents(at("review"), (camera) => cards.get(camera)?.at(".recent"));

const link = new Link({
  hello(message) {
    style.palette = decodeBase64(message.palette);
    if (painted === null) {
      // Without a stored choice, the heat map is off if the received images already show it.
      const stored = JSON.parse(sessionStorage.getItem("style") ?? "{}");
      setStyle(stored.heat ?? !message.painted, stored.opacity ?? message.opacity);
    }
    painted = message.painted;
    smallPixels = message.small_pixels;
    requestedSizes = "";
    if (message.video) decodesVideo().then((video) => video && link.send({ video }));
    at("sign-out").hidden = !message.token;
    at("pages").hidden = !message.events;
    if (message.events) recent.load();
  },
  status(message) {
    showConnection(...summarize(message.cameras));
    at("empty").hidden = message.cameras.length > 0;
    for (const status of message.cameras) cardOf(status.camera).setStatus(status);
    removeCards(new Set(message.cameras.map((status) => status.camera)));
    showProblems(message.troubles ?? []);
    at("viewers").hidden = !message.viewers;
    at("viewers").textContent = message.viewers === 1 ? "1 viewer" : `${message.viewers} viewers`;
  },
  events(message) {
    recent.update(message);
  },
  frame(header, bytes) {
    cardOf(header.camera).addFrame(header, bytes);
  },
  lost() {
    showConnection("no connection", "bad");
    for (const card of cards.values()) {
      card.updateAge(true);
      card.video.close(); // the next connection begins with a key frame
    }
  },
});

// How many cameras are live, and how many guards fire.
function summarize(cameras) {
  const live = cameras.filter((status) => status.state === "live" && !status.silent).length;
  const running = cameras.filter((status) => status.state !== "ended").length;
  const alarms = cameras.reduce((sum, status) => sum + (status.silent ? 0 : status.alarms.length), 0);
  const words = cameras.length === 0 ? "connected" : `${live} of ${cameras.length} live`;
  const kind = alarms || live < running ? "bad" : "good";
  return [alarms ? `${words}, ${alarms} ${alarms === 1 ? "alarm" : "alarms"}` : words, kind];
}

function showConnection(text, kind) {
  const chip = at("link");
  if (chip.textContent === text) return;
  chip.textContent = text;
  chip.dataset.kind = kind;
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
    card = new Card(camera, style, link, announce);
    card.at(".view").onclick = (event) => {
      if (card.why.isOpen || card.area.isOpen) return; // a box or a region is drawn
      if (!card.boxes.pick(event)) enlarge(card.root.classList.contains("large") ? null : camera);
    };
    card.why.opened = () => enlarge(camera); // the form stands beside the image
    cards.set(camera, card);
    recent.show(camera);
    at("cameras").append(card.root);
    at("cameras").classList.toggle("many", cards.size > MANY);
    at("empty").hidden = true;
    if (location.hash.slice(1) === encodeURIComponent(camera)) enlarge(camera);
  }
  return card;
}

// Remove the cards of cameras that left the run. One message does not count: a frame may overtake the status of a new
// camera, and follow that of a removed one.
function removeCards(listed) {
  for (const [camera, card] of cards) {
    card.unlisted = listed.has(camera) ? 0 : (card.unlisted ?? 0) + 1;
    if (card.unlisted < 2) continue;
    if (card.root.classList.contains("large")) enlarge(null);
    card.root.remove();
    card.video.close();
    cards.delete(camera);
  }
  at("cameras").classList.toggle("many", cards.size > MANY);
}

function enlarge(camera) {
  for (const [name, card] of cards) {
    const large = name === camera;
    card.root.classList.toggle("large", large);
    card.at(".view").setAttribute("aria-expanded", String(large));
    card.at(".view").setAttribute("aria-label", `${name}: ${large ? "back to all" : "enlarge"}`);
  }
  history.replaceState(null, "", camera === null ? location.pathname : `#${encodeURIComponent(camera)}`);
  if (camera !== null) {
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
  sessionStorage.setItem("style", JSON.stringify({ heat: style.heat, opacity: style.opacity }));
}

at("heat").onchange = (event) => {
  setStyle(event.target.checked, style.opacity);
  storeStyle();
};
at("opacity").oninput = (event) => {
  setStyle(style.heat, event.target.value / 100);
  storeStyle();
};

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
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range]")) return;
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
  } else if (event.key in ACTIONS) {
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
  const disconnected = performance.now() - link.receivedAt > SILENT_MS;
  if (disconnected) showConnection("no connection", "bad");
  for (const card of cards.values()) {
    card.updateAge(disconnected);
    card.chart.draw();
    card.boxes.updateList();
  }
}, 200);
