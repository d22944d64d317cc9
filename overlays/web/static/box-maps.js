// The mode of box maps: the stream's mode, or the other mode, requested from the running detector.
const REFRESH_MS = 400; // between two questions

export class BoxMaps {
  // changed(): a map has come.
  constructor(panel, camera, link, changed) {
    this.camera = camera;
    this.link = link;
    this.changed = changed;
    this.chosen = null; // the chosen mode; null: that of the stream
    this.asked = null; // { key, map, box, seconds } of the newest answer
    this.state = ""; // as text
    this.isAsking = false;
    this.askedAt = -REFRESH_MS;
    this.group = panel.querySelector(".modes");
    this.text = panel.querySelector(".box-why");
    for (const button of this.group.querySelectorAll("button")) button.onclick = () => this.choose(button.dataset.mode);
  }

  // Show the selected box's map in a mode.
  choose(mode) {
    this.chosen = mode;
    this.state = "";
    this.changed();
  }

  // Change to the other mode.
  toggle(box) {
    const mode = this.chosen ?? box?.finding.map?.mode ?? "keep";
    this.choose(mode === "keep" ? "drop" : "keep");
  }

  // Return the selected box with the map in the chosen mode, as far as it is known, moved with the box.
  shown(box, header) {
    const { asked, chosen } = this;
    const live = box?.finding.map;
    if (!box || !chosen || live?.mode === chosen || asked?.key !== box.key || asked.map.mode !== chosen) return box;
    const [x, y] = [0, 1].map((axis) => (middle(box.finding.box, axis) - middle(asked.box, axis)));
    const [left, top, right, bottom] = asked.map.region;
    const region = [left + x, top + y, right + x, bottom + y];
    const age_seconds = Math.max(header.taken_at_unix - asked.seconds, 0);
    return { ...box, finding: { ...box.finding, map: { ...asked.map, region, age_seconds } } };
  }

  // Show the mode; ask for a map if the stream has none in this mode.
  update(box, header) {
    this.group.hidden = !this.link.canAsk;
    const mode = this.chosen ?? box?.finding.map?.mode;
    for (const button of this.group.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    }
    const isLive = !this.chosen || box?.finding.map?.mode === this.chosen;
    if (isLive) this.state = "";
    else if (box) this.ask(box, header);
    if (this.text.textContent !== this.state) this.text.textContent = this.state;
  }

  async ask(box, header) {
    const now = performance.now();
    if (this.isAsking || now - this.askedAt < REFRESH_MS || !this.link.canAsk) return;
    this.isAsking = true;
    this.askedAt = now;
    if (this.asked?.key !== box.key) this.state = "the detector is asked for this map…";
    const { key, finding } = box;
    const place = { camera: this.camera, index: header.index, box: finding.box, label: finding.label, modes: [this.chosen] };
    const answer = await this.link.why(place);
    this.isAsking = false;
    if (answer.gone) return; // the next frame is asked
    this.state = answer.error ?? "";
    if (!answer.error) this.asked = { key, map: answer.maps[0].map, box: finding.box, seconds: header.taken_at_unix };
    this.changed();
  }
}

function middle(box, axis) {
  return (box[axis] + box[axis + 2]) / 2;
}
