// The last minute of a camera: its score as a line, alarms as red marks, and grey where it gave no frames.
const SECONDS = 60;
const GAP_SECONDS = 2; // a longer time without a frame is a gap ...
const GAP_INTERVALS = 3; // ... if it is also longer than this many intervals between frames
const RESTART_SECONDS = 5;
const MARK_PIXELS = 5;
const INTERVAL_MS = 190;

export class Strip {
  // clock(): Unix seconds by the server's clock
  constructor(canvas, clock) {
    this.canvas = canvas;
    this.clock = clock;
    this.points = []; // [Unix seconds, score, 1 for an alarm], the oldest first
    this.drawnAt = 0;
  }

  // Put the server's points before those of this page.
  load(points) {
    const last = points.at(-1)?.[0] ?? -Infinity;
    this.points = [...points, ...this.points.filter(([at]) => at > last)];
  }

  add(unix, score, isFiring) {
    const { points } = this;
    const last = points.at(-1)?.[0] ?? -Infinity;
    if (unix < last - RESTART_SECONDS) points.length = 0; // another run, or a clock that was set
    else if (unix <= last) return; // the server's points are newer than the frames on their way
    points.push([unix, score, Number(isFiring)]);
    const first = points.findIndex(([at]) => unix - at <= SECONDS + GAP_SECONDS);
    if (first > 0) points.splice(0, first);
  }

  draw() {
    const { canvas, points } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || performance.now() - this.drawnAt < INTERVAL_MS) return;
    this.drawnAt = performance.now();
    const scale = devicePixelRatio || 1;
    Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const css = getComputedStyle(canvas);
    const colour = (name) => css.getPropertyValue(name).trim();
    const now = this.clock();
    const x = (unix) => width * (1 - (now - unix) / SECONDS);
    context.fillStyle = colour("--track");
    context.fillRect(0, 0, width, height);
    const limit = gapLimit(points);
    for (const [from, to] of gaps(points, now, limit)) this.fill(context, x(from), x(to), 0, height, colour("--gap"));
    for (const [from, to] of spans(points, limit)) this.fill(context, x(from), x(to), height - MARK_PIXELS, MARK_PIXELS, colour("--alarm"));
    this.line(context, limit, x, (score) => 2 + (height - MARK_PIXELS - 4) * (1 - Math.min(Math.max(score, 0), 1)), colour("--accent"));
  }

  fill(context, left, right, top, height, style) {
    context.fillStyle = style;
    context.fillRect(left, top, Math.max(right - left, 2), height);
  }

  line(context, limit, x, y, style) {
    context.beginPath();
    this.points.forEach(([at, score], index) => {
      const isGap = index === 0 || at - this.points[index - 1][0] > limit; // no line across a gap
      context[isGap ? "moveTo" : "lineTo"](x(at), y(score));
    });
    context.strokeStyle = style;
    context.lineWidth = 1.5;
    context.stroke();
  }
}

// Return the time in seconds above which two neighbouring points have a gap between them.
export function gapLimit(points) {
  const intervals = points.slice(1).map(([at], index) => at - points[index][0]).toSorted((a, b) => a - b);
  return Math.max(GAP_SECONDS, GAP_INTERVALS * (intervals[intervals.length >> 1] ?? 0));
}

// Return the times [from, to] of alarms.
export function spans(points, limit) {
  const found = [];
  points.forEach(([at, , isFiring], index) => {
    if (!isFiring) return;
    const isNext = points[index - 1]?.[2] && at - points[index - 1][0] <= limit;
    if (isNext) found.at(-1)[1] = at;
    else found.push([at, at]);
  });
  return found;
}

// Return the times [from, to] without frames, from a camera's first frame on.
export function gaps(points, now, limit) {
  const times = [...points.map(([at]) => at), now];
  return times.slice(1).map((at, index) => [times[index], at]).filter(([from, to]) => to - from > limit);
}

// Draw the scores [{ seconds, score }] of a box as a line on a scale from 0 to 1; the newest is at the right edge.
export function drawSparkline(canvas, points, seconds) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  const scale = devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
  const context = canvas.getContext("2d");
  const css = getComputedStyle(canvas);
  context.scale(scale, scale);
  context.strokeStyle = css.getPropertyValue("--line").trim();
  context.strokeRect(0.5, 0.5, width - 1, height - 1);
  const newest = points.at(-1);
  if (!newest) return;
  const x = (point) => (width - 3) * (1 - (newest.seconds - point.seconds) / seconds);
  const y = (point) => 2 + (height - 4) * (1 - Math.min(Math.max(point.score, 0), 1));
  context.beginPath();
  points.forEach((point, index) => {
    const gap = index === 0 || point.seconds - points[index - 1].seconds > 2; // no line across a gap
    context[gap ? "moveTo" : "lineTo"](x(point), y(point));
  });
  context.strokeStyle = css.getPropertyValue("--accent").trim();
  context.lineWidth = 1.5;
  context.stroke();
  context.beginPath();
  context.arc(x(newest), y(newest), 2, 0, 2 * Math.PI);
  context.fillStyle = context.strokeStyle;
  context.fill();
}
