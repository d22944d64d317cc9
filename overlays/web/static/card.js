// One camera: the image with the heat map over it, and the data of the same frame.
import { AreaEditor, drawArea } from "./area.js";
import { BoxPanel } from "./box-panel.js";
import { drawAllHeat, drawBoxes, drawOneHeat } from "./boxes.js";
import { Chart } from "./chart.js";
import { Alarm, drawRegions, describeHeatmap } from "./guards.js";
import { decodeBase64, heatmapRectangle, renderHeatmap } from "./heat.js";
import { PartStrip, drawPlaces } from "./parts.js";
import { VideoStream } from "./video.js";
import { WhyPanel } from "./why.js";

const OLD_SECONDS = 1;
const DEFAULT_OPACITY = 0.6;
const MAX_COUNTS = 3;
const KINDS = { live: "good", ended: "ended", connecting: "waiting", waiting: "waiting" };

export class Card {
  constructor(camera, style, link, announce) {
    this.camera = camera;
    this.style = style; // { heat, opacity, palette }, shared by all cards
    this.link = link;
    this.announce = announce;
    this.root = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.root.dataset.camera = camera;
    this.at = (selector) => this.root.querySelector(selector);
    this.canvas = this.at(".view canvas");
    this.tile = document.createElement("canvas");
    this.chart = new Chart(this.at(".chart"));
    const say = (text) => announce(`${camera}: ${text}`);
    this.boxes = new BoxPanel(this.root, camera, link, { announce: say, changed: () => this.paint() });
    this.why = new WhyPanel(this.root, camera, link, {
      hold: (isHeld) => (this.isHeld = isHeld),
      selected: () => this.boxes.selected,
      changed: () => this.paint(),
      announce: say,
    });
    this.area = new AreaEditor(this.root, {
      opened: () => {
        this.why.close();
        this.why.opened();
      },
      changed: () => this.paint(),
      announce: say,
    });
    this.isHeld = false; // whether the image stays, because a question is asked about it
    this.parts = new PartStrip(this.root, camera, say);
    this.alarm = new Alarm(this.root, camera, announce);
    this.at("h2").textContent = this.at("h2").title = camera;
    this.at(".view").setAttribute("aria-label", `${camera}: enlarge`);
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

  // Show a frame. One that is replaced by a newer one before it is drawn is skipped and acknowledged.
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
    this.paint();
    const { isDetector } = this.boxes;
    this.why.offer(header, isDetector);
    const top = topFinding(header);
    this.root.dataset.index = header.index;
    this.root.dataset.age = this.age().toFixed(4);
    const [summary, measure] = isDetector ? countBoxes(header.findings) : [top?.label, percent(top?.score ?? 0)];
    this.at(".label").textContent = top ? summary : "nothing found";
    this.at(".score").textContent = top ? measure : "";
    this.at(".index").textContent = header.index;
    this.showScores(isDetector ? [] : header.findings.toSorted((a, b) => b.score - a.score).slice(0, 5));
    const truth = this.at(".truth");
    truth.hidden = !header.truth;
    if (header.truth) {
      const right = top?.label === header.truth.label;
      truth.classList.toggle("right", right);
      truth.textContent = right ? "✓ correct" : `✗ true class: ${header.truth.label}`;
    }
    this.showTrial(header.trial, isDetector);
    this.parts.show(header);
    this.alarm.show(header);
    this.at(".stats").textContent = describeHeatmap(header);
    this.at(".model").textContent = header.model || "–";
    this.at(".layer").textContent = isDetector ? header.layer : `${header.layer} (${header.grid.join(" × ")})`;
    const explainSeconds = header.timings.explain;
    this.at(".cost").textContent = explainSeconds === undefined ? "–" : formatSeconds(explainSeconds);
    this.chart.add(top?.score ?? 0, this.age(), top?.label);
    this.updateAge();
  }

  // Show what a second network, on trial, finds in the same frame.
  showTrial(trial, isDetector) {
    const line = this.at(".trial");
    line.hidden = !trial;
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
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixelsPerCss = canvas.width / Math.max(canvas.clientWidth, 1);
    if (this.why.isOpen) {
      this.why.paint(context, style, this.tile, pixelsPerCss);
      return;
    }
    const selected = this.boxes.shownBox;
    if (style.palette) this.paintHeat(context, selected);
    drawPlaces(context, header);
    drawRegions(context, header);
    if (this.area.isOpen) this.area.paint(context, pixelsPerCss);
    else drawArea(context, header);
    drawBoxes(context, this.boxes.boxes, selected, pixelsPerCss);
  }

