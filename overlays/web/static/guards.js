// What guards say of the frame that is shown: the outlines of regions, and what fires, in the picture and in words.
const ALARM = "#ff3b30";
const CALM = "#5ac8fa";
const DARK = "rgb(16 18 22 / 85%)";

export function firing(header) {
  return (header?.guards ?? []).filter((guard) => guard.firing);
}

// Outline the regions; the picture may be smaller than the frame they are given in.
export function outline(pen, header) {
  const colour = firing(header).length ? ALARM : CALM;
  const across = header.width / (header.frame_width ?? header.width);
  const down = header.height / (header.frame_height ?? header.height);
  const stroke = Math.max(1.5, header.width / 500);
  const size = Math.max(11, Math.min(header.width, header.height) / 42);
  for (const { name, polygon } of header.regions ?? []) {
    const points = polygon.map(([x, y]) => [x * across, y * down]);
    pen.beginPath();
    points.forEach(([x, y], place) => (place ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    for (const [style, width] of [[DARK, stroke + 2], [colour, stroke]]) {
      pen.strokeStyle = style;
      pen.lineWidth = width;
      pen.stroke();
    }
    const right = Math.min(Math.max(...points.map(([x]) => x)), header.width) - size / 2;
    const top = Math.max(Math.min(...points.map(([, y]) => y)), 0) + size / 3;
    pen.font = `500 ${size}px system-ui, sans-serif`;
    pen.textAlign = "right";
    pen.textBaseline = "top";
    const wide = pen.measureText(name).width;
    pen.fillStyle = DARK;
    pen.fillRect(right - wide - size / 4, top - size / 6, wide + size / 2, size * 1.35);
    pen.fillStyle = colour;
    pen.fillText(name, right, top);
  }
}

// The alarm of one card. Its name is told once, when it begins; reasons and seconds change in silence.
export class Alarm {
  constructor(root, camera, say) {
    this.root = root;
    this.camera = camera;
    this.say = say;
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
      if (this.names && !names) this.say(`${this.camera}: quiet again`);
      this.names = names;
    }
    why.textContent = now.map((guard) => `${guard.says} · ${guard.seconds.toFixed(1)} s`).join("\n");
  }
}

// Where the verdict's heat lies, in a few words.
export function grounds(header) {
  const top = header.findings.reduce((best, one) => (best && best.score >= one.score ? best : one), undefined);
  const told = top?.grounds;
  if (!told) return "–";
  const words = Object.entries(told.heat_inside).map(([name, share]) => `${percent(share)} in ${name}`);
  if (told.focus_area !== null) words.push(`half on ${(100 * told.focus_area).toFixed(1)} %`);
  if (told.stability !== null) words.push(`stability ${told.stability.toFixed(2)}`);
  const checked = header.deletion;
  if (checked) words.push(`masked: ${percent(checked.score)} → ${percent(checked.masked_score)}`);
  return words.join(" · ") || "flat";
}

function percent(share) {
  return `${Math.round(share * 100)} %`;
}
