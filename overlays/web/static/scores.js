// The explained classes of a frame with their scores. The one that the viewer chooses gives the heat map.
import { percent } from "./words.js";

const SHOWN = 5;

export class ScoreList {
  constructor(list, changed) {
    this.list = list;
    this.changed = changed;
    this.chosen = null; // the label of the class whose heat is wanted; null: the first
    this.others = new Set(); // further classes whose heat maps can be asked for
  }

  // Choose a class by its label; "": none.
  choose(label) {
    this.chosen = label || null;
    this.changed();
  }

  // Return the finding whose heat is shown.
  drawn(header) {
    return header.findings.find(({ label }) => label === this.chosen) ?? header.findings[0];
  }

  // next: further classes { label, score } that have no heat map.
  show(findings, next) {
    const { list } = this;
    const explained = new Set(findings.map(({ label }) => label));
    const rows = [...findings, ...next.filter(({ label }) => !explained.has(label))].toSorted((a, b) => b.score - a.score).slice(0, SHOWN);
    list.classList.toggle("single", rows.length < 2); // the line above shows the same
    while (list.children.length > rows.length) list.lastChild.remove();
    while (list.children.length < rows.length) list.append(this.row());
    rows.forEach(({ label, score }, index) => {
      const button = list.children[index].firstChild;
      const [name, track, value] = button.children;
      const hasHeat = explained.has(label) ? findings.length > 1 || this.others.size > 0 : this.others.has(label);
      name.textContent = label;
      button.title = hasHeat ? `${label}: show its heat map` : label;
      button.dataset.label = label;
      button.disabled = !hasHeat;
      button.setAttribute("aria-pressed", String(label === this.chosen));
      track.firstChild.style.width = `${Math.min(Math.max(score, 0), 1) * 100}%`;
      value.textContent = percent(score);
    });
  }

  row() {
    const row = document.createElement("li");
    const button = document.createElement("button");
    const track = document.createElement("div");
    button.type = "button";
    track.className = "track";
    track.append(document.createElement("i"));
    button.append(document.createElement("span"), track, document.createElement("span"));
    button.onclick = () => this.choose(this.chosen === button.dataset.label ? "" : button.dataset.label);
    row.append(button);
    return row;
  }
}
