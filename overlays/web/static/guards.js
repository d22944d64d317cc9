// Guards of the shown frame: outlines of regions in the image, and firing guards as text.
import { duration, figureWords } from "./events.js";

const ALARM = "#ff3b30";
const CALM = "#5ac8fa";
const DARK = "rgb(16 18 22 / 85%)";

export function firing(header) {
  return (header?.guards ?? []).filter((guard) => guard.firing);
}

// Draw the outlines of regions; the image may be smaller than the frame.
export function drawRegions(context, header) {
  const colour = firing(header).length ? ALARM : CALM;
  const scaleX = header.width / (header.frame_width ?? header.width);
  const scaleY = header.height / (header.frame_height ?? header.height);
  const stroke = Math.max(1.5, header.width / 500);
  const size = Math.max(11, Math.min(header.width, header.height) / 42);
  for (const { name, polygon } of header.regions ?? []) {
    const points = polygon.map(([x, y]) => [x * scaleX, y * scaleY]);
    context.beginPath();
    points.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    for (const [style, width] of [[DARK, stroke + 2], [colour, stroke]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.stroke();
    }
    const right = Math.min(Math.max(...points.map(([x]) => x)), header.width) - size / 2;
    const top = Math.max(Math.min(...points.map(([, y]) => y)), 0) + size / 3;
    context.font = `500 ${size}px system-ui, sans-serif`;
    context.textAlign = "right";
    context.textBaseline = "top";
    const width = context.measureText(name).width;
    context.fillStyle = DARK;
    context.fillRect(right - width - size / 4, top - size / 6, width + size / 2, size * 1.35);
    context.fillStyle = colour;
    context.fillText(name, right, top);
  }
}

// The number that violates the rule in this frame; the rule itself where there is none.
function reason({ figure, says }) {
  return figure ? figureWords(figure, "in this frame") : says;
}

// The alarm of a card. A screen reader reads its name once, when it begins; reasons and seconds change without that.
export class Alarm {
  constructor(root, camera, announce) {
    this.root = root;
    this.camera = camera;
    this.announce = announce;
    this.box = root.querySelector(".alarm");
    this.names = "";
  }

  show(header) {
    const now = firing(header);
    const names = now.map((guard) => guard.name).join(", ");
    this.root.classList.toggle("alarmed", now.length > 0);
    this.box.hidden = now.length === 0;
    const [name, why] = this.box.children;
    if (names !== this.names) {
      name.textContent = names;
      if (this.names && !names) this.announce(`${this.camera}: no alarm`);
      this.names = names;
    }
    why.textContent = now.map((guard) => `${reason(guard)}, for ${duration(guard.seconds)}`).join("\n");
    this.box.title = now.map((guard) => guard.says).join("\n"); // the rule
  }
}

// Describe where the top finding's heat map lies.
export function describeHeatmap(header) {
  const top = header.findings.reduce((best, next) => (best && best.score >= next.score ? best : next), undefined);
  const stats = top?.grounds;
  if (!stats) return "–";
  const parts = Object.entries(stats.heat_inside).map(([name, fraction]) => `${percent(fraction)} in ${name}`);
  if (stats.focus_area !== null) parts.push(`half on ${(100 * stats.focus_area).toFixed(1)} %`);
  if (stats.stability !== null) parts.push(`stability ${stats.stability.toFixed(2)}`);
  const check = header.deletion;
  if (check) parts.push(`masked: ${percent(check.score)} → ${percent(check.masked_score)}`);
  return parts.join(" · ") || "flat";
}

function percent(fraction) {
  return `${Math.round(fraction * 100)} %`;
}
