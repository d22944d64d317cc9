// An editor of the part of the frame that the network gets; it shows its YAML to copy. Loaded when it is opened.
import { boundsOf, shapesOf } from "./area-shapes.js";
import { ShapeEditor } from "./shape-editor.js";

const DECIMALS = 4; // of fractions

export class AreaEditor extends ShapeEditor {
  constructor(root, handlers) {
    super(root, handlers);
    this.panel = root.querySelector(".area");
    this.at = (selector) => this.panel.querySelector(selector);
    this.at(".area-close").onclick = () => this.close();
    this.at(".area-remove").onclick = () => this.remove();
    this.at(".area-copy").onclick = () => this.copy();
    this.at(".area-fractions").onchange = () => this.show();
    for (const button of this.panel.querySelectorAll(".modes button")) {
      button.onclick = () => {
        this.kind = button.dataset.kind;
        this.unfinished = null;
        this.show();
      };
    }
  }

  open() {
    if (this.isOpen || !this.header) return;
    this.isOpen = true;
    this.shapes = shapesOf(this.header);
    this.selected = this.shapes.at(-1) ?? null;
    this.kind = this.shapes.some(({ kind }) => kind === "roi") ? "mask" : "roi";
    this.opened();
    this.root.querySelector(".view").focus({ preventScroll: true });
    this.show();
    this.announce("Drag a rectangle on the image, or set corners.");
  }

  // Show the YAML of the shapes; the image shows the same.
  show() {
    this.panel.hidden = !this.isOpen;
    this.root.classList.toggle("drawing", this.isOpen);
    this.root.querySelector(".area-open").setAttribute("aria-expanded", String(this.isOpen));
    for (const button of this.panel.querySelectorAll(".modes button")) {
      button.setAttribute("aria-pressed", String(button.dataset.kind === this.kind));
    }
    this.at(".area-remove").disabled = !this.selected;
    const text = this.isOpen ? this.yaml() : "";
    if (this.at(".area-yaml").textContent !== text) this.at(".area-yaml").textContent = text;
    this.at(".area-copy").disabled = !this.shapes.length;
    this.at(".area-state").textContent = "";
    this.changed();
  }

  yaml() {
    const [width, height] = this.size();
    const fractions = this.at(".area-fractions").checked;
    const number = (value, side) => (fractions ? +(value / side).toFixed(DECIMALS) : value);
    const corner = ([x, y]) => `[${number(x, width)}, ${number(y, height)}]`;
    const polygon = ({ points }) => `[${points.map(corner).join(", ")}]`;
    const region = (shape) => {
      if (!shape.isRectangle) return polygon(shape);
      const [left, top, right, bottom] = boundsOf(shape.points);
      const [x, y] = [number(left, width), number(top, height)];
      // Round the far edge, not the width, to stay within the frame.
      const [wide, high] = [number(right, width) - x, number(bottom, height) - y];
      return `[${[x, y, +wide.toFixed(DECIMALS), +high.toFixed(DECIMALS)].join(", ")}]`;
    };
    const complete = this.shapes.filter((shape) => shape !== this.unfinished);
    const masks = complete.filter(({ kind }) => kind === "mask");
    const lines = complete.filter(({ kind }) => kind === "roi").map((shape) => `roi: ${region(shape)}`);
    if (masks.length) lines.push("mask:", ...masks.map((mask) => `  - ${polygon(mask)}`));
    return lines.join("\n");
  }

  async copy() {
    const text = this.at(".area-yaml").textContent;
    try {
      await navigator.clipboard.writeText(text);
      this.at(".area-state").textContent = "copied";
    } catch {
      // Without HTTPS a page may not write to the clipboard.
      getSelection().selectAllChildren(this.at(".area-yaml"));
      this.at(".area-state").textContent = "selected: copy it with Ctrl+C";
    }
  }
}
