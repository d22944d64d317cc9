// The rules of a camera while they are written: the parser's message, and when each would have fired.
import { marked, pastWords } from "./setup-data.js";

const WAIT_MS = 350; // after the last key
const SECONDS = 600;

export class RuleList {
  // regions(): those of the camera as they are drawn; announce(text); changed()
  constructor(list, camera, { regions, announce, changed }) {
    Object.assign(this, { list, camera, regions, announce, changed });
    this.rows = [];
    this.turn = Promise.resolve(); // ends when the next rule may be checked
  }

  load(rules) {
    this.rows = [];
    this.list.replaceChildren();
    for (const rule of rules) this.add(rule);
  }

  get rules() {
    return this.rows.map(({ entry, at }) => {
      const rule = { ...entry, name: at(".rule-name").value.trim(), rule: at(".rule-text").value.trim() };
      for (const key of ["hold_seconds", "clear_seconds"]) {
        const text = at(`.${key}`).value;
        if (text !== "") rule[key] = Number(text);
        else delete rule[key];
      }
      return rule;
    });
  }

  add(entry) {
    const root = document.createElement("li");
    root.innerHTML = `
      <p class="rule-head"><label>Rule <input class="rule-name" maxlength="64" autocomplete="off" spellcheck="false"></label>
        <button class="rule-remove" type="button">Remove</button></p>
      <textarea class="rule-text" rows="2" maxlength="1000" autocomplete="off" autocapitalize="off" spellcheck="false"></textarea>
      <p class="rule-times"><label>fires after <input class="hold_seconds" type="number" min="0" max="3600" step="0.1" placeholder="0.5"> s</label>
        <label>ends after <input class="clear_seconds" type="number" min="0" max="3600" step="0.1" placeholder="1"> s</label><span class="rule-scope"></span></p>
      <p class="rule-mistake" hidden><code><span></span><mark></mark><span></span></code><span class="rule-why"></span></p>
      <div class="rule-past" hidden><canvas role="img"></canvas><p class="rule-axis"><span>10 min ago</span><span>now</span></p><p class="rule-words"></p><p class="rule-when soft"></p></div>`;
    const at = (selector) => root.querySelector(selector);
    const row = { entry, root, at, timer: 0, asked: 0 };
    at(".rule-name").value = entry.name;
    at(".rule-text").value = entry.rule;
    at(".rule-text").ariaLabel = `Text of rule ${entry.name}`;
    at(".hold_seconds").value = entry.hold_seconds ?? "";
    at(".clear_seconds").value = entry.clear_seconds ?? "";
    at(".rule-scope").textContent = entry.cameras === undefined && entry.index !== undefined ? "all cameras" : "";
    at(".rule-remove").onclick = () => {
      clearTimeout(row.timer);
      this.rows = this.rows.filter((other) => other !== row);
      root.remove();
      this.changed();
    };
    root.addEventListener("input", () => {
      this.changed();
      this.checkSoon(row);
    });
    this.rows.push(row);
    this.list.append(root);
    this.checkSoon(row, 0);
    return row;
  }

  // Check all rules again: a region was moved or renamed.
  checkAll() {
    for (const row of this.rows) this.checkSoon(row);
  }

  checkSoon(row, wait = WAIT_MS) {
    clearTimeout(row.timer);
    row.timer = setTimeout(() => {
      this.turn = this.turn.then(() => this.check(row)).catch(() => {});
    }, wait);
  }

  async check(row) {
    const rule = this.rules[this.rows.indexOf(row)];
    if (!rule) return;
    const asked = ++row.asked;
    const response = await fetch("api/rules/check", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ camera: this.camera, rule, regions: this.regions() }),
    }).catch(() => null);
    if (asked !== row.asked || !response) return;
    const answer = response.headers.get("content-type")?.includes("json") ? await response.json() : { error: await response.text() };
    if (answer.error) this.showMistake(row, rule.rule, answer);
    else this.showPast(row, answer);
  }

  showMistake({ at, root }, text, { error, position }) {
    root.dataset.state = "wrong";
    at(".rule-text").ariaInvalid = "true";
    at(".rule-past").hidden = true;
    at(".rule-mistake").hidden = false;
    const parts = at(".rule-mistake code").children;
    marked(text, position).forEach((part, index) => (parts[index].textContent = part));
    at(".rule-mistake code").hidden = position === null || position === undefined;
    if (at(".rule-why").textContent === error) return;
    at(".rule-why").textContent = error;
    this.announce(error);
  }

  showPast(row, past) {
    const { at, root } = row;
    root.dataset.state = "right";
    at(".rule-text").ariaInvalid = "false";
    at(".rule-mistake").hidden = true;
    at(".rule-why").textContent = "";
    at(".rule-past").hidden = false;
    const { title, detail } = pastWords(past);
    root.dataset.count = past.count;
    at(".rule-words").textContent = title;
    at(".rule-when").textContent = detail;
    at("canvas").ariaLabel = title;
    drawPast(at("canvas"), past);
  }
}

// Draw ten minutes: alarms as red marks, and what is not known as grey.
function drawPast(canvas, past) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  const scale = devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
  const context = canvas.getContext("2d");
  const css = getComputedStyle(canvas);
  const colour = (name) => css.getPropertyValue(name).trim();
  context.scale(scale, scale);
  const now = past.now;
  const x = (unix) => width * (1 - (now - unix) / SECONDS);
  context.fillStyle = colour("--track");
  context.fillRect(0, 0, width, height);
  context.fillStyle = colour("--gap");
  context.fillRect(0, 0, Math.max(x(past.since), 0), height);
  context.fillStyle = colour("--alarm");
  for (const [start, end] of past.spans) context.fillRect(x(start), 0, Math.max(x(end) - x(start), 2), height);
}
