// Guards of the shown frame: outlines of regions in the image, and firing guards in words, with their events.
import { act, clock } from "./events.js";
import { Episode, percent } from "./words.js";

const ALARM = "#ff3b30";
const CALM = "#5ac8fa";
const DARK = "rgb(16 18 22 / 85%)";
const SNOOZE_MINUTES = 60;
const LABEL_PIXELS = 12; // CSS pixels of a region's name

export function firing(header) {
  return (header?.guards ?? []).filter((guard) => guard.firing);
}

// Draw the outlines of regions, those of a firing rule in red; the image may be smaller than the frame.
export function drawRegions(context, header, pixelsPerCss) {
  const rules = firing(header).map((guard) => `${guard.says} ${guard.figure?.name ?? ""}`);
  const scaleX = header.width / (header.frame_width ?? header.width);
  const scaleY = header.height / (header.frame_height ?? header.height);
  const stroke = Math.max(1.5 * pixelsPerCss, header.width / 500);
  const size = Math.max(LABEL_PIXELS * pixelsPerCss, Math.min(header.width, header.height) / 42);
  for (const { name, polygon } of header.regions ?? []) {
    const colour = rules.some((rule) => rule.includes(`(${name})`)) ? ALARM : CALM;
    const points = polygon.map(([x, y]) => [x * scaleX, y * scaleY]);
    context.beginPath();
    points.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    for (const [style, width] of [[DARK, stroke + 2 * pixelsPerCss], [colour, stroke]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.stroke();
    }
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textAlign = "left";
    context.textBaseline = "top";
    const width = context.measureText(name).width;
    const right = Math.min(Math.max(...points.map(([x]) => x)), header.width) - size / 2;
    const left = Math.max(right - width, size / 4);
    const top = Math.max(Math.min(...points.map(([, y]) => y)), 0) + size / 3;
    context.fillStyle = DARK;
    context.fillRect(left - size / 4, top - size / 6, width + size / 2, size * 1.35);
    context.fillStyle = colour;
    context.fillText(name, left, top);
  }
}

// The alarms of a card. Screen readers read a title when its alarm starts, but not changes of figures.
export class Alarms {
  // eventOf(rule): the event of a firing guard; undefined without one
  constructor(root, camera, announce, eventOf) {
    Object.assign(this, { root, camera, announce, eventOf });
    this.list = root.querySelector(".alarms");
    this.template = root.querySelector(".alarm");
    this.template.remove();
    this.rows = new Map(); // by the guard's name
  }

  // True while an alarm is not acknowledged or snoozed.
  get isLoud() {
    return [...this.rows.values()].some((row) => row.element.dataset.state === "new");
  }

  show(header) {
    const now = firing(header);
    const names = new Set(now.map(({ name }) => name));
    for (const [name, row] of this.rows) {
      if (names.has(name)) continue;
      row.element.remove();
      this.rows.delete(name);
      if (!this.rows.size) this.announce(`${this.camera}: no alarm`);
    }
    for (const guard of now) this.showGuard(guard);
    this.list.hidden = !this.rows.size;
    this.root.classList.toggle("alarmed", this.rows.size > 0);
    this.root.classList.toggle("loud", this.isLoud);
  }

  showGuard(guard) {
    const row = this.rows.get(guard.name) ?? this.add(guard);
    const event = this.eventOf(guard.name);
    const words = row.episode.update(guard, event?.figure);
    const state = event?.state ?? "new";
    row.event = event;
    row.element.dataset.state = state;
    const texts = { ".alarm-title": words.title, ".alarm-text": words.text, ".alarm-short": words.short, ".alarm-rule": `${guard.name}: ${words.rule}` };
    texts[".alarm-state"] = { new: "", acknowledged: `acknowledged${event?.by ? ` by ${event.by}` : ""}` }[state] ?? `snoozed until ${clock(event.snoozed_until)}`;
    for (const [selector, text] of Object.entries(texts)) {
      const part = row.element.querySelector(selector);
      if (part.textContent !== text) part.textContent = text;
    }
    row.element.querySelector(".alarm-actions").hidden = !event;
    row.element.querySelector(".acknowledge").textContent = state === "new" ? "Acknowledge" : "Reopen";
    row.element.querySelector(".snooze").hidden = state !== "new";
    if (event) row.element.querySelector("a").href = `review#${event.id}`;
  }

  add({ name }) {
    const element = this.template.cloneNode(true);
    const row = { element, episode: new Episode(), event: undefined };
    const change = async (verb, body = {}) => {
      const text = await act(row.event, verb, body).then(() => verb, (error) => error.message);
      this.announce(`${this.camera}: ${text}`);
    };
    element.querySelector(".acknowledge").onclick = () => change(row.event.state === "new" ? "acknowledge" : "reopen");
    element.querySelector(".snooze").onclick = () => change("snooze", { minutes: SNOOZE_MINUTES });
    this.rows.set(name, row);
    this.list.append(element);
    return row;
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
