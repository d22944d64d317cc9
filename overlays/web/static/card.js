// One camera: the picture with the heat over it, and what is said of that same frame.
import { Chart } from "./chart.js";
import { Alarm, grounds, outline } from "./guards.js";
import { heatPicture, placed, unpacked } from "./heat.js";

const OLD_SECONDS = 1;
const KINDS = { live: "good", ended: "ended", connecting: "waiting", waiting: "waiting" };

export class Card {
  constructor(camera, look, link, say) {
    this.camera = camera;
    this.look = look; // { heat, opacity, palette }, shared by all cards
    this.link = link;
    this.say = say;
    this.root = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.root.dataset.camera = camera;
    this.at = (selector) => this.root.querySelector(selector);
    this.canvas = this.at(".view canvas");
    this.tile = document.createElement("canvas");
    this.chart = new Chart(this.at(".chart"));
    this.alarm = new Alarm(this.root, camera, say);
    this.at("h2").textContent = this.at("h2").title = camera;
    this.at(".view").setAttribute("aria-label", `${camera}: enlarge`);
    this.at(".mjpeg").href = `stream/${encodeURIComponent(camera)}.mjpg`;
    this.at(".snapshot").onclick = () => this.snapshot();
    this.at(".clip").onclick = () => this.clip();
    this.header = null; // of the frame that is shown
    this.picture = null;
    this.waiting = null;
    this.busy = false;
    this.decoding = 0; // ms a picture, of late
    this.status = null;
  }

  // Take a frame. What is overtaken while another is drawn is passed over, and said to be dealt with.
  async offer(header, blob) {
    if (this.waiting) this.link.shown(this.camera);
    this.waiting = { header, blob };
    if (this.busy) return;
    this.busy = true;
    while (this.waiting) {
      const shot = this.waiting;
      this.waiting = null;
      try {
        const begun = performance.now();
        const picture = await createImageBitmap(shot.blob);
        this.decoding += 0.1 * (performance.now() - begun - this.decoding);
        await new Promise(requestAnimationFrame); // a hidden page draws nothing, so nothing more is sent to it
        this.picture?.close();
        this.picture = picture;
        this.header = shot.header;
        this.show();
      } catch {
        this.say(`${this.camera}: a picture is damaged`);
      }
      this.link.shown(this.camera);
    }
    this.busy = false;
  }

  show() {
    const header = this.header;
    this.paint();
    const top = verdict(header);
    this.root.dataset.index = header.index;
    this.root.dataset.age = this.age().toFixed(4);
    this.at(".label").textContent = top?.label ?? "nothing found";
    this.at(".score").textContent = top ? percent(top.score) : "";
    this.at(".index").textContent = header.index;
    this.bars(header.findings.toSorted((one, other) => other.score - one.score).slice(0, 5));
    const truth = this.at(".truth");
    truth.hidden = !header.truth;
    if (header.truth) {
      const right = top?.label === header.truth.label;
      truth.classList.toggle("right", right);
      truth.textContent = right ? "✓ right" : `✗ it is ${header.truth.label}`;
    }
    this.alarm.show(header);
    this.at(".grounds").textContent = grounds(header);
    this.at(".model").textContent = header.model || "–";
    this.at(".layer").textContent = `${header.layer} (${header.grid.join(" × ")})`;
    const cost = header.timings.explain;
    this.at(".cost").textContent = cost === undefined ? "–" : seconds(cost);
    this.chart.add(top?.score ?? 0, this.age(), top?.label);
    this.fresh();
  }

  // Draw the frame that is shown again: a new one, or the same in another look.
  paint() {
    const { header, picture, canvas, look } = this;
    if (!header || !picture) return;
    if (canvas.width !== picture.width || canvas.height !== picture.height) {
      canvas.width = picture.width;
      canvas.height = picture.height;
    }
    const pen = canvas.getContext("2d");
    pen.drawImage(picture, 0, 0);
    const top = header.findings[0];
    if (look.heat && look.palette && top && header.grid[0]) {
      const [rows, columns] = header.grid;
      const tile = heatPicture(unpacked(top.heat_u8), rows, columns, look.palette, look.opacity, this.tile);
      pen.imageSmoothingEnabled = true;
      pen.imageSmoothingQuality = "high";
      pen.drawImage(tile, ...placed(header));
    }
    outline(pen, header);
    const across = header.width / (header.frame_width ?? header.width);
    const down = header.height / (header.frame_height ?? header.height);
    for (const { box } of header.findings) {
      if (!box) continue;
      const [left, top, right, bottom] = box;
      pen.strokeStyle = "#fff";
      pen.lineWidth = Math.max(2, picture.width / 400);
      pen.strokeRect(left * across, top * down, (right - left) * across, (bottom - top) * down);
    }
  }