  // Draw the heat of the selected box; without one, that of all boxes, or of a classifier's first class.
  paintHeat(context, selected) {
    const { header, style, tile } = this;
    const top = header.findings[0];
    if (selected) drawOneHeat(context, selected, style.palette, style.heat ? style.opacity : DEFAULT_OPACITY, tile);
    else if (!style.heat) return;
    else if (top?.box) drawAllHeat(context, this.boxes.boxes, style.opacity, tile);
    else if (top && header.grid[0]) {
      const [rows, columns] = header.grid;
      renderHeatmap(decodeBase64(top.heat_u8), rows, columns, style.palette, style.opacity, tile);
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = "high";
      context.drawImage(tile, ...heatmapRectangle(header));
    }
  }

  showScores(findings) {
    const list = this.at(".bars");
    list.classList.toggle("single", findings.length < 2); // the line above shows the same
    while (list.children.length > findings.length) list.lastChild.remove();
    while (list.children.length < findings.length) {
      const row = document.createElement("li");
      const track = document.createElement("div");
      track.className = "track";
      track.append(document.createElement("i"));
      row.append(document.createElement("span"), track, document.createElement("span"));
      list.append(row);
    }
    findings.forEach((finding, index) => {
      const [name, track, score] = list.children[index].children;
      name.textContent = name.title = finding.label;
      track.firstChild.style.width = `${Math.min(Math.max(finding.score, 0), 1) * 100}%`;
      score.textContent = percent(finding.score);
    });
  }

  age() {
    return this.header ? this.link.age(this.header.taken_at_unix) : 0;
  }

  // Show the status that the server sends of the camera.
  setStatus(status) {
    const before = this.status?.state;
    this.status = status;
    const chip = this.at(".state");
    chip.textContent = status.state;
    chip.title = status.reason;
    chip.dataset.kind = KINDS[status.state] ?? "bad";
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

  // Show the age of the image; an image that is not live must not look live.
  updateAge(disconnected = false) {
    const age = this.age();
    const field = this.at(".age");
    field.textContent = this.header ? formatSeconds(age) : "–";
    field.classList.toggle("old", age > OLD_SECONDS);
    if (disconnected) {
      // The last status is no longer valid.
      this.at(".state").textContent = "unknown";
      this.at(".state").dataset.kind = "waiting";
      this.at(".rate").textContent = "–";
    }
    const silent = disconnected || Boolean(this.status?.silent);
    const stale = silent || !this.header;
    this.root.classList.toggle("stale", stale);
    const notice = this.at(".notice");
    notice.hidden = !stale;
    if (!stale) return;
    const ended = this.status?.state === "ended" && !disconnected;
    const [large, small] = notice.children;
    large.textContent = !this.header ? "no frame yet" : ended ? "ended" : `no signal for ${formatDuration(age)}`;
    small.textContent = disconnected ? "the page's server does not answer" : this.status?.reason ?? "";
  }

  snapshot() {
    if (!this.header) return;
    const name = `${this.camera}-${this.header.index}.png`;
    this.canvas.toBlob((blob) => save(blob, name), "image/png");
    this.announce(`saved ${name}`);
  }

  async clip() {
    const button = this.at(".clip");
    const text = button.textContent;
    button.disabled = true;
    button.textContent = "making the clip…";
    try {
      const opacity = this.style.heat ? this.style.opacity : 0;
      const response = await fetch(`clip/${encodeURIComponent(this.camera)}.mp4?opacity=${opacity}`);
      if (!response.ok) throw new Error(await response.text());
      save(await response.blob(), `${this.camera}-${this.header?.index ?? 0}.mp4`);
      button.textContent = text;
    } catch (error) {
      button.textContent = "no clip";
      button.title = error.message;
      this.announce(`no clip: ${error.message}`);
      setTimeout(() => (button.textContent = text), 2000);
    }
    button.disabled = false;
  }
}

function save(blob, name) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name.replaceAll(/[^\w.-]+/g, "_");
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
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

function percent(score) {
  return score > 0 && score < 0.01 ? "<1 %" : `${Math.round(score * 100)} %`;
}

function formatSeconds(time) {
  return time < 1 ? `${Math.round(time * 1000)} ms` : formatDuration(time);
}

function formatDuration(time) {
  const whole = Math.floor(time);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
