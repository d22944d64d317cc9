// One camera: the image with the heat map over it, and the data of the same frame.
import { drawArea } from "./area-shapes.js";
import { BoxPanel } from "./box-panel.js";
import { drawAllHeat, drawBoxes, drawOneHeat } from "./boxes.js";
import { saveClip, saveSnapshot } from "./downloads.js";
import { Alarms, describeHeatmap, drawRegions, firing } from "./guards.js";
import { decodeBase64, heatmapRectangle, renderHeatmap } from "./heat.js";
import { PartStrip, drawPlaces } from "./parts.js";
import { ScoreList } from "./scores.js";
import { Strip } from "./strip.js";
import { VideoStream } from "./video.js";
import { WhyPanel } from "./why.js";
import { DOUBTFUL, heatStrength, noticeOf, percent, seconds } from "./words.js";

const OLD_SECONDS = 1;
const DEFAULT_OPACITY = 0.6;
const MAX_COUNTS = 3;
const TRIAL_SECONDS = 3;
const KINDS = { live: "good", ended: "ended", connecting: "waiting", waiting: "waiting", building: "waiting" };

export class Card {
  // style: { heat, opacity, palette, painted, buildingSeconds, lostAt }, shared by all cards; eventOf(camera, rule): an event
  constructor(camera, style, link, announce, eventOf) {
    this.camera = camera;
    this.style = style;
    this.link = link;
    this.announce = announce;
    this.root = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.root.dataset.camera = camera;
    this.at = (selector) => this.root.querySelector(selector);
    this.canvas = this.at(".view canvas");
    this.tile = document.createElement("canvas");
    this.strip = new Strip(this.at(".strip canvas"), () => link.now());
    this.scores = new ScoreList(this.at(".bars"), () => this.header && this.show());
    const say = (text) => announce(`${camera}: ${text}`);
    this.boxes = new BoxPanel(this.root, camera, link, { announce: say, changed: () => this.paint() });
    this.why = new WhyPanel(this.root, camera, link, {
      hold: (isHeld) => (this.isHeld = isHeld),
      selected: () => this.boxes.selected,
      changed: () => this.paint(),
      announce: say,
    });
    this.classHeat = null; // loaded with the full card of a classifier
    this.area = { isOpen: false, open: () => this.loadArea(), close: () => false }; // until the editor is loaded
    this.at(".area-open").onclick = () => (this.area.isOpen ? this.area.close() : this.area.open());
    this.isHeld = false; // whether the image stays, because a question is asked about it
    this.parts = new PartStrip(this.root, camera, say);
    this.alarms = new Alarms(this.root, camera, announce, (rule) => eventOf(camera, rule));
    this.at("h2").textContent = this.at("h2").title = camera;
    this.labelView();
    this.at(".mjpeg").href = `stream/${encodeURIComponent(camera)}.mjpg`;
    this.at(".snapshot").onclick = () => this.snapshot();
    this.at(".clip").onclick = () => this.clip();
    this.video = new VideoStream({
      shown: (header, frame) => this.addDecoded(header, frame),
      dropped: () => link.shown(camera),
      lost: () => link.needsKey(camera),
    });
    this.header = null; // of the shown frame
    this.image = null;
    this.waiting = null;
    this.busy = false;
    this.decodingMs = 0; // mean decoding time of recent images
    this.status = null;
  }

  async loadArea() {
    const Editor = this.style.edit ? (await import("./setup.js")).SetupEditor : (await import("./area.js")).AreaEditor;
    if (this.area instanceof Editor) return;
    this.area = new Editor(this.root, {
      opened: () => {
        this.why.close();
        this.why.opened();
      },
      changed: () => this.paint(),
      announce: (text) => this.announce(`${this.camera}: ${text}`),
    }, this.camera);
    this.area.header = this.header;
    this.area.open();
  }

