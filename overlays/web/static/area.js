// An editor of the part of the frame that the network gets; it shows its YAML to copy. Loaded when it is opened.
import { COLOURS, boundsOf, drawShape, scaleOf, shapesOf, spanned } from "./area-shapes.js";

const TAP_PIXELS = 6; // a shorter drag sets a corner
const REACH_PIXELS = 12; // a pointer this close to a corner takes it
const STEP = 0.01; // of the longer side of the frame, for a press of an arrow key
const DECIMALS = 4; // of fractions
const MAX_CORNERS = 64;

export class AreaEditor {
  // opened(): the editor is shown; changed(): paint again.
  constructor(root, { opened, changed, announce }) {
    Object.assign(this, { root, opened, changed, announce });
    this.canvas = root.querySelector(".view canvas");
    this.panel = root.querySelector(".area");
    this.at = (selector) => this.panel.querySelector(selector);
    this.header = null; // of the shown frame
    this.isOpen = false;
    this.shapes = [];
    this.selected = null;
    this.unfinished = null; // the polygon whose corners are being set
    this.kind = "roi"; // of the next shape
    this.drag = null;
    this.at(".area-close").onclick = () => this.close();
    this.at(".area-remove").onclick = () => this.remove();
    this.at(".area-copy").onclick = () => this.copy();
    this.at(".area-fractions").onchange = () => this.show();
    for (const button of this.panel.querySelectorAll(".modes button")) {
      button.onclick = () => {
        this.kind = button.dataset.kind;
        this.unfinished = null;
        this.show();
      };
    }
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.onPointerDown(event));
    canvas.addEventListener("pointermove", (event) => this.onPointerMove(event));
    canvas.addEventListener("pointerup", (event) => this.onPointerUp(event));
    canvas.addEventListener("pointercancel", () => (this.drag = null));
    root.querySelector(".view").addEventListener("keydown", (event) => this.onKey(event));
  }

  open() {
    if (this.isOpen || !this.header) return;
    this.isOpen = true;
    this.shapes = shapesOf(this.header);
    this.selected = this.shapes.at(-1) ?? null;
    this.kind = this.shapes.some(({ kind }) => kind === "roi") ? "mask" : "roi";
    this.opened();
    this.root.querySelector(".view").focus({ preventScroll: true });
    this.show();
    this.announce("Drag a rectangle on the image, or set corners.");
  }

  // Return false if the editor is not shown.
  close() {
    if (!this.isOpen) return false;
    const hadFocus = this.panel.contains(document.activeElement);
    this.isOpen = false;
    this.selected = this.unfinished = this.drag = null;
    this.show();
    if (hadFocus) this.root.querySelector(".area-open").focus({ preventScroll: true });
    return true;
  }

  // Show the YAML of the shapes; the image shows the same.
  show() {
    this.panel.hidden = !this.isOpen;
    this.root.classList.toggle("drawing", this.isOpen);
    this.root.querySelector(".area-open").setAttribute("aria-expanded", String(this.isOpen));
    for (const button of this.panel.querySelectorAll(".modes button")) {
      button.setAttribute("aria-pressed", String(button.dataset.kind === this.kind));
    }
    this.at(".area-remove").disabled = !this.selected;
    const text = this.isOpen ? this.yaml() : "";
    if (this.at(".area-yaml").textContent !== text) this.at(".area-yaml").textContent = text;
    this.at(".area-copy").disabled = !this.shapes.length;
    this.at(".area-state").textContent = "";
    this.changed();
  }

  yaml() {
    const [width, height] = this.size();
    const fractions = this.at(".area-fractions").checked;
    const number = (value, side) => (fractions ? +(value / side).toFixed(DECIMALS) : value);
    const corner = ([x, y]) => `[${number(x, width)}, ${number(y, height)}]`;
    const polygon = ({ points }) => `[${points.map(corner).join(", ")}]`;
    const region = (shape) => {
      if (!shape.isRectangle) return polygon(shape);
      const [left, top, right, bottom] = boundsOf(shape.points);
      const [x, y] = [number(left, width), number(top, height)];
      // The far edge is rounded, not the width: it stays within the frame.
      const [wide, high] = [number(right, width) - x, number(bottom, height) - y];
      return `[${[x, y, +wide.toFixed(DECIMALS), +high.toFixed(DECIMALS)].join(", ")}]`;
    };
    const complete = this.shapes.filter((shape) => shape !== this.unfinished);
    const masks = complete.filter(({ kind }) => kind === "mask");
    const lines = complete.filter(({ kind }) => kind === "roi").map((shape) => `roi: ${region(shape)}`);
    if (masks.length) lines.push("mask:", ...masks.map((mask) => `  - ${polygon(mask)}`));
    return lines.join("\n");
  }

  async copy() {
    const text = this.at(".area-yaml").textContent;
    try {
      await navigator.clipboard.writeText(text);
      this.at(".area-state").textContent = "copied";
    } catch {
      // Without HTTPS a page may not write to the clipboard.
      getSelection().selectAllChildren(this.at(".area-yaml"));
      this.at(".area-state").textContent = "selected: copy it with Ctrl+C";
    }
  }

  remove() {
    if (!this.selected) return;
    this.shapes = this.shapes.filter((shape) => shape !== this.selected);
    if (this.unfinished === this.selected) this.unfinished = null;
    this.selected = this.shapes.at(-1) ?? null;
    this.show();
  }

  // Add a shape; a region replaces the one before.
  add(points, isRectangle) {
    if (this.kind === "roi") this.shapes = this.shapes.filter(({ kind }) => kind !== "roi");
    this.selected = { kind: this.kind, points, isRectangle };
    this.shapes = [...this.shapes, this.selected];
    return this.selected;
  }

  paint(context, pixelsPerCss) {
    const scale = scaleOf(this.header);
    for (const shape of this.shapes) {
      drawShape(context, shape, scale, (shape === this.selected ? 2.5 : 1.5) * pixelsPerCss, shape === this.unfinished);
      if (shape !== this.selected) continue;
      context.fillStyle = COLOURS[shape.kind];
      for (const [x, y] of shape.points) {
        const side = 8 * pixelsPerCss;
        context.fillRect(x * scale[0] - side / 2, y * scale[1] - side / 2, side, side);
      }
    }
  }

  onPointerDown(event) {
    if (!this.isOpen || !event.isPrimary || event.button > 0) return;
    const from = this.point(event);
    const corner = this.cornerAt(event);
    // A mask is drawn inside the region: only shapes of the kind that is drawn are moved by their inside.
    const isUnder = ({ kind, points }) => !this.unfinished && kind === this.kind && holds(points, from);
    const shape = corner?.shape ?? this.shapes.findLast(isUnder);
    if (shape) this.selected = shape;
    const points = shape?.points.map((point) => [...point]);
    this.drag = { from, x: event.clientX, y: event.clientY, isMoved: false, shape, corner: corner?.index, points };
    this.canvas.setPointerCapture(event.pointerId);
    this.show();
  }

  onPointerMove(event) {
    const { drag } = this;
    if (!drag || !event.isPrimary) return;
    drag.isMoved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > TAP_PIXELS;
    if (!drag.isMoved) return;
    const to = this.point(event);
    if (!drag.shape) {
      this.unfinished = null;
      drag.isNew = true;
      drag.shape = this.add([], true);
    }
    drag.shape.points = drag.isNew ? spanned(drag.from, to) : this.moved(drag, to);
    this.show();
  }

  onPointerUp(event) {
    const { drag } = this;
    if (!drag || !event.isPrimary) return;
    this.drag = null;
    if (drag.isNew) {
      const [left, top, right, bottom] = boundsOf(drag.shape.points);
      if (left === right || top === bottom) this.remove();
    } else if (!drag.isMoved && (!drag.shape || drag.shape === this.unfinished)) this.setCorner(drag);
    this.show();
  }

  // Set the next corner of a polygon; the first corner closes it.
  setCorner({ from, corner }) {
    const points = this.unfinished?.points;
    if (!points) this.unfinished = this.add([from], false);
    else if (corner === 0 && points.length > 2) this.unfinished = null;
    else if (corner === undefined && points.length < MAX_CORNERS) points.push(from);
  }

  // Return the points of a dragged shape: one corner is moved, or all are.
  moved({ from, corner, points, shape }, to) {
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
    if (corner === undefined) return this.shifted(points, dx, dy);
    const [x, y] = this.clamped([points[corner][0] + dx, points[corner][1] + dy]);
    if (shape.isRectangle) return spanned(points[(corner + 2) % 4], [x, y]);
    return points.map((point, index) => (index === corner ? [x, y] : point));
  }

  // Move all points by the same distance, within the frame.
  shifted(points, dx, dy) {
    const [width, height] = this.size();
    const [left, top, right, bottom] = boundsOf(points);
    const [x, y] = [clamp(dx, -left, width - right), clamp(dy, -top, height - bottom)];
    return points.map((point) => [point[0] + x, point[1] + y]);
  }

  onKey(event) {
    if (!this.isOpen || event.ctrlKey || event.metaKey || event.altKey) return;
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    const { selected } = this;
    const [width, height] = this.size();
    const step = Math.max(1, Math.round(STEP * Math.max(width, height)));
    if (event.key === "Delete" || event.key === "Backspace") this.remove();
    else if (event.key === "Enter" || event.key === " ") {
      if (this.unfinished?.points.length > 2) this.unfinished = null;
      else if (!selected) this.add(spanned(...this.middle()), true);
    } else if ((!x && !y) || !selected) return;
    else if (!event.shiftKey) selected.points = this.shifted(selected.points, x * step, y * step);
    else if (selected.isRectangle) {
      const [left, top, right, bottom] = boundsOf(selected.points);
      const far = [clamp(right + x * step, left + 1, width), clamp(bottom + y * step, top + 1, height)];
      selected.points = spanned([left, top], far);
    }
    this.show();
    event.preventDefault();
    event.stopPropagation();
  }

  middle() {
    const [width, height] = this.size();
    return [[0.25, 0.25], [0.75, 0.75]].map(([x, y]) => [Math.round(x * width), Math.round(y * height)]);
  }

  // Return the corner under a pointer: { shape, index }; that of the selected shape first.
  cornerAt(event) {
    const { pixels } = this.placement();
    const [x, y] = this.point(event);
    const ordered = this.unfinished ? [this.unfinished] : [this.selected, ...this.shapes].filter(Boolean);
    for (const shape of ordered) {
      const index = shape.points.findIndex((point) => Math.hypot(point[0] - x, point[1] - y) <= REACH_PIXELS * pixels);
      if (index >= 0) return { shape, index };
    }
    return undefined;
  }

  size() {
    return [this.header.frame_width ?? this.header.width, this.header.frame_height ?? this.header.height];
  }

  // Return where the frame lies on the screen: its corner, and frame pixels per CSS pixel.
  placement() {
    const [width, height] = this.size();
    const area = this.canvas.getBoundingClientRect();
    const scale = Math.min(area.width / width, area.height / height); // object-fit: contain
    const left = area.left + (area.width - scale * width) / 2, top = area.top + (area.height - scale * height) / 2;
    return { left, top, pixels: 1 / scale };
  }

  // Return a pointer's position in whole pixels of the frame, at most on its edge.
  point({ clientX, clientY }) {
    const { left, top, pixels } = this.placement();
    return this.clamped([(clientX - left) * pixels, (clientY - top) * pixels]);
  }

  clamped([x, y]) {
    const [width, height] = this.size();
    return [Math.round(clamp(x, 0, width)), Math.round(clamp(y, 0, height))];
  }
}

// Return whether a point lies in a polygon: a ray to the right crosses an odd number of sides.
function holds(points, [x, y]) {
  return points.reduce((inside, [x2, y2], index) => {
    const [x1, y1] = points.at(index - 1);
    return y1 > y !== y2 > y && x < x1 + ((y - y1) / (y2 - y1)) * (x2 - x1) ? !inside : inside;
  }, false);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), Math.max(low, high));
}
