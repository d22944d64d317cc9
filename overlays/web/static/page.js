// The page: cards for cameras, one of them large, and the knobs that hold for all.
import { Card } from "./card.js";
import { unpacked } from "./heat.js";
import { Link } from "./link.js";

const SHARP = 1.75; // pixels of a picture per pixel of the page, beyond which nobody sees more
const SLOW_MS = 60; // to decode a picture
const MANY = 6; // more cameras than this make a wall
const SILENT_MS = 1200; // the server speaks five times a second
const at = (id) => document.getElementById(id);
const cards = new Map();
const look = { heat: true, opacity: 0.6, palette: null };
let painted = null;
let smallPixels = 640;
let asked = ""; // what was last said of sizes

const say = (text) => (at("said").textContent = text);

const link = new Link({
  hello(said) {
    look.palette = unpacked(said.palette);
    if (painted === null) {
      // Pictures that were painted before they came here need no second coat.
      const kept = JSON.parse(sessionStorage.getItem("look") ?? "{}");
      set(kept.heat ?? !said.painted, kept.opacity ?? said.opacity);
    }
    painted = said.painted;
    smallPixels = said.small_pixels;
    asked = "";
    at("leave").hidden = !said.token;
  },
  status(said) {
    linked("live", "good");
    at("empty").hidden = said.cameras.length > 0;
    for (const status of said.cameras) card(status.camera).tell(status);
    warn(said.troubles ?? []);
    at("viewers").hidden = !said.viewers;
    at("viewers").textContent = said.viewers === 1 ? "1 viewer" : `${said.viewers} viewers`;
  },
  frame(header, blob) {
    card(header.camera).offer(header, blob);
  },
  lost() {
    linked("no connection", "bad");
    for (const one of cards.values()) one.fresh(true);
  },
});

function linked(word, kind) {
  const chip = at("link");
  if (chip.textContent === word) return;
  chip.textContent = word;
  chip.dataset.kind = kind;
}

// Say what does not work, as long as it does not. What is said already is left alone: it would be read aloud again.
function warn(troubles) {
  const list = at("troubles");
  list.hidden = troubles.length === 0;
  while (list.children.length > troubles.length) list.lastChild.remove();
  while (list.children.length < troubles.length) {
    const row = document.createElement("li");
    row.append(document.createElement("strong"), document.createElement("span"));
    list.append(row);
  }
  troubles.forEach(({ sink, why }, place) => {
    const [name, reason] = list.children[place].children;
    if (name.textContent !== sink) name.textContent = sink;
    if (reason.textContent !== why) reason.textContent = why;
  });
}

function card(camera) {
  let one = cards.get(camera);
  if (!one) {
    one = new Card(camera, look, link, say);
    one.at(".view").onclick = () => enlarge(one.root.classList.contains("large") ? null : camera);
    cards.set(camera, one);
    at("cameras").append(one.root);
    at("cameras").classList.toggle("many", cards.size > MANY);
    at("empty").hidden = true;
    if (location.hash.slice(1) === encodeURIComponent(camera)) enlarge(camera);
  }
  return one;
}

function enlarge(camera) {
  for (const [name, one] of cards) {
    const large = name === camera;
    one.root.classList.toggle("large", large);
    one.at(".view").setAttribute("aria-expanded", String(large));
    one.at(".view").setAttribute("aria-label", `${name}: ${large ? "back to all" : "enlarge"}`);
  }
  history.replaceState(null, "", camera === null ? location.pathname : `#${encodeURIComponent(camera)}`);
  if (camera !== null) {
    cards.get(camera).at(".view").focus({ preventScroll: true });
    scrollTo({ top: 0, behavior: "instant" });
  }
}

function set(heat, opacity) {
  Object.assign(look, { heat, opacity });
  at("heat").checked = heat;
  at("opacity").disabled = !heat;
  at("opacity").value = Math.round(opacity * 100);
  at("percent").textContent = `${Math.round(opacity * 100)} %`;
  for (const one of cards.values()) one.paint();
}

function keep() {
  sessionStorage.setItem("look", JSON.stringify({ heat: look.heat, opacity: look.opacity }));
}

at("heat").onchange = (event) => {
  set(event.target.checked, look.opacity);
  keep();
};
at("opacity").oninput = (event) => {
  set(look.heat, event.target.value / 100);
  keep();
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range]")) return;
  const all = [...cards.keys()];
  const large = all.find((name) => cards.get(name).root.classList.contains("large"));
  const focused = document.activeElement?.closest(".card")?.dataset.camera;
  const under = document.querySelector(".card:hover")?.dataset.camera;
  const chosen = large ?? focused ?? under ?? (all.length === 1 ? all[0] : undefined);
  if (event.key === "Escape" && large !== undefined) enlarge(null);
  else if (event.key === "h") {
    set(!look.heat, look.opacity);
    keep();
  } else if (event.key === "s" || event.key === "c") {
    if (chosen === undefined) say("s and c are for one camera: choose it with ← →, or point at it");
    else if (event.key === "s") cards.get(chosen).snapshot();
    else cards.get(chosen).clip();
  }
  else if ((event.key === "ArrowRight" || event.key === "ArrowLeft") && all.length) {
    const step = event.key === "ArrowRight" ? 1 : -1;
    const next = chosen === undefined ? 0 : (all.indexOf(chosen) + step + all.length) % all.length;
    if (large !== undefined) enlarge(all[next]);
    else cards.get(all[next]).at(".view").focus();
  } else return;
  event.preventDefault();
});

// Ask for small pictures where nobody could see the difference, or where large ones take this machine too long.
function size() {
  const all = [...cards.values()];
  const large = all.find((one) => one.root.classList.contains("large"));
  const wide = Math.max(0, ...all.filter((one) => one !== large).map((one) => one.canvas.clientWidth));
  const slow = all.length > 1 && Math.max(...all.map((one) => one.decoding)) > SLOW_MS;
  const seen = wide > 0 && wide * Math.min(devicePixelRatio, SHARP) <= smallPixels;
  const small = seen || slow || navigator.connection?.saveData === true;
  const words = JSON.stringify({ small, large: large?.camera ?? "" });
  if (words === asked || !all.length || !link.say(JSON.parse(words))) return;
  asked = words;
}

setInterval(() => {
  size();
  const cut = performance.now() - link.heardAt > SILENT_MS;
  if (cut) linked("no connection", "bad");
  for (const one of cards.values()) {
    one.fresh(cut);
    one.chart.draw();
  }
}, 200);