  // Offer the heat of every class, if the running network answers questions about classes.
  async loadClassHeat() {
    this.classHeat = { shown: null, update: () => {} };
    const [{ ClassHeat }, { labels }] = await Promise.all([import("./class-heat.js"), this.link.question({ classes: true })]);
    if (!labels) this.classHeat = null; // the connection was lost
    else if (labels.length) this.classHeat = new ClassHeat(this.root, this.camera, this.link, labels, this.scores);
  }

  // Add a frame: a JPEG, or a unit of H.264, which is decoded even if it is not shown.
  addFrame(header, bytes) {
    if (!header.video) {
      const blob = new Blob([bytes], { type: "image/jpeg" });
      this.showNext(header, { bitmap: () => createImageBitmap(blob), close: () => {} });
    } else this.video.decode(header, bytes);
  }

  addDecoded(header, frame) {
    // Odd sides were padded by a pixel.
    this.showNext(header, { bitmap: () => createImageBitmap(frame, 0, 0, header.width, header.height), close: () => frame.close() });
  }

  // Show a frame. A frame replaced before it is drawn is skipped and acknowledged.
  async showNext(header, picture) {
    if (this.isHeld) {
      picture.close();
      this.link.shown(this.camera);
      return;
    }
    if (this.waiting) {
      this.waiting.picture.close();
      this.link.shown(this.camera);
    }
    this.waiting = { header, picture };
    if (this.busy) return;
    this.busy = true;
    while (this.waiting) {
      const frame = this.waiting;
      this.waiting = null;
      try {
        const startedAt = performance.now();
        const image = await frame.picture.bitmap();
        this.decodingMs += 0.1 * (performance.now() - startedAt - this.decodingMs);
        await new Promise(requestAnimationFrame); // a hidden page draws nothing, so it acknowledges nothing
        if (!this.isHeld) {
          this.image?.close();
          this.image = image;
          this.header = frame.header;
          this.show();
        }
      } catch {
        this.announce(`${this.camera}: an image is damaged`);
      }
      frame.picture.close();
      this.link.shown(this.camera);
    }
    this.busy = false;
  }

  show() {
    const header = this.header;
    this.boxes.show(header);
    this.area.header = header;
    const { isDetector } = this.boxes;
    const top = topFinding(header);
    this.scores.show(isDetector ? [] : header.findings, isDetector ? [] : header.next_classes ?? []);
    if (!this.classHeat && !isDetector && this.link.canAsk && !this.root.classList.contains("small")) this.loadClassHeat();
    this.classHeat?.update(header);
    this.paint();
    this.why.offer(header, isDetector);
    this.root.dataset.index = header.index;
    this.root.dataset.age = this.age().toFixed(4);
    const [summary, measure] = isDetector ? countBoxes(header.findings) : [top?.label, percent(top?.score ?? 0)];
    this.at(".label").textContent = top ? summary : "nothing found";
    this.at(".score").textContent = top ? measure : "";
    this.at(".prediction").classList.toggle("counts", isDetector);
    this.at(".prediction").classList.toggle("doubtful", !isDetector && (top?.score ?? 0) < DOUBTFUL);
    this.at(".index").textContent = header.index;
    const truth = this.at(".truth");
    truth.hidden = !header.truth || isDetector; // the box with the highest score is not the verdict of a frame
    if (header.truth) {
      const right = top?.label === header.truth.label;
      truth.classList.toggle("right", right);
      truth.textContent = right ? "✓ correct" : `✗ true class: ${header.truth.label}`;
    }
    this.showTrial(header, isDetector);
    this.parts.show(header);
    this.alarms.show(header);
    this.at(".stats").textContent = describeHeatmap(header);
    this.at(".model").textContent = header.model || "–";
    this.at(".layer").textContent = isDetector ? header.layer : `${header.layer} (${header.grid.join(" × ")})`;
    const explainSeconds = header.timings.explain;
    this.at(".cost").textContent = explainSeconds === undefined ? "–" : seconds(explainSeconds);
    this.strip.add(header.taken_at_unix, top?.score ?? 0, firing(header).length > 0);
    this.updateAge();
  }

