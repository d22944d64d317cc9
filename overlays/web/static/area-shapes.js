// The part of the frame that the network gets, drawn on the image.
export const COLOURS = { roi: "#ffd60a", mask: "#c7c7cc" };
export const DARK = "rgb(16 18 22 / 85%)";

// Draw the region of interest and the masks of a frame; the image may be smaller than the frame.
export function drawArea(context, header) {
  const scale = scaleOf(header);
  for (const shape of shapesOf(header)) drawShape(context, shape, scale, Math.max(1.5, header.width / 500));
}

// Return a frame's shapes: { kind, points: [[x, y], ...] in pixels of the frame, isRectangle }.
export function shapesOf({ roi, masks }) {
  const shape = (kind, points) => ({ kind, points: points.map((point) => [...point]), isRectangle: isRectangle(points) });
  return [...(masks ?? []).map((mask) => shape("mask", mask)), ...(roi ? [shape("roi", roi)] : [])];
}

export function scaleOf(header) {
  return [header.width / (header.frame_width ?? header.width), header.height / (header.frame_height ?? header.height)];
}

export function drawShape(context, { kind, points }, [scaleX, scaleY], stroke, isUnfinished = false) {
  context.save();
  context.beginPath();
  points.forEach(([x, y], index) => context[index ? "lineTo" : "moveTo"](x * scaleX, y * scaleY));
  if (!isUnfinished) context.closePath();
  for (const [style, width] of [[DARK, stroke + 2], [COLOURS[kind], stroke]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke();
  }
  if (kind === "mask" && !isUnfinished) hatch(context, stroke);
  context.restore();
}

// Draw diagonal lines inside the current path.
function hatch(context, stroke) {
  const { width, height } = context.canvas;
  context.clip();
  context.beginPath();
  for (let x = -height; x < width; x += 12 * stroke) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.strokeStyle = DARK;
  context.lineWidth = stroke;
  context.stroke();
  context.strokeStyle = COLOURS.mask;
  context.lineWidth = stroke / 2;
  context.stroke();
}

export function spanned([x1, y1], [x2, y2]) {
  const [left, right, top, bottom] = [Math.min(x1, x2), Math.max(x1, x2), Math.min(y1, y2), Math.max(y1, y2)];
  return [[left, top], [right, top], [right, bottom], [left, bottom]];
}

export function boundsOf(points) {
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

function isRectangle(points) {
  const [left, top, right, bottom] = boundsOf(points);
  const corners = spanned([left, top], [right, bottom]);
  return points.length === 4 && points.every(([x, y], index) => x === corners[index][0] && y === corners[index][1]);
}
