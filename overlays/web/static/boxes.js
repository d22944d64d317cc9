// Boxes of a detector in the image: outlines, labels, and the heat maps of all boxes or of one.
import { decodeBase64, evidence, imageRectangle, plainPalette, renderHeatmap } from "./heat.js";
import { percent } from "./words.js";

const AGAINST = plainPalette([40, 110, 255]); // evidence against a box; no track has a blue colour
const DARK = "#101216";
const GOLDEN_ANGLE = 0.381966;
const BLUES = [0.52, 0.76]; // hues that no track has
const FULL_SCORE = 0.5; // the heat of a box with a lower score is fainter where all are shown
const MANY = 12; // with more boxes, labels are smaller
const SMALL_LABELS = 3; // a box of fewer letter heights is small
const SMALL_TILE_PIXELS = 32; // longer side of a map when all are shown
const REDUCED_PIXELS = 160; // longer side of the image in which the maps of all boxes are composed

// Return the boxes of a frame, in pixels of its image: { key, finding, colour, rectangle, region }.
export function boxesOf(header) {
  return header.findings.flatMap((finding, index) => {
    if (!finding.box) return [];
    const { track, map } = finding;
    return [{
      key: track === undefined ? `${finding.label} ${index}` : `#${track}`,
      finding,
      colour: colourOf(track ?? finding.class_index),
      rectangle: imageRectangle(header, finding.box),
      region: map && imageRectangle(header, map.region),
    }];
  });
}

// Return the colour of a track as [red, green, blue]: the same as in drawn images.
export function colourOf(number) {
  const positive = (value, modulus) => ((value % modulus) + modulus) % modulus;
  const [first, last] = BLUES;
  const turned = positive(number * GOLDEN_ANGLE, 1) * (1 - last + first);
  const hue = turned < first ? turned : turned + last - first;
  const lightness = [0.62, 0.5, 0.72][positive(number, 3)];
  const amplitude = 0.95 * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((offset) => {
    const turn = (offset + 12 * hue) % 12;
    return Math.round(255 * (lightness - amplitude * Math.max(-1, Math.min(turn - 3, 9 - turn, 1))));
  });
}

export function cssColour(colour) {
  return `rgb(${colour.join(" ")})`;
}

// Return the smallest box at a point of the image; undefined where there is none.
export function boxAt(boxes, x, y) {
  const area = ({ rectangle: [, , width, height] }) => width * height;
  return boxes
    .filter(({ rectangle: [left, top, width, height] }) => x >= left && y >= top && x < left + width && y < top + height)
    .reduce((best, next) => (best && area(best) <= area(next) ? best : next), undefined);
}