  // Show the findings of a network on trial in this frame, or in the last frame that it explained.
  showTrial({ trial, taken_at_unix: takenAt }, isDetector) {
    const line = this.at(".trial");
    if (trial) this.triedAt = takenAt;
    line.hidden = !(Math.abs(takenAt - this.triedAt) <= TRIAL_SECONDS);
    if (!trial) return;
    const top = topFinding(trial);
    const found = isDetector ? countBoxes(trial.findings)[0] : `${top?.label} ${percent(top?.score ?? 0)}`;
    const difference = isDetector && trial.difference ? `: ${trial.difference}` : "";
    line.classList.toggle("differs", trial.difference !== "");
    line.textContent = `${trial.difference ? "✗" : "✓"} ${trial.name} on trial: ${top ? found : "nothing found"}${difference}`;
  }

  // Draw the shown frame: a new one, or the same one in another style.
  paint() {
    const { header, image, canvas, style } = this;
    if (!header || !image) return;
    if (canvas.width !== image.width || canvas.height !== image.height) {
      canvas.width = image.width;
      canvas.height = image.height;
    }
    this.root.style.setProperty("--own", this.aspect);
    const context = canvas.getContext("2d");
    context.drawImage(this.classHeat?.shown?.image ?? image, 0, 0, canvas.width, canvas.height);
    const pixelsPerCss = Math.max(canvas.width / Math.max(canvas.clientWidth, 1), canvas.height / Math.max(canvas.clientHeight, 1));
    if (this.why.isOpen) {
      this.why.paint(context, style, this.tile, pixelsPerCss);
      return;
    }
    const selected = this.boxes.shownBox;
    if (style.palette) this.paintHeat(context, selected);
    if (this.area.isOpen) this.area.paint(context, pixelsPerCss);
    if (style.painted) {
      // The image already shows all of this.
      if (selected) drawBoxes(context, this.boxes.boxes, selected, pixelsPerCss);
      return;
    }
    if (!this.area.isOpen || !this.area.drawsAll) {
      drawPlaces(context, header);
      drawRegions(context, header, pixelsPerCss);
    }
    if (!this.area.isOpen) drawArea(context, header);
    drawBoxes(context, this.boxes.boxes, selected, pixelsPerCss);
  }

  // Draw the heat of the selected box; without one, that of all boxes, or of a classifier's first or chosen class.
  paintHeat(context, selected) {
    const { header, style, tile } = this;
    const asked = this.classHeat?.shown;
    const first = asked ?? this.scores.drawn(header);
    if (selected) drawOneHeat(context, selected, style.palette, style.heat ? style.opacity : DEFAULT_OPACITY, tile);
    else if (!style.heat) return;
    else if (first?.box) drawAllHeat(context, this.boxes.boxes, style.opacity, tile);
    else if (first && header.grid[0]) {
      const [rows, columns] = asked?.grid ?? header.grid;
      // A class that the viewer asks for is shown whatever its score.
      const strength = this.scores.chosen === first.label ? 1 : heatStrength(first.score);
      renderHeatmap(decodeBase64(first.heat_u8), rows, columns, style.palette, style.opacity * strength, tile);
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = "high";
      context.drawImage(tile, ...heatmapRectangle(header));
    }
  }

  // Width / height of the camera's images; null before the first frame.
  get aspect() {
    return this.header && this.header.width / this.header.height;
  }

  age() {
    return this.header ? this.link.age(this.header.taken_at_unix) : 0;
  }