  bars(findings) {
    const list = this.at(".bars");
    list.classList.toggle("single", findings.length < 2); // the line above says the rest
    while (list.children.length > findings.length) list.lastChild.remove();
    while (list.children.length < findings.length) {
      const row = document.createElement("li");
      const track = document.createElement("div");
      track.className = "track";
      track.append(document.createElement("i"));
      row.append(document.createElement("span"), track, document.createElement("span"));
      list.append(row);
    }
    findings.forEach((finding, place) => {
      const [name, track, score] = list.children[place].children;
      name.textContent = name.title = finding.label;
      track.firstChild.style.width = `${Math.min(Math.max(finding.score, 0), 1) * 100}%`;
      score.textContent = percent(finding.score);
    });
  }

  age() {
    return this.header ? this.link.since(this.header.taken_at_unix) : 0;
  }

  // Take what the server says of the camera.
  tell(status) {
    const before = this.status?.state;
    this.status = status;
    const chip = this.at(".state");
    chip.textContent = status.state;
    chip.title = status.reason;
    chip.dataset.kind = KINDS[status.state] ?? "bad";
    if (before && before !== status.state) this.say(`${this.camera}: ${status.state} ${status.reason}`);
    if (status.stream_token && this.streamToken !== status.stream_token) {
      // The link works in players and dashboards too, which have no cookie.
      this.streamToken = status.stream_token;
      this.at(".mjpeg").href = `stream/${encodeURIComponent(this.camera)}.mjpg?token=${status.stream_token}`;
    }
    this.at(".rate").textContent = `${status.rate.toFixed(1)}/s`;
    this.at(".dropped").textContent = status.missed + status.corrupt;
    this.at(".reconnects").textContent = status.reconnects;
    this.at(".drifted").hidden = !status.drift;
    this.at(".drift").textContent = status.drift ?? "";
    this.fresh();
  }

  // Say how old the picture is; one that is not live must not look so.
  fresh(cut = false) {
    const age = this.age();
    const word = this.at(".age");
    word.textContent = this.header ? seconds(age) : "–";
    word.classList.toggle("old", age > OLD_SECONDS);
    if (cut) {
      // What was last heard of the camera says nothing any more.
      this.at(".state").textContent = "unknown";
      this.at(".state").dataset.kind = "waiting";
      this.at(".rate").textContent = "–";
    }
    const silent = cut || Boolean(this.status?.silent);
    const stale = silent || !this.header;
    this.root.classList.toggle("stale", stale);
    const stamp = this.at(".stamp");
    stamp.hidden = !stale;
    if (!stale) return;
    const ended = this.status?.state === "ended" && !cut;
    const [large, small] = stamp.children;
    large.textContent = !this.header ? "no frame yet" : ended ? "ended" : `no signal for ${told(age)}`;
    small.textContent = cut ? "the page's server does not answer" : this.status?.reason ?? "";
  }

  snapshot() {
    if (!this.header) return;
    const name = `${this.camera}-${this.header.index}.png`;
    this.canvas.toBlob((blob) => save(blob, name), "image/png");
    this.say(`saved ${name}`);
  }

  async clip() {
    const button = this.at(".clip");
    const word = button.textContent;
    button.disabled = true;
    button.textContent = "making it…";
    try {
      const opacity = this.look.heat ? this.look.opacity : 0;
      const answer = await fetch(`clip/${encodeURIComponent(this.camera)}.mp4?opacity=${opacity}`);
      if (!answer.ok) throw new Error(await answer.text());
      save(await answer.blob(), `${this.camera}-${this.header?.index ?? 0}.mp4`);
      button.textContent = word;
    } catch (error) {
      button.textContent = "not now";
      button.title = error.message;
      this.say(`no clip: ${error.message}`);
      setTimeout(() => (button.textContent = word), 2000);
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

// The network's top class: the finding with the highest score, the first of equals.
function verdict(header) {
  return header.findings.reduce((best, one) => (best && best.score >= one.score ? best : one), undefined);
}

function percent(score) {
  return score > 0 && score < 0.01 ? "<1 %" : `${Math.round(score * 100)} %`;
}

function seconds(time) {
  return time < 1 ? `${Math.round(time * 1000)} ms` : told(time);
}

function told(time) {
  const whole = Math.floor(time);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
