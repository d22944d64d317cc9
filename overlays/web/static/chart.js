// Score and age of the last minute, one above the other.
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
    const pen = this.canvas.getContext("2d");
    const tone = getComputedStyle(this.canvas);
    const colour = (name) => tone.getPropertyValue(name).trim();
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${tone.fontFamily}`;
    const wide = width - 72, middle = Math.round(height * 0.55), gap = 6;
    const x = (point) => wide * (1 - (now / 1000 - point.at) / SECONDS);
    const oldest = Math.max(0.1, ...this.points.map((point) => point.age));
    const nice = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1e9].find((limit) => oldest <= limit);
    this.strip(pen, wide, 0, middle - gap, x, (p) => p.score, 1, colour("--accent"), colour("--line"));
    this.strip(pen, wide, middle + gap, height - 1, x, (p) => p.age, nice, colour("--age"), colour("--line"));
    pen.textBaseline = "top";
    pen.fillStyle = colour("--accent");
    pen.fillText("score ≤ 1", wide + 6, 0);
    pen.fillStyle = colour("--age");
    pen.fillText(`age ≤ ${nice} s`, wide + 6, middle + gap - 1);
  }

  strip(pen, wide, top, bottom, x, value, most, colour, rule) {
    const y = (point) => bottom - (bottom - top) * Math.min(value(point) / most, 1);
    pen.strokeStyle = rule;
    pen.lineWidth = 1;
    pen.strokeRect(0.5, top + 0.5, wide - 1, bottom - top - 1);
    pen.save();
    pen.beginPath();
    pen.rect(0, top, wide, bottom - top);
    pen.clip();
    pen.beginPath();
    let before = null;
    for (const point of this.points) {
      if (before === null || point.at - before > 2) pen.moveTo(x(point), y(point)); // a gap stays a gap
      else pen.lineTo(x(point), y(point));
      before = point.at;
    }
    pen.strokeStyle = colour;
    pen.lineWidth = 1.5;
    pen.stroke();
    pen.restore();
  }
}
