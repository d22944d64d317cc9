// Words and requests for events, shared by the live page and the review.
export const KINDS = { guard: "Alarm", condition: "Condition", signal_loss: "Signal lost", part: "Part", crossing: "Crossing", disagreement: "Networks differ", drift: "Drift" };
export const STATE_CHIPS = { new: "bad", acknowledged: "good", snoozed: "waiting" };

export function titleOf(event) {
  return event.kind === "signal_loss" ? KINDS.signal_loss : event.rule;
}

export function duration(seconds) {
  const whole = Math.max(Math.round(seconds), 0);
  if (whole < 60) return seconds < 9.95 ? `${Math.max(seconds, 0).toFixed(1)} s` : `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function clock(unix, { withDate = true } = {}) {
  const time = new Date(unix * 1000);
  const hours = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  if (!withDate || time.toDateString() === new Date().toDateString()) return hours;
  return `${time.toLocaleDateString([], { day: "numeric", month: "short" })} ${hours}`;
}

// Return an event's duration as text.
export function lasted(event, now = Date.now() / 1000) {
  if (event.end === null) return `for ${duration(now - event.start)}, goes on`;
  return `${duration(event.end - event.start)}${event.interrupted ? ", interrupted" : ""}`;
}

export function stateWords(event) {
  if (event.state === "snoozed") return `snoozed until ${clock(event.snoozed_until)}`;
  if (event.state === "acknowledged" && event.by) return `acknowledged by ${event.by}`;
  return event.state;
}

function conflictWords(event) {
  const verb = { acknowledged: "acknowledged", snoozed: "snoozed" }[event.state] ?? "changed";
  const ago = duration(Date.now() / 1000 - (event.acted ?? Date.now() / 1000));
  return `Not changed: ${event.by || "another viewer"} ${verb} this event ${ago} ago.`;
}

export function figureWords(figure) {
  if (!figure) return "";
  const isFraction = /^(heat_inside|score|focus_area|entropy|evidence_outside_box|highest score)/.test(figure.name);
  const show = (value) => (isFraction ? `${Math.round(value * 1000) / 10}\u00a0%` : `${Math.round(value * 1000) / 1000}`);
  const name = figure.name.replace(/^heat_inside\((.*)\)$/, "heat inside $1").replaceAll("_", " ");
  return figure.bound === null ? `${name} ${show(figure.value)}` : `${name}: ${show(figure.value)} at worst, bound ${show(figure.bound)}`;
}

// A name for files: camera and time in UTC.
export function fileName(event, suffix) {
  const stamp = new Date(event.start * 1000).toISOString().replaceAll(/[-:]/g, "");
  return `${event.camera.replaceAll(/[^\w.-]+/g, "_")}_${stamp}${suffix}`;
}

export async function get(path) {
  const response = await fetch(path);
  if (response.status === 401) location.assign("login");
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

// Change an event as the viewer saw it; an Error with the event as it is now, if another viewer was faster.
export async function act(event, verb, body) {
  const response = await fetch(`api/events/${event.id}/${verb}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ by: localStorage.getItem("by") ?? "", version: event.version, ...body }),
  });
  if (response.status === 409) {
    const current = await response.json();
    throw Object.assign(new Error(conflictWords(current)), { current });
  }
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}
