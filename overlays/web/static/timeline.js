// A timeline with a row for each camera and a mark for each event. A click opens the nearest event.
import { KINDS, clock, titleOf } from "./events.js";

const STEPS = [60, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];
const MIN_WIDTH = 0.35; // percent of the row
const TICK_PIXELS = 60; // room for the text of a tick

export class Timeline {
  constructor(root, open) {
    this.root = root;
    this.open = open;
  }

  // Draw events between two times in Unix seconds.
  show(events, cameras, from, to) {
    const names = [...new Set([...cameras, ...events.map((event) => event.camera)])].sort((a, b) => a.localeCompare(b, [], { numeric: true }));
    this.root.hidden = names.length === 0;
    const rows = names.map((name) => this.row(name, events.filter((event) => event.camera === name), from, to));
    this.root.replaceChildren(this.axis(from, to), ...rows, this.legend(new Set(events.map((event) => event.kind))));
  }

  legend(kinds) {
    const legend = document.createElement("p");
    legend.className = "legend";
    for (const [kind, words] of Object.entries(KINDS).filter(([kind]) => kinds.has(kind))) {
      const entry = document.createElement("span");
      const mark = document.createElement("i");
      mark.dataset.kind = kind;
      entry.append(mark, words);
      legend.append(entry);
    }
    if (kinds.size) legend.append("faint: acknowledged or snoozed");
    return legend;
  }

  axis(from, to) {
    const axis = document.createElement("div");
    axis.className = "axis";
    axis.ariaHidden = "true";
    const width = this.root.clientWidth || innerWidth;
    const step = STEPS.find((each) => (to - from) / each <= Math.max(width / 110, 2)) ?? STEPS.at(-1);
    const offset = new Date(to * 1000).getTimezoneOffset() * 60;
    for (let at = Math.ceil((from - offset) / step) * step + offset; at < to; at += step) {
      const tick = document.createElement("span");
      const time = new Date(at * 1000);
      const isDay = step >= 86400;
      // At the right end there is no room for a text.
      if ((width * (to - at)) / (to - from) > TICK_PIXELS) tick.textContent = isDay
        ? time.toLocaleDateString([], { day: "numeric", month: "short" })
        : time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
      tick.style.left = `${(100 * (at - from)) / (to - from)}%`;
      axis.append(tick);
    }
    return axis;
  }

  row(name, events, from, to) {
    const row = document.createElement("div");
    row.className = "row";
    const label = document.createElement("span");
    label.className = "row-name";
    label.textContent = label.title = name;
    const track = document.createElement("div");
    track.className = "row-track";
    track.role = "img";
    track.ariaLabel = `${name}: ${events.length} ${events.length === 1 ? "event" : "events"}`;
    // A lost signal may last for hours: it lies behind the others.
    for (const event of events.toSorted((a, b) => (b.kind === "signal_loss") - (a.kind === "signal_loss"))) {
      const mark = document.createElement("i");
      const start = Math.max(event.start, from), end = Math.min(event.end ?? to, to);
      const width = Math.max((100 * (end - start)) / (to - from), MIN_WIDTH);
      mark.style.left = `${Math.min((100 * (start - from)) / (to - from), 100 - width)}%`;
      mark.style.width = `${width}%`;
      mark.dataset.kind = event.kind;
      mark.dataset.state = event.state;
      mark.title = `${KINDS[event.kind] ?? event.kind}: ${titleOf(event)}, ${clock(event.start)}`;
      track.append(mark);
    }
    track.onclick = (click) => {
      const box = track.getBoundingClientRect();
      const at = from + ((click.clientX - box.left) / box.width) * (to - from);
      const distance = (event) => Math.max(event.start - at, at - (event.end ?? to), 0);
      const nearest = events.reduce((best, next) => (best && distance(best) <= distance(next) ? best : next), undefined);
      if (nearest) this.open(nearest);
    };
    row.append(label, track);
    return row;
  }
}
