// Ask the detector about a place of one frame: hold the frame, draw a box, choose a class, and show the answer.
import { drawOneHeat } from "./boxes.js";
import { imageRectangle, plainPalette } from "./heat.js";

const DARK = "#101216";
const SUPPORTS = [255, 196, 60];
const SUPPRESSES = [90, 150, 255];
const TAP_PIXELS = 6; // a shorter drag moves the box instead of drawing a new one
const FAR_OVERLAP = 0.1; // below this overlap the answer is about another place
const MIN_PIXELS = 4; // shortest side of a box
const STEP = 0.02; // of the longer side of the frame, for a press of an arrow key

export class WhyPanel {
  // hold(isHeld): freeze the card's image or let it go on; selected(): the selected box; changed(): paint again.
  constructor(root, camera, link, { hold, selected, changed, announce }) {
    Object.assign(this, { camera, link, hold, selected, changed, announce });
    this.opened = () => {}; // called when a frame is held
    this.canvas = root.querySelector(".view canvas");
    this.view = root.querySelector(".view");
    this.root = root;
    this.panel = root.querySelector(".why");
    this.at = (selector) => this.panel.querySelector(selector);
    this.header = null; // of the held frame
    this.box = null; // the place: [left, top, right, bottom] in pixels of the frame
    this.answer = null;
    this.mode = "drop";
    this.drag = null;
    this.label = "";
    this.isAsking = false;
    const names = this.at("datalist");
    names.id = `classes-${camera}`;
    this.at(".why-class").setAttribute("list", names.id);
    this.at(".why-open").onclick = () => this.open();
    this.at(".why-close").onclick = () => this.close();
    this.at("form").onsubmit = (event) => {
      event.preventDefault();
      this.ask();
    };
    for (const button of this.panel.querySelectorAll(".modes button")) {
      button.onclick = () => this.setMode(button.dataset.mode);
    }
    this.canvas.addEventListener("pointerdown", (event) => this.onPointerDown(event));
    this.canvas.addEventListener("pointermove", (event) => this.onPointerMove(event));
    this.canvas.addEventListener("pointerup", (event) => this.onPointerUp(event));
    this.canvas.addEventListener("pointercancel", () => (this.drag = null));
    this.view.addEventListener("keydown", (event) => this.onKey(event));
    this.at("form").addEventListener("keydown", (event) => {
      event.stopPropagation(); // letters are text here, not shortcuts
      if (event.key === "Escape") this.close();
    });
  }

  get isOpen() {
    return this.header !== null;
  }

  // The frame that the card shows now. Without a detector there is nothing to ask.
  offer(header, isDetector) {
    this.shown = header;
    this.panel.hidden = !(isDetector && this.link.canAsk);
  }

  // Hold the shown frame here and on the server, and show the form.
  async open() {
    if (this.isOpen || this.panel.hidden) return;
    const header = this.shown;
    this.header = header;
    this.hold(true);
    this.answer = null;
    const box = this.selected();
    this.box = box ? [...box.finding.box] : this.middle();
    if (box) this.at(".why-class").value = box.finding.label;
    this.show();
    this.opened();
    this.view.focus({ preventScroll: true });
    const { labels, error } = await this.link.ask({ hold: { camera: this.camera, index: header.index } });
    if (this.header !== header) return;
    if (error) {
      this.fail(error);
      return;
    }
    const names = this.at("datalist");
    names.replaceChildren(...labels.map((label) => Object.assign(document.createElement("option"), { value: label })));
    this.announce("The image is held. Draw a box, or move it with the arrow keys; then choose a class.");
  }

  // Go back to the live image; return false if no frame is held.
  close() {
    if (!this.isOpen) return false;
    const hadFocus = this.panel.contains(document.activeElement);
    this.header = this.box = this.answer = this.drag = null;
    this.link.send({ release: true });
    this.show();
    this.hold(false);
    if (hadFocus) this.at(".why-open").focus({ preventScroll: true });
    return true;
  }

