// The set-up of a camera: what is drawn on its image, and its rules. Loaded when it is opened. Changes of a closed
// editor stay until the page is left.
import { COLOURS, drawShape, scaleOf } from "./area-shapes.js";
import { KINDS, cornersOfText, cornersText, freeName, setupOfShapes, shapesOfSetup } from "./setup-data.js";
import { RuleList } from "./setup-rules.js";
import { ShapeEditor } from "./shape-editor.js";

Object.assign(COLOURS, { region: "#5ac8fa", zone: "#34c759", line: "#ff9f0a" });
const PANEL = `
  <p class="box-modes"><span class="modes" role="group" aria-label="Kind of the next shape"></span></p>
  <p class="soft">Drag a rectangle on the image, or click corners and then the first one again. Keys on the image: <kbd>Enter</kbd> new,
    arrows move, <kbd>.</kbd> <kbd>,</kbd> choose a corner, <kbd>+</kbd> adds one, <kbd>Delete</kbd> removes.</p>
  <ul class="setup-shapes" aria-label="Shapes"></ul>
  <label class="setup-corners" hidden>Corners as fractions of the image: x y, x y, …<input autocomplete="off" spellcheck="false"></label>
  <h3>Rules</h3>
  <ol class="setup-rules"></ol>
  <p class="setup-actions"><button class="setup-add" type="button">Add a rule</button></p>
  <div class="setup-last"><p class="setup-state" role="status"></p><p class="setup-actions"><button class="setup-apply" type="button">Apply</button><button class="setup-take" type="button" hidden></button><button class="setup-undo" type="button" hidden>Undo last change</button><button class="setup-reload" type="button">Discard</button><button class="setup-close" type="button">Close</button></p></div>
  <pre class="setup-text" tabindex="0" hidden></pre>`;

