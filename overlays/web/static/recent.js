// The last events of each camera, as links beside its image, and the number of new ones in the header.
import { clock, get, lasted, titleOf } from "./events.js";

const LOADED = 200;
const KEPT = 12; // of each camera; small cards show the first ones
const INTERVAL_MS = 1000; // between two counts

export class RecentEvents {
  // link: the link to the review; listOf(camera): the list of a camera's card
  constructor(link, listOf) {
    this.link = link;
    this.listOf = listOf;
    this.byCamera = new Map(); // the last events of each camera, the newest first
    this.waits = false;
  }

  async load() {
    try {
      const { events } = await get(`api/events?limit=${LOADED}`);
      this.byCamera.clear();
      for (const event of events) this.add(event);
      for (const camera of this.byCamera.keys()) this.show(camera);
      this.count();
    } catch {
      // the page shows the problem of the events sink
    }
  }

  update({ changed, reload }) {
    if (reload) this.load();
    for (const event of changed) {
      this.add(event);
      this.show(event.camera);
    }
    if (this.waits) return;
    this.waits = true;
    setTimeout(() => this.count(), INTERVAL_MS);
  }

  add(event) {
    const others = (this.byCamera.get(event.camera) ?? []).filter((other) => other.id !== event.id);
    this.byCamera.set(event.camera, [event, ...others].sort((a, b) => (a.id < b.id ? 1 : -1)).slice(0, KEPT));
  }

  // Return the event of a firing guard; undefined if none.
  ofGuard(camera, rule) {
    const events = this.byCamera.get(camera) ?? [];
    return events.find((event) => event.kind === "guard" && event.rule === rule && event.end === null);
  }

  async count() {
    this.waits = false;
    const { new: count } = await get("api/summary").catch(() => ({ new: 0 }));
    this.link.textContent = count ? `Events (${count >= 1000 ? "1000+" : count} new)` : "Events";
  }

  show(camera) {
    const list = this.listOf(camera);
    const events = this.byCamera.get(camera) ?? [];
    if (!list) return;
    list.hidden = events.length === 0;
    list.replaceChildren(...events.map((event) => {
      const row = document.createElement("li");
      const anchor = document.createElement("a");
      anchor.href = `review#${event.id}`;
      anchor.dataset.state = event.state;
      anchor.textContent = `${clock(event.start)} ${titleOf(event)}`;
      anchor.title = `${event.text}; ${lasted(event)}; ${event.state}`;
      anchor.dataset.kind = event.kind;
      row.append(anchor);
      return row;
    }));
  }
}