// Draw the heat maps of all boxes in their tracks' colours; where maps overlap, the strongest.
export function drawAllHeat(context, boxes, opacity, tile) {
  const { width, height } = context.canvas;
  const scale = REDUCED_PIXELS / Math.max(width, height);
  const reduced = reducedContext(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const [columns, rows] = [reduced.canvas.width, reduced.canvas.height];
  const strongest = reduced.createImageData(columns, rows);
  const target = new Uint32Array(strongest.data.buffer);
  for (const { finding, colour, region } of boxes) {
    const weight = Math.min(1, finding.score / FULL_SCORE);
    for (const [levels, palette] of region ? heats(finding.map, plainPalette(colour)) : []) {
      reduced.clearRect(0, 0, columns, rows);
      drawLevels(reduced, levels, finding.map.grid, region.map((edge) => edge * scale), palette, weight, tile, SMALL_TILE_PIXELS);
      const { data } = reduced.getImageData(0, 0, columns, rows);
      const pixels = new Uint32Array(data.buffer);
      for (let index = 0; index < pixels.length; index++) {
        if (data[4 * index + 3] > strongest.data[4 * index + 3]) target[index] = pixels[index];
      }
    }
  }
  reduced.putImageData(strongest, 0, 0);
  context.globalAlpha = opacity;
  context.imageSmoothingQuality = "high";
  context.drawImage(reduced.canvas, 0, 0, width, height);
  context.globalAlpha = 1;
}

// Draw the heat map of one box.
export function drawOneHeat(context, { finding, region }, palette, opacity, tile) {
  for (const [levels, colours] of region ? heats(finding.map, palette) : []) {
    drawLevels(context, levels, finding.map.grid, region, colours, opacity, tile);
  }
}

// Return the evidence for and against a box as [levels, palette].
function heats(map, palette) {
  const levels = decodeBase64(map.heat_u8);
  // Maps of mode keep have a base level; maps of mode drop are zero where a cell has no effect.
  const shown = [[map.mode === "drop" ? levels : evidence(levels), palette]];
  return map.against_u8 ? [...shown, [decodeBase64(map.against_u8), AGAINST]] : shown;
}

function drawLevels(context, levels, [rows, columns], region, palette, opacity, tile, pixels) {
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(renderHeatmap(levels, rows, columns, palette, opacity, tile, pixels), ...region);
}

let reduced = null; // shared by all cards

function reducedContext(width, height) {
  reduced ??= document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  if (reduced.canvas.width !== width || reduced.canvas.height !== height) Object.assign(reduced.canvas, { width, height });
  return reduced;
}

// Draw outlines and labels, highest scores first; if a box is selected, others are faint and unlabelled.
export function drawBoxes(context, boxes, selected, pixelsPerCss) {
  const stroke = Math.max(1, 1.5 * pixelsPerCss);
  for (const box of boxes.toReversed()) {
    if (box.key !== selected?.key) outline(context, box, box.finding.map ? stroke : stroke / 2, selected ? 0.35 : 1);
  }
  if (selected) outline(context, selected, 2 * stroke, 1);
  const labelled = selected ? [selected] : boxes;
  const size = (labelled.length > MANY ? 10 : 11.5) * pixelsPerCss;
  const placed = labelled.filter(({ rectangle }) => rectangle[3] < SMALL_LABELS * size).map(({ rectangle }) => middleOf(rectangle));
  for (const box of labelled) drawLabel(context, box, size, placed);
}

function outline(context, { rectangle, colour }, width, alpha) {
  context.globalAlpha = alpha;
  for (const [style, lineWidth] of [[DARK, 2 * width], [cssColour(colour), width]]) {
    context.strokeStyle = style;
    context.lineWidth = lineWidth;
    context.strokeRect(...rectangle);
  }
  context.globalAlpha = 1;
}

// Return the middle half of a rectangle, which no label covers.
function middleOf([left, top, width, height]) {
  return { x: left + width / 4, y: top + height / 4, right: left + 0.75 * width, bottom: top + 0.75 * height };
}

// Draw a label that covers no other label and no small box; shorten or omit it if there is no room.
function drawLabel(context, { finding, rectangle, colour }, size, placed) {
  const [left, top, boxWidth, boxHeight] = rectangle;
  const height = Math.round(1.35 * size);
  const { width: columns, height: rows } = context.canvas;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const score = percent(finding.score);
  for (const text of [`${finding.label} ${score}`, score]) {
    const width = context.measureText(text).width + 0.6 * size;
    const right = left + boxWidth - width;
    const bottom = top + boxHeight;
    const places = [[left, top - height], [right, top - height], [left, bottom], [right, bottom], [left, top]];
    const free = places.find(([x, y]) => x >= 0 && y >= 0 && x + width <= columns && y + height <= rows &&
      !placed.some((other) => x < other.right && other.x < x + width && y < other.bottom && other.y < y + height));
    if (!free) continue;
    const [x, y] = free;
    placed.push({ x, y, right: x + width, bottom: y + height });
    context.fillStyle = cssColour(colour);
    context.fillRect(x, y, width, height);
    context.fillStyle = DARK;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(text, x + 0.3 * size, y + height / 2);
    return;
  }
}
