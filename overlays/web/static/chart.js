// Chart of score and age in the last minute, one above the other.
const SECONDS = 60;

export class Chart {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = [];
    this.drawnAt = 0;
  }

  add(score, age, label) {
    const at = performance.now() / 1000;
    this.points.push({ at, score, age, label });
    while (this.points.length && at - this.points[0].at > SECONDS) this.points.shift();
  }

  draw() {
    const now = performance.now();
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (now - this.drawnAt < 190 || !width) return;
    this.drawnAt = now;
    const scale = devicePixelRatio || 1;
    const pixels = [Math.round(width * scale), Math.round(height * scale)];
    if (this.canvas.width !== pixels[0] || this.canvas.height !== pixels[1]) {
      [this.canvas.width, this.canvas.height] = pixels;
    }
    const context = this.canvas.getContext("2d");
    const css = getComputedStyle(this.canvas);
    const colour = (name) => css.getPropertyValue(name).trim();
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `11px ${css.fontFamily}`;
    const plotWidth = width - 72, middle = Math.round(height * 0.55), gap = 6;
    const x = (point) => plotWidth * (1 - (now / 1000 - point.at) / SECONDS);
    const oldest = Math.max(0.1, ...this.points.map((point) => point.age));
    const maxAge = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1e9].find((limit) => oldest <= limit);
    this.strip(context, plotWidth, 0, middle - gap, x, (p) => p.score, 1, colour("--accent"), colour("--line"));
    this.strip(context, plotWidth, middle + gap, height - 1, x, (p) => p.age, maxAge, colour("--age"), colour("--line"));
    context.textBaseline = "top";
    context.fillStyle = colour("--accent");
    context.fillText("score ≤ 1", plotWidth + 6, 0);
    context.fillStyle = colour("--age");
    context.fillText(`age ≤ ${maxAge} s`, plotWidth + 6, middle + gap - 1);
  }

  strip(context, plotWidth, top, bottom, x, value, max, colour, rule) {
    const y = (point) => bottom - (bottom - top) * Math.min(value(point) / max, 1);
    context.strokeStyle = rule;
    context.lineWidth = 1;
    context.strokeRect(0.5, top + 0.5, plotWidth - 1, bottom - top - 1);
    context.save();
    context.beginPath();
    context.rect(0, top, plotWidth, bottom - top);
    context.clip();
    context.beginPath();
    let before = null;
    for (const point of this.points) {
      if (before === null || point.at - before > 2) context.moveTo(x(point), y(point)); // no line across a gap
      else context.lineTo(x(point), y(point));
      before = point.at;
    }
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.stroke();
    context.restore();
  }
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
