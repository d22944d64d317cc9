// The boxes of one camera as a list, the selected box, and the facts about it.
import { BoxMaps } from "./box-maps.js";
import { boxAt, boxesOf, cssColour } from "./boxes.js";
import { drawSparkline } from "./strip.js";
import { imageRectangle } from "./heat.js";
import { percent } from "./words.js";

const HISTORY_SECONDS = 60;
const HISTORY_STEP_SECONDS = 0.2;
const MAX_TRACKS = 1000; // with a history
const LIST_MS = 200; // between changes of the list

export class BoxPanel {
  // changed(): the selection or its map has changed.
  constructor(root, camera, link, { announce, changed }) {
    const canvas = root.querySelector(".view canvas");
    this.canvas = canvas;
    this.announce = announce;
    this.changed = changed;
    this.header = null; // of the shown frame
    this.boxes = [];
    this.isDetector = false; // whether a frame had a box, or nothing: a classifier always has a class
    // The selected box: the pinned box, else the box under the pointer, else the focused box.
    this.keys = { pinned: null, hovered: null, focused: null };
    this.panel = root.querySelector(".box-panel");
    this.list = root.querySelector(".boxes");
    this.at = (selector) => this.panel.querySelector(selector);
    this.items = new Map(); // by key
    this.history = new Map(); // of scores, by key
    this.listedAt = 0;
    this.isListed = true; // whether the list is that of the shown frame
    this.maps = new BoxMaps(this.panel, camera, link, () => {
      this.updateFacts();
      this.changed();
    });
    canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && this.hover(event));
    canvas.addEventListener("pointerleave", () => this.select({ hovered: null }));
    this.list.addEventListener("keydown", (event) => this.onKey(event));
    this.list.addEventListener("pointerleave", () => this.select({ hovered: null }));
    this.list.addEventListener("focusout", () => this.select({ focused: null }));
    this.at(".release").onclick = () => this.release();
  }

  get key() {
    return this.keys.pinned ?? this.keys.hovered ?? this.keys.focused;
  }

  get selected() {
    return this.boxes.find((box) => box.key === this.key);
  }

  // The selected box with the map that is shown; undefined without one.
  get shownBox() {
    const box = this.maps.shown(this.selected, this.header);
    return box && { ...box, region: box.finding.map && imageRectangle(this.header, box.finding.map.region) };
  }

  // Show the boxes of a frame.
  show(header) {
    this.header = header;
    this.boxes = boxesOf(header);
    this.isDetector ||= this.boxes.length > 0 || header.findings.length === 0;
    this.record(header.taken_at_unix);
    if (this.keys.hovered !== null && !this.selected) this.keys.hovered = null;
    this.isListed = false;
    this.updateList();
    this.updateFacts();
  }

  // Change some of the keys. A selection that ends or begins is drawn at once.
  select(keys) {
    const before = this.key;
    Object.assign(this.keys, keys);
    if (this.key === before) return;
    this.updateList(true);
    this.updateFacts();
    this.changed();
  }

  // End the selection; return false if there is none.
  release() {
    if (this.key === null) return false;
    this.select({ pinned: null, hovered: null, focused: null });
    return true;
  }

  // Handle a click or tap on the image: pin or release a box. Return false if no box is there.
  pick(event) {
    if (event.detail === 0) return false; // by the keyboard
    const box = this.boxUnder(event);
    if (!box && this.keys.pinned === null) return false;
    this.pin(box && box.key !== this.keys.pinned ? box.key : null);
    return true;
  }

  pin(key) {
    this.select({ pinned: key });
    const box = this.selected;
    if (key !== null && box) this.announce(describe(box));
  }

  hover(event) {
    this.select({ hovered: this.boxUnder(event)?.key ?? null });
  }

  boxUnder({ clientX, clientY }) {
    if (!this.header) return undefined;
    const { width, height } = this.header;
    const area = this.canvas.getBoundingClientRect();
    const scale = Math.min(area.width / width, area.height / height); // object-fit: contain
    const x = (clientX - area.left - (area.width - scale * width) / 2) / scale;
    const y = (clientY - area.top - (area.height - scale * height) / 2) / scale;
    return boxAt(this.boxes, x, y);
  }

  onKey(event) {
    const items = [...this.list.children];
    const index = items.indexOf(document.activeElement);
    const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: items.length - 1 }[event.key];
    if (next !== undefined) items[Math.min(Math.max(next, 0), items.length - 1)].focus();
    else if (event.key === "Enter" || event.key === " ") items[index]?.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  record(seconds) {
    for (const { key, finding } of this.boxes) {
      const points = this.history.get(key) ?? [];
      this.history.delete(key); // the last key is that of the newest point
      this.history.set(key, points);
      const last = points.at(-1);
      if (last && seconds >= last.seconds && seconds - last.seconds < HISTORY_STEP_SECONDS) continue;
      if (last && seconds < last.seconds) points.length = 0;
      points.push({ seconds, score: finding.score });
      while (seconds - points[0].seconds > HISTORY_SECONDS) points.shift();
    }
    for (const [key, points] of this.history) {
      if (this.history.size <= MAX_TRACKS && seconds - points.at(-1).seconds <= HISTORY_SECONDS) break;
      this.history.delete(key);
    }
  }

  updateList(now = false) {
    const time = performance.now();
    if (!now && (this.isListed || time - this.listedAt < LIST_MS)) return;
    this.listedAt = time;
    this.isListed = true;
    const boxes = this.boxes.toSorted((a, b) => (a.finding.track ?? -1) - (b.finding.track ?? -1));
    const keys = new Set(boxes.map((box) => box.key));
    for (const [key, item] of this.items) {
      const holdsFocus = item === document.activeElement;
      item.classList.toggle("gone", !keys.has(key));
      if (keys.has(key) || holdsFocus) continue; // the focus stays where it is until it is moved
      item.remove();
      this.items.delete(key);
    }
    let position = this.list.firstElementChild;
    for (const box of boxes) {
      const item = this.items.get(box.key) ?? this.addItem(box.key, position);
      while (position?.classList.contains("gone")) position = position.nextElementSibling;
      if (position === item) position = item.nextElementSibling;
      else if (item !== document.activeElement) this.list.insertBefore(item, position);
      this.updateItem(item, box);
    }
    const current = this.items.get(this.key) ?? this.list.querySelector("[tabindex='0']") ?? this.list.firstElementChild;
    for (const item of this.list.children) item.tabIndex = item === current ? 0 : -1;
    this.list.hidden = this.panel.hidden = !this.isDetector;
  }

  addItem(key, position) {
    const item = document.createElement("li");
    item.setAttribute("role", "option");
    item.dataset.key = key;
    item.append(...["i", "span", "b", "small"].map((name) => document.createElement(name)));
    item.onpointerenter = (event) => event.pointerType === "mouse" && this.select({ hovered: key });
    item.onfocus = () => this.select({ focused: key });
    item.onclick = () => {
      item.focus({ preventScroll: true });
      this.pin(this.keys.pinned === key ? null : key);
    };
    this.list.insertBefore(item, position);
    this.items.set(key, item);
    return item;
  }

  updateItem(item, box) {
    const [swatch, label, score, track] = item.children;
    const { finding } = box;
    swatch.style.backgroundColor = cssColour(box.colour);
    setText(label, finding.label);
    setText(score, percent(finding.score));
    setText(track, finding.track === undefined ? "" : `#${finding.track}`);
    const selected = String(box.key === this.key);
    if (item.getAttribute("aria-selected") !== selected) item.setAttribute("aria-selected", selected);
    const text = describe(box);
    if (item.getAttribute("aria-label") !== text) item.setAttribute("aria-label", text);
  }

  updateFacts() {
    const box = this.shownBox;
    const hasKey = this.key !== null;
    if (hasKey) this.maps.update(this.selected, this.header);
    this.at(".hint").hidden = hasKey;
    this.at(".box-facts").hidden = !hasKey;
    if (!hasKey) return;
    this.at(".box-facts").classList.toggle("gone", !box);
    setText(this.at(".box-gone"), box ? "" : "no longer in the image");
    drawSparkline(this.at(".history"), this.history.get(this.key) ?? [], HISTORY_SECONDS);
    if (!box) return;
    const { label, score, track, map } = box.finding;
    this.at(".box-title i").style.backgroundColor = cssColour(box.colour);
    setText(this.at(".box-label"), label);
    setText(this.at(".box-score"), percent(score));
    setText(this.at(".box-track"), track === undefined ? "–" : `#${track}`);
    setText(this.at(".box-mode"), map ? `${map.mode}, ${map.cut} cut` : "no map yet");
    setText(this.at(".box-age"), map ? `${map.age_seconds.toFixed(1)} s` : "–");
    const lowest = map?.lowest_score ?? null;
    this.at(".box-lowest").parentElement.hidden = lowest === null;
    setText(this.at(".box-lowest"), lowest === null ? "" : percent(lowest));
    this.at(".box-against").hidden = !map?.against_u8;
  }
}

function describe({ finding: { label, score, track, map } }) {
  const parts = [label, percent(score)];
  if (track !== undefined) parts.push(`track ${track}`);
  return [...parts, map ? `map ${map.mode}` : "no map"].join(", ");
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
