// The wall: applies the layout to the cards, full screen, kiosk mode, and what the page remembers.
import { chooseWall } from "./layout.js";

const PHONE_PIXELS = 640;
const DEFAULT_ASPECT = 16 / 9; // while no camera has given a frame
// Text below an image: by the number of cameras on a large screen. Heights are those of page.css.
const MODES = [
  { mode: "only", upTo: 1, facts: 0, minWidth: 0, gap: 0 },
  { mode: "full", upTo: 3, facts: 310, minWidth: 330, gap: 16 },
  { mode: "medium", upTo: 6, facts: 108, minWidth: 240, gap: 14 },
  { mode: "compact", upTo: Infinity, facts: 56, minWidth: 160, gap: 10 },
];
const KIOSK = { mode: "kiosk", facts: 0, minWidth: 40, gap: 4 };
const PHONE = { facts: 200, minWidth: 150, gap: 8 };
const MAX_FULL_ON_PHONE = 4;

export class Wall {
  // cards(): the cards; changed(): the size of images has changed
  constructor(main, cards, changed) {
    Object.assign(this, { main, cards, changed });
    this.isKiosk = new URLSearchParams(location.search).has("kiosk");
    this.applied = "";
    new ResizeObserver(() => this.layOut()).observe(document.documentElement);
    document.addEventListener("fullscreenchange", () => this.layOut());
    if (this.isKiosk) this.keepAwake();
  }

  get isBare() {
    return this.isKiosk || Boolean(document.fullscreenElement);
  }

  toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen?.().catch(() => {});
  }

  // Keep the screen of a wall on; browsers allow it over HTTPS or on this machine.
  keepAwake() {
    const lock = () => document.hidden || navigator.wakeLock?.request("screen").catch(() => {});
    document.addEventListener("visibilitychange", lock);
    lock();
  }

  // Apply the layout; cheap if nothing has changed.
  layOut() {
    const { main } = this;
    const cards = this.cards();
    document.documentElement.classList.toggle("kiosk", this.isBare);
    const { mode, columns, width, aspect } = this.choose(cards);
    const large = cards.find((card) => card.root.classList.contains("large"));
    const layout = JSON.stringify([mode, columns, width, aspect, large?.camera, cards.length]);
    if (layout === this.applied) return;
    this.applied = layout;
    main.dataset.mode = mode;
    main.classList.toggle("enlarged", Boolean(large) && cards.length > 1);
    for (const card of cards) {
      const isWide = !this.isBare && (card === large || (mode === "only" && !large));
      card.root.classList.toggle("wide", isWide);
      card.root.classList.toggle("small", !isWide && (Boolean(large) || mode !== "full"));
    }
    const bar = document.querySelector(".bar").offsetHeight;
    for (const [name, value] of Object.entries({ columns, tile: `${width}px`, aspect, bar: `${bar}px`, others: Math.max(cards.length - 1, 1) })) {
      main.style.setProperty(`--${name}`, value);
    }
    this.changed();
  }

  choose(cards) {
    const known = cards.map((card) => card.aspect).filter(Boolean);
    const aspects = cards.map((card) => card.aspect ?? known[0] ?? DEFAULT_ASPECT);
    if (!aspects.length) return { mode: "only", columns: 1, width: 0, aspect: DEFAULT_ASPECT };
    const css = getComputedStyle(this.main);
    const side = (name) => parseFloat(css[name]);
    const { width: wide } = this.main.getBoundingClientRect();
    const area = {
      width: Math.floor(wide - side("paddingLeft") - side("paddingRight")),
      height: Math.floor(innerHeight - this.main.offsetTop - side("paddingTop") - side("paddingBottom")),
    };
    if (this.isBare) return { ...chooseWall(aspects, area, KIOSK), mode: "kiosk" };
    if (innerWidth < PHONE_PIXELS) return this.chooseForPhone(aspects, area);
    const kind = MODES.find(({ upTo }) => aspects.length <= upTo);
    return { ...chooseWall(aspects, area, kind), mode: kind.mode };
  }

  // A phone scrolls: one column of full cards, or two of small ones.
  chooseForPhone(aspects, area) {
    const columns = aspects.length > MAX_FULL_ON_PHONE ? 2 : 1;
    const { aspect } = chooseWall(aspects, { ...area, height: 0 }, PHONE);
    const width = Math.floor((area.width - (columns - 1) * PHONE.gap) / columns);
    return { mode: columns > 1 ? "compact" : "full", columns, width, aspect };
  }
}

// What the page remembers in this browser: { heat, opacity, large: the enlarged camera }.
export const memory = {
  read() {
    try {
      return JSON.parse(localStorage.getItem("page") ?? "{}") ?? {};
    } catch {
      return {};
    }
  },
  write(changes) {
    localStorage.setItem("page", JSON.stringify({ ...this.read(), ...changes }));
  },
};