  // Show the status that the server sends of the camera.
  setStatus(status) {
    const before = this.status?.state;
    this.status = status;
    const chip = this.at(".state");
    this.at(".area-open").textContent = this.style.edit ? "Set up" : "Region";
    const isBuilding = typeof this.style.buildingSeconds === "number";
    const state = isBuilding ? "building" : status.state;
    chip.textContent = state;
    chip.title = status.reason;
    chip.dataset.kind = KINDS[state] ?? "bad";
    if (before && before !== status.state) this.announce(`${this.camera}: ${status.state} ${status.reason}`);
    if (status.stream_token && this.streamToken !== status.stream_token) {
      // With the token, the link also works in players and dashboards, which have no cookie.
      this.streamToken = status.stream_token;
      this.at(".mjpeg").href = `stream/${encodeURIComponent(this.camera)}.mjpg?token=${status.stream_token}`;
    }
    this.at(".rate").textContent = `${status.rate.toFixed(1)}/s`;
    this.at(".dropped").textContent = status.missed + status.corrupt;
    this.at(".reconnects").textContent = status.reconnects;
    this.at(".drifted").hidden = !status.drift;
    this.at(".drift").textContent = status.drift ?? "";
    this.updateAge();
  }

  // Label the image for screen readers with its overlaid text.
  labelView(notice = "") {
    const view = this.at(".view");
    const label = `${this.camera}: ${notice ? `${notice}; ` : ""}${view.ariaExpanded === "true" ? "back to all" : "enlarge"}`;
    if (view.ariaLabel !== label) view.ariaLabel = label;
  }

  // Show the age of the image; an image that is not live must not look live.
  updateAge() {
    const { lostAt, buildingSeconds } = this.style;
    const age = this.age();
    const field = this.at(".age");
    // Without the server, no state is reliable.
    field.textContent = this.header && !lostAt ? seconds(age) : "–";
    field.classList.toggle("old", age > OLD_SECONDS && !lostAt);
    if (lostAt) {
      this.at(".state").textContent = "unknown";
      this.at(".state").dataset.kind = "waiting";
      this.at(".rate").textContent = "–";
    }
    const found = noticeOf({ hasFrame: Boolean(this.header), age, status: this.status, buildingSeconds, lostAt });
    this.root.classList.toggle("stale", found !== null);
    this.root.classList.toggle("empty-card", !this.header);
    const notice = this.at(".notice");
    notice.hidden = found === null;
    const { title, detail, kind } = found ?? { title: "", detail: "", kind: "wait" };
    notice.dataset.kind = kind;
    [notice.children[0].textContent, notice.children[1].textContent] = [title, detail];
    this.labelView(`${title} ${detail}`.trim());
  }

  snapshot() {
    if (!this.header) return;
    const taken_at_unix = this.classHeat?.shown?.taken ?? this.header.taken_at_unix;
    this.announce(`saved ${saveSnapshot(this.canvas, { ...this.header, taken_at_unix })}`);
  }

  async clip() {
    if (!this.header) return;
    const saved = saveClip(this.at(".clip"), this.header, this.style.heat ? this.style.opacity : 0);
    this.announce(await saved.then((name) => `saved ${name}`, (error) => `no clip: ${error.message}`));
  }
}

// Return the finding with the highest score, the first of equals.
function topFinding(header) {
  return header.findings.reduce((best, next) => (best && best.score >= next.score ? best : next), undefined);
}

// Return a detector's boxes by label, and the number of those with a map.
function countBoxes(findings) {
  const counts = new Map();
  for (const { label } of findings) counts.set(label, (counts.get(label) ?? 0) + 1);
  const sorted = [...counts].toSorted((a, b) => b[1] - a[1]);
  const texts = sorted.slice(0, MAX_COUNTS).map(([label, count]) => `${count} ${label}`);
  const others = sorted.slice(MAX_COUNTS).reduce((sum, [, count]) => sum + count, 0);
  if (others) texts.push(`${others} other${others > 1 ? "s" : ""}`);
  return [texts.join(" · "), `${findings.filter((finding) => finding.map).length} of ${findings.length} explained`];
}
