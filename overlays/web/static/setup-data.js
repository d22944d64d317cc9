// The set-up of a camera as shapes on its image, and back; a rule's past in words. Pure.
import { clock, duration } from "./events.js";

export const DECIMALS = 4; // of fractions
export const KINDS = {
  region: { title: "region for rules", list: "regions", points: "polygon" },
  roi: { title: "region of interest" },
  mask: { title: "mask" },
  zone: { title: "zone", list: "zones", points: "polygon" },
  line: { title: "counting line", list: "lines", points: "points" },
};
const MAX_TIMES = 3;

// Return the shapes { kind, name, points in pixels, isRectangle, entry, before } of a set-up, for a frame of this size.
export function shapesOfSetup(setup, size) {
  const shapes = [];
  for (const [kind, { list, points }] of Object.entries(KINDS)) {
    for (const entry of list ? setup[list] : []) shapes.push(shapeOf(kind, entry[points], size, entry.name, entry));
  }
  for (const mask of setup.mask ?? []) shapes.push(shapeOf("mask", mask, size, "", mask));
  if (setup.roi) shapes.push(shapeOf("roi", cornersOf(setup.roi), size, "", setup.roi));
  return shapes;
}

function shapeOf(kind, corners, [width, height], name, entry) {
  const [x, y] = corners.flat().every((number) => number <= 1) ? [width, height] : [1, 1];
  const points = corners.map((corner) => [Math.round(corner[0] * x), Math.round(corner[1] * y)]);
  return { kind, name, points, isRectangle: isRectangle(points), entry, before: JSON.stringify(points) };
}

// Return the corners of a region of interest: [x, y, width, height], its text, or corners.
function cornersOf(roi) {
  const values = typeof roi === "string" ? roi.split(",").map(Number) : roi;
  if (Array.isArray(values[0])) return values;
  const [x, y, width, height] = values;
  return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]];
}

function isRectangle(points) {
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  return points.length === 4 && new Set(xs).size === 2 && new Set(ys).size === 2 && xs[0] === xs[3] && ys[0] === ys[1];
}

export function fractions(points, [width, height]) {
  return points.map(([x, y]) => [+(x / width).toFixed(DECIMALS), +(y / height).toFixed(DECIMALS)]);
}

// Return the set-up of shapes: unmoved shapes as written, others as fractions of the frame.
export function setupOfShapes(shapes, size) {
  const isMoved = (shape) => shape.entry === undefined || JSON.stringify(shape.points) !== shape.before;
  const setup = { roi: null, mask: [], regions: [], zones: [], lines: [] };
  for (const shape of shapes) {
    const { list, points } = KINDS[shape.kind];
    const placed = fractions(shape.points, size);
    if (shape.kind === "mask") setup.mask.push(isMoved(shape) ? placed : shape.entry);
    else if (shape.kind === "roi") setup.roi = isMoved(shape) ? roiOf(shape, placed) : shape.entry;
    else {
      const entry = { ...shape.extra, ...shape.entry, name: shape.name };
      setup[list].push(isMoved(shape) ? { ...entry, [points]: placed } : entry);
    }
  }
  return setup;
}

function roiOf({ isRectangle }, placed) {
  if (!isRectangle) return placed;
  const [[left, top], , [right, bottom]] = placed;
  return [left, top, +(right - left).toFixed(DECIMALS), +(bottom - top).toFixed(DECIMALS)];
}

// Return a name that no shape of this kind has.
export function freeName(kind, shapes) {
  const taken = new Set(shapes.map(({ name }) => name));
  for (let number = 1; ; number++) if (!taken.has(`${kind}-${number}`)) return `${kind}-${number}`;
}

// Return the corners as text: "0.1 0.2, 0.5 0.2, ...".
export function cornersText(points, size) {
  return fractions(points, size).map((corner) => corner.join(" ")).join(", ");
}

// Return the corners of a text in pixels; null if it is no list of enough corners within the frame.
export function cornersOfText(text, [width, height], least) {
  const corners = text.split(",").map((pair) => pair.trim().split(/\s+/).map(Number));
  const isValid = corners.length >= least && corners.every((pair) => pair.length === 2 && pair.every((number) => number >= 0 && number <= 1));
  return isValid ? corners.map(([x, y]) => [Math.round(x * width), Math.round(y * height)]) : null;
}

// Describe when a rule would have fired: { title, detail }.
export function pastWords(past) {
  if (!past.frames) return { title: "no frame to try it on yet", detail: "" };
  const known = `in the last ${duration(past.known_seconds)}`;
  if (!past.count) return { title: `would not have fired ${known}`, detail: "" };
  const times = `${past.count} time${past.count === 1 ? "" : "s"}`;
  const last = past.spans.slice(-MAX_TIMES).toReversed();
  const more = past.count > last.length ? `; ${past.count - last.length} earlier` : "";
  const detail = last.map(([start, end, text]) => `${clock(start)} for ${duration(end - start)}: ${text}`).join("; ");
  return { title: `would have fired ${times} ${known}, for ${duration(past.firing_seconds)} in all`, detail: `${detail}${more}` };
}

// Return the part of a rule around a mistake: [before, wrong, after].
export function marked(rule, position) {
  if (position === null || position === undefined || position > rule.length) return [rule, "", ""];
  const word = /^('[^']*'?|"[^"]*"?|[\w-]+|\S)?/.exec(rule.slice(position))[0] || "␣";
  return [rule.slice(0, position), word, rule.slice(position + word.length)];
}
