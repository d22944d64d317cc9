// Drawing of shapes on the live image, by pointer, touch and keyboard. Editors extend it with a panel: `this.panel`.
import { COLOURS, boundsOf, drawShape, scaleOf, spanned } from "./area-shapes.js";

const TAP_PIXELS = 6; // a shorter drag sets a corner
const REACH_PIXELS = 12; // a pointer this close to a corner takes it
const STEP = 0.01; // of the longer side of the frame, for a press of an arrow key
export const MAX_CORNERS = 64;

export class ShapeEditor {
  // opened(): the editor is shown; changed(): paint again.
  constructor(root, { opened, changed, announce }) {
    Object.assign(this, { root, opened, changed, announce });
    this.canvas = root.querySelector(".view canvas");
    this.header = null; // of the shown frame
    this.isOpen = false;
    this.shapes = []; // { kind, points: [[x, y], ...] in pixels of the frame, isRectangle }
    this.selected = null;
    this.corner = null; // index of the chosen corner of the selected shape
    this.unfinished = null; // the polygon whose corners are being set
    this.kind = "roi"; // of the next shape
    this.drag = null;
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.onPointerDown(event));
    canvas.addEventListener("pointermove", (event) => this.onPointerMove(event));
    canvas.addEventListener("pointerup", (event) => this.onPointerUp(event));
    canvas.addEventListener("pointercancel", () => (this.drag = null));
    root.querySelector(".view").addEventListener("keydown", (event) => this.onKey(event));
  }

  // Whether a drag inside the shape moves it.
  isMovable({ kind }) {
    return kind === this.kind;
  }

  // The shapes whose corners can be dragged, the first ones first.
  get reachable() {
    return [this.selected, ...this.shapes];
  }

  // Show the shapes in the panel; the image shows the same.
  show() {
    this.changed();
  }

  // Return false if the editor is not shown.
  close() {
    if (!this.isOpen) return false;
    const hadFocus = this.panel.contains(document.activeElement);
    this.isOpen = false;
    this.selected = this.unfinished = this.drag = this.corner = null;
    this.show();
    if (hadFocus) this.root.querySelector(".area-open").focus({ preventScroll: true });
    return true;
  }

  select(shape) {
    if (shape !== this.selected) this.corner = null;
    this.selected = shape;
  }

  remove(shape = this.selected) {
    if (!shape) return;
    this.shapes = this.shapes.filter((other) => other !== shape);
    if (this.unfinished === shape) this.unfinished = null;
    if (this.selected === shape) this.select(this.shapes.at(-1) ?? null);
    this.show();
  }

  // Add a shape; a region of interest replaces the one before.
  add(points, isRectangle) {
    if (this.kind === "roi") this.shapes = this.shapes.filter(({ kind }) => kind !== "roi");
    this.select({ kind: this.kind, points, isRectangle });
    this.shapes = [...this.shapes, this.selected];
    return this.selected;
  }

  paint(context, pixelsPerCss) {
    const scale = scaleOf(this.header);
    for (const shape of this.shapes) {
      drawShape(context, shape, scale, (shape === this.selected ? 2.5 : 1.5) * pixelsPerCss, isOpenLine(shape, this.unfinished));
      if (shape !== this.selected) continue;
      context.fillStyle = COLOURS[shape.kind];
      shape.points.forEach(([x, y], index) => {
        const side = (index === this.corner ? 14 : 8) * pixelsPerCss;
        context.fillRect(x * scale[0] - side / 2, y * scale[1] - side / 2, side, side);
      });
    }
  }

  onPointerDown(event) {
    if (!this.isOpen || !event.isPrimary || event.button > 0) return;
    const from = this.point(event);
    const corner = this.cornerAt(event);
    // Masks lie inside the region, so a drag inside moves only shapes of the current kind.
    const isUnder = (shape) => !this.unfinished && this.isMovable(shape) && holds(shape.points, from);
    const shape = corner?.shape ?? this.shapes.findLast(isUnder);
    if (shape) this.select(shape);
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
    if (drag.isNew) drag.shape.points = drag.shape.kind === "line" ? [drag.from, to] : spanned(drag.from, to);
    else drag.shape.points = this.moved(drag, to);
    this.show();
  }

  onPointerUp(event) {
    const { drag } = this;
    if (!drag || !event.isPrimary) return;
    this.drag = null;
    if (drag.isNew) {
      const [left, top, right, bottom] = boundsOf(drag.shape.points);
      const isLine = drag.shape.kind === "line";
      if (isLine ? left === right && top === bottom : left === right || top === bottom) this.remove();
    } else if (!drag.isMoved && (!drag.shape || drag.shape === this.unfinished)) this.setCorner(drag);
    this.show();
  }

  // Set the next corner of a polygon; the first corner closes it.
  setCorner({ from, corner }) {
    const points = this.unfinished?.points;
    if (!points) this.unfinished = this.add([from], false);
    else if (corner === 0 && points.length > 2) this.unfinished = null;
    else if (corner === undefined && points.length < MAX_CORNERS) points.push(from);
    if (this.kind === "line" && this.unfinished?.points.length === 2) this.unfinished = null;
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
    if (!this.moveByKey(event) && !this.changeByKey(event)) return;
    this.show();
    event.preventDefault();
    event.stopPropagation();
  }

  // Arrow keys move the selected shape or its chosen corner; with Shift they resize a rectangle.
  moveByKey(event) {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    const { selected, corner } = this;
    if ((!x && !y) || !selected) return false;
    const [width, height] = this.size();
    const step = Math.max(1, Math.round(STEP * Math.max(width, height)));
    if (corner !== null) selected.points = this.moved({ from: [0, 0], corner, points: selected.points, shape: selected }, [x * step, y * step]);
    else if (!event.shiftKey) selected.points = this.shifted(selected.points, x * step, y * step);
    else if (selected.isRectangle) {
      const [left, top, right, bottom] = boundsOf(selected.points);
      const far = [clamp(right + x * step, left + 1, width), clamp(bottom + y * step, top + 1, height)];
      selected.points = spanned([left, top], far);
    }
    return true;
  }

  changeByKey({ key }) {
    const { selected } = this;
    if (key === "Delete" || key === "Backspace") this.removeByKey();
    else if (key === "Enter" || key === " ") {
      if (this.unfinished?.points.length > 2) this.unfinished = null;
      else if (!selected) this.addByKey();
    } else if ((key === "." || key === ",") && selected) {
      const count = selected.points.length;
      this.corner = this.corner === null ? 0 : (this.corner + (key === "." ? 1 : count - 1)) % count;
      this.announce(`corner ${this.corner + 1} of ${count}`);
    } else if ((key === "+" || key === "Insert") && selected) this.addCorner(selected);
    else return false;
    return true;
  }

  addByKey() {
    const [from, to] = this.middle();
    if (this.kind === "line") this.add([from, to], false);
    else this.add(spanned(from, to), true);
  }

  // Add a corner behind the chosen one, in the middle of the side.
  addCorner(shape) {
    const { points } = shape;
    if (shape.kind === "line" || points.length >= MAX_CORNERS) return;
    const index = this.corner ?? points.length - 1;
    const [a, b] = [points[index], points[(index + 1) % points.length]];
    shape.points = points.toSpliced(index + 1, 0, this.clamped([(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]));
    shape.isRectangle = false;
    this.corner = index + 1;
    this.announce(`corner ${this.corner + 1} of ${shape.points.length}`);
  }

  removeByKey() {
    const { selected, corner } = this;
    if (corner === null || !selected || selected.points.length < 4) {
      this.remove();
      return;
    }
    selected.points = selected.points.toSpliced(corner, 1);
    selected.isRectangle = false;
    this.corner = null;
  }

  middle() {
    const [width, height] = this.size();
    return [[0.25, 0.25], [0.75, 0.75]].map(([x, y]) => [Math.round(x * width), Math.round(y * height)]);
  }

  // Return the corner under a pointer: { shape, index }; that of the selected shape first.
  cornerAt(event) {
    const { pixels } = this.placement();
    const [x, y] = this.point(event);
    const ordered = this.unfinished ? [this.unfinished] : this.reachable.filter(Boolean);
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

function isOpenLine(shape, unfinished) {
  return shape === unfinished || shape.kind === "line";
}

// Return whether a point lies in a polygon: a ray to the right crosses an odd number of sides.
function holds(points, [x, y]) {
  return points.reduce((inside, [x2, y2], index) => {
    const [x1, y1] = points.at(index - 1);
    return y1 > y !== y2 > y && x < x1 + ((y - y1) / (y2 - y1)) * (x2 - x1) ? !inside : inside;
  }, false);
}

export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), Math.max(low, high));
}