  async ask() {
    const { header, box } = this;
    const label = this.at(".why-class").value.trim();
    if (this.isAsking || !header || !box) return;
    if (!label) {
      this.fail("choose the class that is or should be there");
      this.at(".why-class").focus();
      return;
    }
    this.isAsking = true;
    this.answer = null;
    this.show("the detector is asked…");
    const answer = await this.link.why({ camera: this.camera, index: header.index, box, label });
    this.isAsking = false;
    if (this.header !== header || this.box !== box) return;
    if (answer.error) {
      this.fail(answer.error);
      return;
    }
    this.answer = answer;
    this.show();
    this.announce(scoreText(answer));
  }

  fail(text) {
    this.answer = null;
    this.show(text, true);
  }

  setMode(mode) {
    this.mode = mode;
    this.show();
  }

  // Show the state as text; the image shows the same.
  show(text = "", isError = false) {
    const { answer } = this;
    this.root.classList.toggle("asking", this.isOpen);
    this.at(".why-open").hidden = this.isOpen;
    this.at("form").hidden = !this.isOpen;
    this.at(".why-ask").disabled = this.isAsking;
    this.at(".why-state").textContent = text;
    this.at(".why-state").classList.toggle("bad", isError);
    this.at(".why-answer").hidden = !answer;
    const held = this.root.querySelector(".held");
    held.hidden = !this.isOpen;
    held.textContent = this.isOpen ? `held: frame ${this.header.index}` : "";
    for (const button of this.panel.querySelectorAll(".modes button")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === this.mode));
    }
    if (answer) {
      this.at(".why-score").textContent = scoreText(answer);
      const places = marked(answer).map(({ number, kind, colour, place }) => {
        const row = document.createElement("li");
        const name = document.createElement("b");
        name.textContent = number;
        name.style.backgroundColor = `rgb(${colour.join(" ")})`;
        row.append(name, `${kind}: ${exact(answer.score)} → ${exact(place.score_without)}`);
        return row;
      });
      this.at(".why-places").replaceChildren(...places);
      this.at(".why-far").hidden = answer.overlap >= FAR_OVERLAP;
      this.at(".why-without").hidden = places.length === 0;
      this.at(".why-none").hidden = answer.suppressing.length > 0;
    }
    this.changed();
  }

  // Draw the place, and the answer: its box, its map, and the numbered places.
  paint(context, style, tile, pixelsPerCss) {
    const { header, answer } = this;
    if (answer) {
      const finding = answer.maps.find(({ map }) => map.mode === this.mode) ?? answer.maps[0];
      const region = imageRectangle(header, finding.map.region);
      const palette = this.mode === "drop" ? plainPalette(SUPPORTS) : style.palette;
      drawOneHeat(context, { finding, region }, palette, style.heat ? style.opacity : 0.6, tile);
      frameRectangle(context, imageRectangle(header, finding.box), "#fff", 1.5 * pixelsPerCss, []);
    }
    const dash = 6 * pixelsPerCss;
    frameRectangle(context, imageRectangle(header, this.box), "#fff", 2 * pixelsPerCss, [dash, dash]);
    for (const { number, colour, place } of answer ? marked(answer) : []) {
      drawMark(context, imageRectangle(header, place.box), number, colour, pixelsPerCss);
    }
  }

  // Return the size of the frame in its own pixels.
  size() {
    return [this.header.frame_width ?? this.header.width, this.header.frame_height ?? this.header.height];
  }

  middle() {
    const [width, height] = this.size();
    return [0.4 * width, 0.4 * height, 0.6 * width, 0.6 * height];
  }

  place(box) {
    this.box = box;
    this.answer = null;
    this.show();
  }

  onPointerDown(event) {
    if (!this.isOpen || !event.isPrimary || event.button > 0) return;
    this.drag = { from: this.point(event), x: event.clientX, y: event.clientY, isDrawn: false };
    this.canvas.setPointerCapture(event.pointerId);
  }

  onPointerMove(event) {
    if (!this.drag || !event.isPrimary) return;
    this.drag.isDrawn ||= Math.hypot(event.clientX - this.drag.x, event.clientY - this.drag.y) > TAP_PIXELS;
    if (this.drag.isDrawn) this.place(spanned(this.drag.from, this.point(event)));
  }

  onPointerUp(event) {
    if (!this.drag || !event.isPrimary) return;
    const { isDrawn, from: [x, y] } = this.drag;
    this.drag = null;
    const [left, top, right, bottom] = this.box;
    if (!isDrawn) this.move(x - (left + right) / 2, y - (top + bottom) / 2);
    else if (right - left < MIN_PIXELS || bottom - top < MIN_PIXELS) this.place(this.middle());
    if (this.at(".why-class").value) this.ask();
    else this.at(".why-class").focus({ preventScroll: true });
  }

  // Return a pointer's position in pixels of the frame, at most on its edge.
  point({ clientX, clientY }) {
    const [width, height] = this.size();
    const area = this.canvas.getBoundingClientRect();
    const scale = Math.min(area.width / width, area.height / height); // object-fit: contain
    const x = (clientX - area.left - (area.width - scale * width) / 2) / scale;
    const y = (clientY - area.top - (area.height - scale * height) / 2) / scale;
    return [clamp(x, 0, width), clamp(y, 0, height)];
  }

  // Move the box within the frame.
  move(x, y) {
    const [width, height] = this.size();
    const [left, top, right, bottom] = this.box;
    const [dx, dy] = [clamp(x, -left, width - right), clamp(y, -top, height - bottom)];
    this.place([left + dx, top + dy, right + dx, bottom + dy]);
  }

  onKey(event) {
    if (!this.isOpen || event.ctrlKey || event.metaKey || event.altKey) return;
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    const [width, height] = this.size();
    const step = STEP * Math.max(width, height);
    if (event.key === "Enter" || event.key === " ") {
      if (this.at(".why-class").value) this.ask();
      else this.at(".why-class").focus();
    } else if (!x && !y) return;
    else if (!event.shiftKey) this.move(x * step, y * step);
    else {
      const [left, top, right, bottom] = this.box;
      this.place([left, top, clamp(right + x * step, left + step, width), clamp(bottom + y * step, top + step, height)]);
    }
    event.preventDefault();
    event.stopPropagation();
  }
}

