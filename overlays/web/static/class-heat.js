// The heat map of a class that the stream does not explain, requested repeatedly from the running network while the
// camera has a full card. Only this viewer gets the answers; guards and records do not. Each answer contains its image,
// which replaces the live image, so that image and heat match.
import { decodeBase64 } from "./heat.js";
import { percent, seconds } from "./words.js";

const REFRESH_MS = 400; // between two questions
let lists = 0;

export class ClassHeat {
  // labels: the classes of the network; scores: the list in which a class can be chosen, too
  constructor(root, camera, link, labels, scores) {
    this.root = root;
    this.camera = camera;
    this.link = link;
    this.scores = scores;
    this.asked = null; // { label, score, grid, heat_u8, taken, image } of the newest answer
    this.isAsking = false;
    this.askedAt = -REFRESH_MS;
    scores.others = new Set(labels);
    const list = document.createElement("datalist");
    list.id = `classes-${++lists}`;
    list.append(...labels.map((label) => Object.assign(document.createElement("option"), { value: label })));
    this.input = Object.assign(document.createElement("input"), { className: "why-class", autocomplete: "off", spellcheck: false, maxLength: 100 });
    this.input.setAttribute("list", list.id);
    this.input.placeholder = "top class";
    this.input.onchange = () => scores.choose(this.input.value.trim());
    const row = Object.assign(document.createElement("p"), { className: "why-row" });
    const label = document.createElement("label");
    label.append("Heat for", this.input);
    row.append(label, list);
    this.text = Object.assign(document.createElement("p"), { className: "soft" });
    this.text.setAttribute("role", "status");
    const part = document.createElement("div");
    part.className = "class-heat";
    part.append(row, this.text);
    root.querySelector(".bars").after(part);
  }

  // Return heat and image of the chosen class, shown instead of the stream's; null if there are none.
  get shown() {
    return this.wanted && this.asked?.label === this.wanted ? this.asked : null;
  }

  // Show the chosen class; ask for its heat if the shown frame has none.
  update(header) {
    const { chosen } = this.scores;
    if (document.activeElement !== this.input && this.input.value !== (chosen ?? "")) this.input.value = chosen ?? "";
    const isExplained = header.findings.some(({ label }) => label === chosen);
    this.wanted = chosen && !isExplained && !this.root.classList.contains("small") ? chosen : null;
    if (this.wanted) this.ask();
    const { shown } = this;
    if (shown) this.say(`Heat for “${shown.label}”, score ${percent(shown.score)}, in the image shown, ${seconds(this.link.age(shown.taken))} old.`);
    else if (!this.wanted) this.say("");
  }

  async ask() {
    const now = performance.now();
    if (this.isAsking || now - this.askedAt < REFRESH_MS) return;
    this.isAsking = true;
    this.askedAt = now;
    const label = this.wanted;
    if (this.asked?.label !== label) this.say("The network is asked…");
    const answer = await this.link.question({ heat: { camera: this.camera, label } });
    if (!answer.error) {
      const taken = this.link.now() - answer.age_seconds;
      const image = await createImageBitmap(new Blob([decodeBase64(answer.jpeg)], { type: "image/jpeg" }));
      this.asked?.image.close();
      this.asked = { ...answer, taken, image };
    } else if (this.wanted === label) this.say(answer.error);
    this.isAsking = false;
    if (!answer.error) this.scores.changed();
  }

  say(text) {
    if (this.text.textContent !== text) this.text.textContent = text;
  }
}
