// The opened event: image, figures, state, note, and its files.
import { KINDS, STATE_CHIPS, clock, duration, figureWords, fileName, lasted, stateWords, titleOf } from "./events.js";
import { alarmTitle } from "./words.js";

export class Detail {
  // handlers: { change(event, verb, body), step(event, by), closed(event), isPlain() }
  constructor(root, handlers) {
    this.root = root;
    this.handlers = handlers;
    this.event = null;
    this.at = (selector) => root.querySelector(selector);
    this.at(".acknowledge").onclick = () => this.change(this.event.state === "acknowledged" ? "reopen" : "acknowledge");
    this.at(".snooze").onchange = (change) => {
      const minutes = Number(change.target.value);
      change.target.value = "";
      if (minutes) this.change("snooze", { minutes });
    };
    this.at(".note").onsubmit = (submit) => {
      submit.preventDefault();
      this.change("note", { note: this.at("#note").value });
    };
    this.at(".json").onclick = () => this.save();
    this.at(".previous").onclick = () => this.step(-1);
    this.at(".next").onclick = () => this.step(1);
    this.at(".close").onclick = () => root.close();
    root.onclick = (click) => {
      if (click.target === root) root.close(); // beside the dialog
    };
    root.onclose = () => {
      const { event } = this;
      this.event = null;
      this.handlers.closed(event);
    };
  }

  change(verb, body) {
    this.handlers.change(this.event, verb, body);
  }

  step(by) {
    this.handlers.step(this.event, by);
  }

  // Show why the event was not changed.
  warn(text) {
    this.at(".detail-warning").textContent = text;
  }

  show(event, { hasNewer, hasOlder }) {
    this.event = event;
    this.warn("");
    this.at("#note").value = event.note;
    this.at(".previous").disabled = !hasNewer;
    this.at(".next").disabled = !hasOlder;
    const clip = this.at(".clip");
    clip.hidden = !event.clip;
    this.at(".no-clip").hidden = Boolean(event.clip);
    clip.href = `api/events/${event.id}/clip.mp4`;
    clip.download = fileName(event, ".mp4");
    this.at(".permalink").href = `review#${event.id}`;
    this.write();
    if (!this.root.open) this.root.showModal();
  }

  // Show the current state of the opened event; ignore other events.
  update(event) {
    if (this.event?.id !== event.id) return;
    const isNoteChanged = event.note !== this.event.note;
    this.event = { ...this.event, ...event };
    if (isNoteChanged && document.activeElement !== this.at("#note")) this.at("#note").value = event.note;
    this.write();
  }

  write() {
    const { event } = this;
    this.at("#detail-title").textContent = titleOf(event);
    const words = event.kind === "guard" ? alarmTitle({ name: event.rule }, event.figure) : event.rule;
    this.at(".detail-text").textContent = words === event.rule ? event.text : `${words}. Rule: ${event.text}`;
    const chip = this.at(".state");
    chip.textContent = stateWords(event);
    chip.dataset.kind = STATE_CHIPS[event.state];
    this.at(".acknowledge").textContent = event.state === "acknowledged" ? "Reopen" : "Acknowledge";
    const facts = [
      ["kind", KINDS[event.kind] ?? event.kind],
      ["camera", event.camera],
      ["began", clock(event.start)],
      ["lasted", lasted(event)],
      ["class", event.label ? `${event.label} ${Math.round(event.score * 100)} %` : ""],
      ["track", event.track === null ? "" : `#${event.track}`],
      ["worst", figureWords(event.figure)],
      ["network", event.figures?.model ?? ""],
      ["changed", event.acted ? `${event.by || "somebody"}, ${duration(Date.now() / 1000 - event.acted)} ago` : ""],
    ];
    const rows = facts.filter(([, value]) => value).map(([name, value]) => {
      const row = document.createElement("div");
      row.append(document.createElement("dt"), document.createElement("dd"));
      [row.firstChild.textContent, row.lastChild.textContent] = [name, value];
      return row;
    });
    this.at(".meta").replaceChildren(...rows);
    this.showImage();
  }

  showImage() {
    const { event } = this;
    if (!event) return;
    const wanted = this.handlers.isPlain() ? "plain" : "heat";
    const kind = event.images.includes(wanted) ? wanted : event.images[0];
    const image = this.at("img"), still = this.at(".still");
    image.hidden = still.hidden = !kind;
    this.at(".no-image").hidden = Boolean(kind);
    if (!kind) return;
    const source = `api/events/${event.id}/${kind}.jpg`;
    if (image.getAttribute("src") !== source) image.src = source;
    image.alt = `${event.camera}, ${kind === "heat" ? "with heat" : "plain"}: ${event.text}`;
    still.href = source;
    still.download = fileName(event, `_${kind}.jpg`);
  }

  save() {
    const blob = new Blob([JSON.stringify(this.event, null, 1)], { type: "application/json" });
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(blob);
    anchor.download = fileName(this.event, ".json");
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
  }
}