// Return an answer's places with their numbers and colours.
function marked({ score, suppressing, supporting }) {
  const mark = (places, kind, colour) => places.map((place) => ({ kind, colour, place }));
  return [...mark(suppressing, "speaks against it", SUPPRESSES), ...mark(supporting, "speaks for it", SUPPORTS)]
    .filter(({ place }) => exact(place.score_without) !== exact(score))
    .map((entry, index) => ({ ...entry, number: `${1 + index}` }));
}

function scoreText({ label, score, threshold, overlap }) {
  const shown = score >= threshold ? "enough for a box" : "too low for a box";
  return `${label}: ${exact(score)}, ${shown} (from ${exact(threshold)}); overlap with your box ${Math.round(100 * overlap)} %`;
}

function exact(score) {
  if (score >= 0.0995) return score.toFixed(2);
  return score >= 1e-4 ? `${Number(score.toPrecision(2))}` : "<0.0001";
}

function spanned([x1, y1], [x2, y2]) {
  return [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), Math.max(low, high));
}

function frameRectangle(context, rectangle, colour, width, dash) {
  context.lineWidth = 2 * width;
  context.strokeStyle = DARK;
  context.strokeRect(...rectangle);
  context.setLineDash(dash);
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.strokeRect(...rectangle);
  context.setLineDash([]);
}

function drawMark(context, [left, top, width, height], number, colour, pixelsPerCss) {
  const style = `rgb(${colour.join(" ")})`;
  frameRectangle(context, [left, top, width, height], style, pixelsPerCss, []);
  const size = 16 * pixelsPerCss;
  context.font = `700 ${0.75 * size}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillStyle = style;
  context.fillRect(left, top, size, size);
  context.fillStyle = DARK;
  context.fillText(number, left + size / 2, top + size / 2);
}