export class SetupEditor extends ShapeEditor {
  constructor(root, handlers, camera) {
    super(root, handlers);
    this.camera = camera;
    this.drawsAll = true; // regions and places, too
    this.setup = null; // as the server gave it
    this.isChanged = false;
    this.panel = document.createElement("section");
    this.panel.className = "setup";
    this.panel.ariaLabel = "Set-up";
    this.panel.innerHTML = PANEL;
    this.at = (selector) => this.panel.querySelector(selector);
    root.querySelector(".area").after(this.panel);
    this.path = `api/cameras/${encodeURIComponent(camera)}/setup`;
    this.rules = new RuleList(this.at(".setup-rules"), camera, {
      regions: () => setupOfShapes(this.complete, this.size()).regions,
      announce: (text) => this.announce(text),
      changed: () => this.markChanged(),
    });
    this.at(".setup-add").onclick = () => this.addRule();
    this.at(".setup-apply").onclick = () => this.apply();
    this.at(".setup-undo").onclick = () => this.request("POST", `${this.path}/undo`, { revision: this.setup.revision }, "the change is taken back");
    this.at(".setup-take").onclick = () => this.takeOver();
    this.at(".setup-reload").onclick = () => this.load();
    this.at(".setup-close").onclick = () => this.close();
    this.at(".setup-corners input").onchange = (event) => this.takeCorners(event.target);
    // Keys in fields are not commands of the page.
    this.panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" && event.target.matches("input, textarea")) event.stopPropagation();
    });
    const style = document.createElement("link");
    Object.assign(style, { rel: "stylesheet", href: "static/setup.css" });
    if (!document.querySelector(`link[href="${style.getAttribute("href")}"]`)) document.head.append(style);
  }

  // The shapes that are finished.
  get complete() {
    return this.shapes.filter((shape) => shape !== this.unfinished);
  }

  open() {
    if (this.isOpen || !this.header) return;
    this.isOpen = true;
    this.kind = "region";
    this.opened();
    this.root.querySelector(".view").focus({ preventScroll: true });
    if (!this.setup || !this.isChanged) this.load();
    this.show();
  }

  load() {
    return this.request("GET", this.path);
  }

  // Send a request, and show the set-up of its answer.
  async request(method, path, body, done = "") {
    this.say("…");
    for (const button of this.panel.querySelectorAll(".setup-actions button")) button.disabled = true;
    try {
      const more = body && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
      const response = await fetch(path, { method, ...more });
      if (response.status === 401) location.assign("login");
      const isJson = response.headers.get("content-type")?.includes("json");
      const answer = isJson ? await response.json() : { error: await response.text() };
      if (response.ok) this.take(answer, done);
      else this.fail(answer, response.status);
    } catch {
      this.fail({ error: "the server does not answer; nothing is applied" });
    }
    for (const button of this.panel.querySelectorAll(".setup-actions button")) button.disabled = false;
    this.show();
  }

  take(setup, done) {
    this.setup = setup;
    this.showConflict(null);
    this.shapes = shapesOfSetup(setup, this.size());
    this.select(null);
    this.unfinished = null;
    this.rules.load(setup.rules);
    this.isChanged = false;
    const kept = setup.file && setup.written ? `written to ${setup.file}` : "not written: copy the lines below";
    this.say(done && `${done}, ${kept}`, "good");
    this.showText(setup.written ? "" : setup.yaml);
  }

  fail({ error, difference, file_revision: file }, status = 0) {
    this.say(error, "bad");
    this.showText(difference ?? "");
    this.showConflict(status === 409 ? { file } : null);
  }

  // Offer remedies if the file ({ file }) or the run was changed meanwhile.
  showConflict(conflict) {
    this.conflict = conflict;
    const button = this.at(".setup-take");
    button.hidden = !conflict;
    button.textContent = conflict?.file ? "Apply the file" : "Reload";
    button.title = "What you added here is kept; what you changed is not";
  }

  // Show the set-up of the run or of the changed file; keep shapes and rules added here.
  async takeOver() {
    const before = this.setup;
    const { file } = this.conflict;
    const added = this.complete.filter((shape) => shape.entry === undefined);
    const rules = this.rules.rules.filter((rule) => rule.index === undefined);
    await (file ? this.request("POST", `${this.path}/file`, { file_revision: file }) : this.load());
    if (this.setup === before) return;
    const shapes = added.filter(({ kind }) => kind !== "roi" || !this.setup.roi);
    this.shapes.push(...shapes);
    for (const rule of rules) this.rules.add(rule);
    this.show();
    const isKept = shapes.length + rules.length > 0;
    this.isChanged = isKept;
    const text = file ? `${this.setup.file} is applied` : "loaded";
    this.say(isKept ? `${text}; what you added is not applied yet` : text, isKept ? "" : "good");
  }

  say(text, kind = "") {
    const state = this.at(".setup-state");
    state.textContent = text;
    state.dataset.kind = kind;
    state.hidden = !text;
  }

  showText(text) {
    this.at(".setup-text").textContent = text;
    this.at(".setup-text").hidden = !text;
    if (text) this.at(".setup-text").scrollIntoView({ block: "nearest" });
  }

  markChanged() {
    this.isChanged = true;
    this.say("not applied yet");
  }

  apply() {
    const { setup } = this;
    const shapes = setupOfShapes(this.complete, this.size());
    const places = setup.editable.places ? {} : { roi: shapes.roi, mask: shapes.mask };
    if (setup.boxes && !setup.editable.places) Object.assign(places, { zones: shapes.zones, lines: shapes.lines });
    const wanted = { revision: setup.revision, ...places, regions: shapes.regions, rules: this.rules.rules };
    return this.request("PUT", this.path, wanted, "applied");
  }

  addRule(text = "", name = freeName("rule", this.rules.rules)) {
    const regions = this.complete.filter(({ kind }) => kind === "region");
    const region = regions.at(-1)?.name;
    const rule = text || (region ? `heat_inside(${region}) >= 0.5` : "score >= 0.5");
    const row = this.rules.add({ name, rule, ...this.scope });
    this.markChanged();
    row.at(".rule-text").focus();
  }

  // New regions and rules belong to this camera, if there are others.
  get scope() {
    return this.setup?.cameras > 1 ? { cameras: [this.camera] } : {};
  }

  add(points, isRectangle) {
    const shape = super.add(points, isRectangle);
    const isNamed = Boolean(KINDS[shape.kind].list);
    shape.name = isNamed ? freeName(shape.kind, this.shapes) : "";
    if (shape.kind === "region") shape.extra = this.scope;
    return shape;
  }

  // Regions can overlap, so only the chosen region moves.
  isMovable(shape) {
    return shape === this.selected && shape.kind !== "line";
  }

  get reachable() {
    return [this.selected];
  }

  kinds() {
    const { setup } = this;
    if (!setup) return [];
    const places = setup.editable.places ? [] : ["roi", "mask", ...(setup.boxes ? ["zone", "line"] : [])];
    return ["region", ...places];
  }

  // Show the panel and the list of shapes; the image shows the same.
  show() {
    this.panel.hidden = !this.isOpen;
    this.root.classList.toggle("drawing", this.isOpen);
    this.root.querySelector(".area-open").setAttribute("aria-expanded", String(this.isOpen));
    if (this.isOpen) {
      this.showKinds();
      this.showShapes();
      const corners = this.at(".setup-corners");
      corners.hidden = !this.selected || this.selected === this.unfinished;
      const field = corners.querySelector("input");
      if (!corners.hidden && document.activeElement !== field) field.value = cornersText(this.selected.points, this.size());
      this.at(".setup-undo").hidden = !this.setup?.can_undo;
      this.noticeChange();
    }
    this.changed();
  }

  // Say that shapes differ from those of the run, and check the rules that use them.
  noticeChange() {
    const drawn = JSON.stringify(setupOfShapes(this.complete, this.size()));
    if (drawn === this.drawn) return;
    const isFirst = this.drawn === undefined || !this.setup || this.setup !== this.drawnSetup;
    [this.drawn, this.drawnSetup] = [drawn, this.setup];
    if (isFirst) return;
    this.markChanged();
    this.rules.checkAll();
  }

  showKinds() {
    const group = this.at(".modes");
    const kinds = this.kinds();
    if (group.children.length !== kinds.length) {
      group.replaceChildren(...kinds.map((kind) => {
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: KINDS[kind].title });
        button.dataset.kind = kind;
        button.onclick = () => {
          this.kind = kind;
          this.unfinished = null;
          this.select(null);
          this.show();
        };
        return button;
      }));
    }
    for (const button of group.children) button.ariaPressed = String(button.dataset.kind === this.kind);
  }

  showShapes() {
    const list = this.at(".setup-shapes");
    const shapes = this.complete;
    while (list.children.length > shapes.length) list.lastChild.remove();
    while (list.children.length < shapes.length) {
      const row = document.createElement("li");
      row.innerHTML = '<i></i><input maxlength="64" autocomplete="off" spellcheck="false"><button class="shape-what" type="button"></button><button class="shape-remove" type="button" aria-label="Remove">×</button>';
      list.append(row);
    }
    shapes.forEach((shape, index) => this.showShape(list.children[index], shape));
  }

  showShape(row, shape) {
    const [swatch, name, what, remove] = row.children;
    swatch.style.background = COLOURS[shape.kind];
    row.toggleAttribute("data-selected", shape === this.selected);
    name.hidden = !KINDS[shape.kind].list;
    name.ariaLabel = `Name of the ${KINDS[shape.kind].title}`;
    if (document.activeElement !== name) name.value = shape.name;
    name.onfocus = () => this.selectShape(shape);
    name.oninput = () => {
      shape.name = name.value.trim();
      this.show();
    };
    const isShared = shape.kind === "region" && shape.entry && !shape.entry.cameras && this.setup.cameras > 1;
    what.textContent = `${KINDS[shape.kind].title}${isShared ? ", all cameras" : ""}`;
    what.ariaPressed = String(shape === this.selected);
    what.onclick = () => {
      this.selectShape(shape);
      this.root.querySelector(".view").focus({ preventScroll: true });
    };
    remove.onclick = () => this.remove(shape);
  }

  selectShape(shape) {
    this.select(shape);
    this.kind = shape.kind;
    this.show();
  }

  takeCorners(field) {
    const { selected } = this;
    const points = selected && cornersOfText(field.value, this.size(), selected.kind === "line" ? 2 : 3);
    field.ariaInvalid = String(!points);
    if (!points) {
      this.say("corners: pairs of numbers from 0 to 1, such as 0.1 0.2, 0.5 0.2, 0.5 0.9", "bad");
      return;
    }
    Object.assign(selected, { points, isRectangle: false });
    this.show();
  }

  paint(context, pixelsPerCss) {
    super.paint(context, pixelsPerCss);
    const [x, y] = scaleOf(this.header);
    const size = 12 * pixelsPerCss;
    for (const shape of this.shapes) {
      if (shape.kind === "line" && shape.points.length === 2) this.paintForward(context, shape, [x, y], pixelsPerCss);
      if (!shape.name) continue;
      context.font = `600 ${size}px system-ui, sans-serif`;
      context.textBaseline = "bottom";
      const [left, top] = shape.points.reduce((best, point) => (point[1] < best[1] ? point : best));
      const at = [left * x + size / 3, Math.max(top * y + 1.6 * size, 1.6 * size)];
      context.fillStyle = "rgb(16 18 22 / 85%)";
      context.fillRect(at[0] - size / 4, at[1] - size * 1.15, context.measureText(shape.name).width + size / 2, size * 1.3);
      context.fillStyle = COLOURS[shape.kind];
      context.fillText(shape.name, ...at);
    }
  }

  // Draw which way is forward: from the line's left to its right, seen from its first end.
  paintForward(context, { points: [a, b] }, [x, y], pixelsPerCss) {
    const [from, to] = [[a[0] * x, a[1] * y], [b[0] * x, b[1] * y]];
    const length = Math.hypot(to[0] - from[0], to[1] - from[1]) || 1;
    const normal = [-(to[1] - from[1]) / length, (to[0] - from[0]) / length];
    const middle = [(from[0] + to[0]) / 2, (from[1] + to[1]) / 2];
    const tip = middle.map((value, axis) => value + 22 * pixelsPerCss * normal[axis]);
    drawShape(context, { kind: "line", points: [middle, tip] }, [1, 1], 2 * pixelsPerCss, true);
  }
}
