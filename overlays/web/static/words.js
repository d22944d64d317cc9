// The state of cameras and guards in words. Pure.
import { duration } from "./events.js";

export const DOUBTFUL = 0.3; // a verdict with a lower score is grey
const FULL_SCORE = 0.5; // heat is fainter with a lower score

export function percent(fraction) {
  return fraction > 0 && fraction < 0.01 ? "<1 %" : `${Math.round(fraction * 100)} %`;
}

export function seconds(time) {
  return time < 1 ? `${Math.round(time * 1000)} ms` : duration(Math.floor(time)).replace(".0", "");
}

// Return the part of the chosen opacity with which the heat of a class is drawn.
export function heatStrength(score) {
  return Math.min(Math.max(score / FULL_SCORE, 0), 1);
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

// Return [text, kind] for the header: how many cameras are live, how many guards fire.
export function summarize(cameras, buildingSeconds) {
  if (buildingSeconds !== null && buildingSeconds !== undefined) return [building(buildingSeconds), "waiting"];
  if (!cameras.length) return ["no camera yet", "waiting"];
  const live = cameras.filter((camera) => camera.state === "live" && camera.frames && !camera.silent).length;
  const alarms = cameras.reduce((sum, camera) => sum + (camera.silent ? 0 : camera.alarms.length), 0);
  const running = cameras.filter((camera) => camera.state !== "ended");
  const starting = running.filter(isStarting).length;
  const text = `${live} of ${cameras.length} live${alarms ? `, ${count(alarms, "alarm")}` : ""}`;
  if (alarms || live + starting < running.length) return [text, "bad"];
  return [text, starting ? "waiting" : "good"];
}

function building(time) {
  return `building the network (${Math.floor(time)} s)`;
}

// A camera that opens, or whose first frame is being explained.
function isStarting({ frames, state, reason }) {
  return !frames && !reason && ["connecting", "live", "waiting"].includes(state);
}

// Return { title, detail, kind } to write over an image that is not live; null if it is.
// view: { hasFrame, age, status, buildingSeconds, lostAt: when the server was lost, as text, or "" }
export function noticeOf({ hasFrame, age, status, buildingSeconds, lostAt }) {
  if (lostAt) return { title: "no connection", detail: `the server does not answer since ${lostAt}`, kind: "bad" };
  const { state, reason, silent } = status ?? { state: "", reason: "", silent: false };
  if (hasFrame && !silent) return null;
  if (hasFrame) return { title: state === "ended" ? "ended" : `no signal for ${seconds(age)}`, detail: reason, kind: state === "ended" ? "wait" : "bad" };
  if (typeof buildingSeconds === "number") return { title: building(buildingSeconds), detail: "", kind: "wait" };
  if (reason || ["failed", "ended", "stalled"].includes(state)) return { title: "no frame yet", detail: reason || state, kind: "bad" };
  if (state === "live" && !status.frames) return { title: "waiting for the first result", detail: "", kind: "wait" };
  return { title: state === "connecting" ? "connecting" : "waiting for the camera", detail: "", kind: "wait" };
}

const REGION = /^heat_inside\((.*)\)$/;
const SHARES = new Set(["score", "focus_area", "entropy", "centre_x", "centre_y", "score_drop_when_masked", "evidence_outside_box"]);
const MAX_DIGITS = 6;

// Return a rule's number as text, with so many digits that it differs from the bound.
function show(name, value, bound = value) {
  const [factor, unit] = REGION.test(name) || SHARES.has(name) ? [100, " %"] : [1, ""];
  const rounded = (number, digits) => Number((factor * number).toFixed(digits));
  let digits = unit ? Number(value > 0 && value < 0.095) : 3;
  while (value !== bound && rounded(value, digits) === rounded(bound, MAX_DIGITS) && digits < MAX_DIGITS) digits++;
  return `${rounded(value, digits)}${unit}`;
}

// Return the meaning of a rule's number, such as "Looks off the road".
export function alarmTitle(guard, figure) {
  const region = figure?.name.match(REGION)?.[1];
  if (!region) return guard.name;
  const name = /^[a-z][a-z -]*$/.test(region) ? `the ${region}` : region;
  return `Looks ${figure.value < figure.bound ? "off" : "at"} ${name}`;
}

// A guard while it fires: its title stays, and the worst number of the episode is kept.
export class Episode {
  constructor() {
    this.worst = null;
  }

  // Take the guard's state in a frame, and the worst figure that the server knows.
  update(guard, known = null) {
    for (const figure of [known, guard.figure]) {
      if (figure && typeof figure.bound === "number" && isWorse(figure, this.worst)) this.worst = figure;
    }
    return { title: alarmTitle(guard, this.worst), text: this.text(guard), short: this.short(guard), rule: guard.says };
  }

  // For a small image: this frame's number, the worst one if the frame meets the rule.
  short({ figure, says, seconds: lasted }) {
    const shown = figure ?? this.worst;
    if (!shown) return says;
    const wanted = `${shown.value < shown.bound ? "" : "at most "}${show(shown.name, shown.bound)} wanted`;
    return `${show(shown.name, shown.value, shown.bound)} ${figure ? "now" : "at worst"}, ${wanted}, ${duration(Math.floor(lasted)).replace(".0", "")}`;
  }

  text({ figure, says, seconds: lasted }) {
    const { worst } = this;
    const since = `for ${duration(lasted)}`;
    if (!worst) return `${says}, ${since}`;
    const region = REGION.test(worst.name);
    const noun = region ? "inside" : worst.name.replaceAll("_", " ");
    const wanted = `${worst.value < worst.bound ? "" : "at most "}${show(worst.name, worst.bound)} wanted`;
    const number = (value) => show(worst.name, value, worst.bound);
    const value = (each) => (region ? `${number(each)} ${noun}` : `${noun} ${number(each)}`);
    if (figure?.name !== worst.name) return `${value(worst.value)} at worst, ${wanted}; this frame meets the rule; alarm ${since}`;
    const now = `${value(figure.value)} now`;
    return `${now}${isWorse(worst, figure) ? `, ${number(worst.value)} at worst` : ""}, ${wanted}, ${since}`;
  }
}

function isWorse(figure, worst) {
  return !worst || Math.abs(figure.value - figure.bound) > Math.abs(worst.value - worst.bound);
}
