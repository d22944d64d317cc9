// Zones and counting lines in the image, their counts, and a strip of the last parts and crossings with their images.
const COLOUR = "#ffd60a";
const DARK = "rgb(16 18 22 / 85%)";
const MAX_SHOWN = 12;
const ARROWS = { forward: "→", backward: "←" };

// Draw zones and lines; the image may be smaller than the frame.
export function drawPlaces(context, header) {
  const scaleX = header.width / (header.frame_width ?? header.width);
  const scaleY = header.height / (header.frame_height ?? header.height);
  const stroke = Math.max(1.5, header.width / 500);
  for (const { kind, points } of header.places ?? []) {
    const corners = points.map(([x, y]) => [x * scaleX, y * scaleY]);
    context.beginPath();
    corners.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
    if (kind === "zone") context.closePath();
    else addArrow(context, corners, 12 * stroke);
    for (const [style, width] of [[DARK, stroke + 2], [COLOUR, stroke]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.stroke();
    }
  }
}

// Add an arrow to the path: from the middle of a line to its right, which is forward.
function addArrow(context, [[x, y], [endX, endY]], length) {
  const distance = Math.hypot(endX - x, endY - y) || 1;
  const [across, down] = [(endX - x) / distance, (endY - y) / distance];
  const [middleX, middleY] = [(x + endX) / 2, (y + endY) / 2];
  const [tipX, tipY] = [middleX - down * length, middleY + across * length];
  context.moveTo(middleX, middleY);
  context.lineTo(tipX, tipY);
  for (const side of [-1, 1]) {
    context.moveTo(tipX, tipY);
    context.lineTo(tipX + (down + side * across) * 0.35 * length, tipY + (side * down - across) * 0.35 * length);
  }
}

// Return the counts of a zone or a line as text.
export function describePlace({ kind, name, counts, inside }) {
  const total = counts.reduce((sum, { count }) => sum + count, 0);
  if (kind === "line") {
    const shown = counts.map(({ label, direction, count }) => `${ARROWS[direction] ?? ""} ${count} ${label}`);
    return `${name}: ${shown.join(" · ") || "0"}`;
  }
  const rejected = counts.filter((each) => each.is_ok === false).reduce((sum, { count }) => sum + count, 0);
  const verdict = counts.some((each) => each.is_ok !== null) ? ` · ${rejected} rejected` : "";
  return `${name}: ${total}${verdict} · ${inside} inside`;
}

export class PartStrip {
  constructor(root, camera, announce) {
    this.camera = camera;
    this.announce = announce;
    this.section = root.querySelector(".parts");
    this.counts = root.querySelector(".part-counts");
    this.strip = root.querySelector(".part-strip");
    this.total = 0;
    this.last = 0; // sequence number of the newest shown part
    this.busy = false;
  }

  show(header) {
    const places = header.places ?? [];
    this.section.hidden = !places.length;
    if (!places.length) return;
    this.counts.replaceChildren(...places.map((place) => Object.assign(document.createElement("li"), { textContent: describePlace(place) })));
    const total = places.reduce((sum, { counts }) => sum + counts.reduce((inner, { count }) => inner + count, 0), 0);
    if (total < this.total) this.clear(); // the camera was opened again, or another run began
    if (total !== this.total && !this.busy) this.fetch(total);
  }

  clear() {
    this.total = this.last = 0;
    this.strip.replaceChildren();
  }

  async fetch(total) {
    this.busy = true;
    try {
      const response = await fetch(`parts/${encodeURIComponent(this.camera)}.json?after=${this.last}`);
      if (!response.ok) return;
      for (const part of await response.json()) this.add(part);
      this.total = total;
    } catch {
      // The connection is lost; the page says so, and the next frame asks again.
    } finally {
      this.busy = false;
    }
  }

  add(part) {
    if (part.sequence <= this.last) return;
    this.last = part.sequence;
    const item = document.createElement("li");
    item.dataset.verdict = part.is_ok === null ? "" : part.is_ok ? "ok" : "rejected";
    const bytes = Uint8Array.from(atob(part.jpeg), (letter) => letter.charCodeAt(0));
    const image = Object.assign(new Image(), { src: URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" })), alt: "" });
    image.onload = () => URL.revokeObjectURL(image.src);
    const text = document.createElement("span");
    text.textContent = part.kind === "crossing" ? `${ARROWS[part.direction]} ${part.label}` : part.label;
    const outside = part.evidence_outside_box;
    item.title = [
      `${part.place} ${part.number}: ${part.label}, mean score ${Math.round(100 * part.score)} %, ${part.frames} frames`,
      outside === null ? "" : `${Math.round(100 * outside)} % of the evidence outside its box`,
    ].filter(Boolean).join("; ");
    item.append(image, text);
    this.strip.prepend(item);
    while (this.strip.children.length > MAX_SHOWN) this.strip.lastElementChild.remove();
    if (part.is_ok === false) this.announce(`part ${part.number} rejected: ${part.label}`);
  }
}
