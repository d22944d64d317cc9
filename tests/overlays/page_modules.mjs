// Laws of the page's pure modules: node --test tests/overlays/page_modules.mjs (test_page_modules.py runs it).
import assert from "node:assert/strict";
import test from "node:test";

const load = (name) => import(new URL(`../../overlays/web/static/${name}`, import.meta.url));
const { chooseWall, coverage } = await load("layout.js");
const { Episode, alarmTitle, heatStrength, noticeOf, summarize } = await load("words.js");
const { Strip, gapLimit, gaps, spans } = await load("strip.js");
const { act, fileName } = await load("events.js");

const SCREEN = { width: 1400, height: 800 };
const TILE = { facts: 60, gap: 10, minWidth: 190 };
const shownArea = (aspects, { width, aspect }) =>
  aspects.reduce((sum, image) => sum + coverage(image, aspect), 0) * (width ** 2 / aspect);

test("wall fits the screen with 2 to 36 cameras, and no other number of columns shows more", () => {
  for (let count = 2; count <= 36; count++) {
    const aspects = Array.from({ length: count }, (_, index) => (index % 5 ? 16 / 9 : 0.56));
    const chosen = chooseWall(aspects, SCREEN, { ...TILE, minWidth: 40 });
    const rows = Math.ceil(count / chosen.columns);
    assert.ok(chosen.fits);
    assert.ok(chosen.columns * chosen.width + (chosen.columns - 1) * TILE.gap <= SCREEN.width);
    assert.ok(rows * (chosen.width / chosen.aspect + TILE.facts) + (rows - 1) * TILE.gap <= SCREEN.height + rows);
    for (let columns = 1; columns <= count; columns++) {
      const others = Math.ceil(count / columns);
      const room = (SCREEN.height - (others - 1) * TILE.gap) / others - TILE.facts;
      const wide = (SCREEN.width - (columns - 1) * TILE.gap) / columns;
      const width = Math.floor(Math.min(wide, room * chosen.aspect));
      if (width > 0) assert.ok(shownArea(aspects, chosen) * 1.002 >= shownArea(aspects, { width, aspect: chosen.aspect }));
    }
  }
});

test("wall takes the shape of the cameras", () => {
  assert.equal(chooseWall([4 / 3, 4 / 3], SCREEN, TILE).aspect, 4 / 3);
  assert.equal(chooseWall(Array(12).fill(16 / 9), SCREEN, TILE).aspect, 16 / 9);
  assert.ok(chooseWall([0.56, 0.56, 0.56], SCREEN, TILE).aspect < 1);
  assert.ok(chooseWall([16 / 9, 0.56, 16 / 9], SCREEN, TILE).aspect > 1);
});

test("wall scrolls with readable tiles where the screen is too small", () => {
  const chosen = chooseWall(Array(36).fill(16 / 9), { width: 800, height: 300 }, TILE);
  assert.deepEqual([chosen.fits, chosen.aspect], [false, 16 / 9]);
  assert.ok(chosen.width >= TILE.minWidth && chosen.columns * chosen.width <= 800);
});

const camera = (changes) => ({ state: "live", frames: 5, silent: false, reason: "", alarms: [], ...changes });

test("header counts live cameras and alarms, and is red for what is wrong only", () => {
  const dead = camera({ state: "waiting", silent: true, reason: "refused", alarms: ["old"] });
  const opening = camera({ state: "connecting", frames: 0 });
  assert.deepEqual(summarize([], 12.4), ["building the network (12 s)", "waiting"]);
  assert.deepEqual(summarize([camera(), camera()]), ["2 of 2 live", "good"]);
  assert.deepEqual(summarize([camera(), opening]), ["1 of 2 live", "waiting"]);
  assert.deepEqual(summarize([camera({ alarms: ["a"] }), dead]), ["1 of 2 live, 1 alarm", "bad"]);
  assert.deepEqual(summarize([camera(), camera({ state: "ended", silent: true })]), ["1 of 2 live", "good"]);
  assert.deepEqual(summarize([camera(), camera({ frames: 0, state: "live" })])[1], "waiting");
});

test("notice tells starting from failing, and counts nothing without the server", () => {
  const view = { hasFrame: false, age: 0, status: camera({ frames: 0 }), buildingSeconds: null, lostAt: "" };
  assert.equal(noticeOf({ ...view, buildingSeconds: 3.9 }).title, "building the network (3 s)");
  assert.equal(noticeOf(view).kind, "wait");
  const refused = camera({ frames: 0, state: "waiting", reason: "refused" });
  assert.deepEqual(noticeOf({ ...view, status: refused }), { title: "no frame yet", detail: "refused", kind: "bad" });
  assert.equal(noticeOf({ ...view, hasFrame: true, status: camera() }), null);
  const lost = { ...view, hasFrame: true, status: camera(), lostAt: "14:02:11" };
  assert.deepEqual(noticeOf({ ...lost, age: 5 }), noticeOf({ ...lost, age: 50 }));
  assert.equal(noticeOf({ ...view, hasFrame: true, age: 81.5, status: camera({ silent: true }) }).title, "no signal for 1 min 21 s");
});

const figure = (value, bound = 0.5) => ({ name: "heat_inside(road)", value, bound });
const guard = (value, seconds, says = "heat_inside(road) >= 0.5") =>
  ({ name: "on-the-road", says, seconds, figure: value === null ? null : figure(value) });

test("alarm names this frame's number and the worst of the episode", () => {
  const episode = new Episode();
  assert.equal(episode.update(guard(0.41, 81)).title, "Looks off the road");
  assert.equal(episode.update(guard(0.41, 81)).text, "41 % inside now, 50 % wanted, for 1 min 21 s");
  assert.equal(episode.update(guard(0.45, 90)).text, "45 % inside now, 41 % at worst, 50 % wanted, for 1 min 30 s");
  assert.equal(episode.update(guard(0.45, 90), figure(0.2)).text, "45 % inside now, 20 % at worst, 50 % wanted, for 1 min 30 s");
  const calm = episode.update(guard(null, 120));
  assert.equal(calm.title, "Looks off the road");
  assert.equal(calm.text, "20 % inside at worst, 50 % wanted; this frame meets the rule; alarm for 2 min 0 s");
  assert.equal(calm.short, "20 % at worst, 50 % wanted, 2 min 0 s");
});

test("a number that violates a rule never reads as its bound", () => {
  const outside = { ...guard(null, 1), figure: { name: "evidence_outside_box", value: 0.0503, bound: 0.05 } };
  assert.equal(new Episode().update(outside).text, "evidence outside box 5.03 % now, at most 5 % wanted, for 1.0 s");
  assert.equal(new Episode().update(guard(0.4996, 1)).short, "49.96 % now, 50 % wanted, 1 s");
  const many = { ...guard(null, 1), figure: { name: "boxes", value: 7, bound: 5 } };
  assert.equal(new Episode().update(many).text, "boxes 7 now, at most 5 wanted, for 1.0 s");
});

test("alarm without a number shows its rule", () => {
  const words = new Episode().update(guard(null, 12, "label == scratch"));
  assert.deepEqual([words.title, words.text], ["on-the-road", "label == scratch, for 12 s"]);
  assert.equal(alarmTitle({}, figure(0.7)), "Looks at the road");
});

test("heat fades with the score", () => {
  assert.deepEqual([0, 0.09, 0.25, 0.5, 1].map(heatStrength), [0, 0.18, 0.5, 1, 1]);
});

test("strip marks each alarm and each gap, and takes a slow camera as it is", () => {
  const points = [0, 1, 2, 9, 10].map((at) => [at, 0.5, Number(at === 1 || at === 2 || at === 10)]);
  assert.deepEqual(spans(points, gapLimit(points)), [[1, 2], [10, 10]]);
  assert.deepEqual(gaps(points, 10.5, gapLimit(points)), [[2, 9]]);
  const slow = [0, 10, 20, 30].map((at) => [at, 0.5, 0]);
  assert.deepEqual(gaps(slow, 35, gapLimit(slow)), []);
});

test("downloads are named by camera and time", () => {
  assert.equal(fileName({ camera: "gate 1/a", start: 0.25 }, ".png"), "gate_1_a_19700101T000000.250Z.png");
});

test("strip keeps the server's minute when the first frames are older than it, and forgets another run", () => {
  const strip = new Strip(null, () => 0);
  strip.load([[100, 0.5, 0], [160, 0.5, 1]]);
  strip.add(159.8, 0.9, false);
  strip.add(160.2, 0.9, false);
  assert.deepEqual(strip.points.map(([at]) => at), [100, 160, 160.2]);
  strip.load([[161, 0.5, 0]]);
  strip.add(162, 0.5, false);
  assert.deepEqual(strip.points.map(([at]) => at), [161, 162]);
  strip.add(20, 0.5, false);
  assert.deepEqual(strip.points.map(([at]) => at), [20]);
});

test("viewer learns who was faster, with the event as it is", async (context) => {
  const current = { id: "a", state: "acknowledged", by: "Ada", acted: Date.now() / 1000 - 3, version: 1 };
  const sent = [];
  context.mock.method(globalThis, "fetch", (path, request) => {
    sent.push([path, JSON.parse(request.body)]);
    return Promise.resolve(new Response(JSON.stringify(current), { status: 409 }));
  });
  globalThis.localStorage = { getItem: () => "Bo" };
  const error = await act({ id: "a", version: 0 }, "acknowledge", {}).catch((reason) => reason);
  delete globalThis.localStorage;
  assert.deepEqual(sent, [["api/events/a/acknowledge", { by: "Bo", version: 0 }]]);
  assert.match(error.message, /^Not changed: Ada acknowledged this event 3\.\d s ago\.$/);
  assert.deepEqual(error.current, current);
});

const { cornersOfText, cornersText, freeName, marked, pastWords, setupOfShapes, shapesOfSetup } = await load("setup-data.js");
const FRAME = [640, 480];
const SETUP = {
  regions: [{ index: 0, name: "belt", polygon: [[0, 0.14], [1, 0.14], [1, 0.86], [0, 0.86]], cameras: ["a"] }],
  zones: [{ index: 0, name: "gate", polygon: [[10, 10], [300, 10], [300, 301]], vote: "mean" }],
  lines: [{ index: 0, name: "exit", points: [[0.1, 0.2], [0.1, 0.9]] }],
  mask: [[[0, 0], [0.5, 0], [0, 0.5]]],
  roi: [64, 48, 320, 240],
};

test("set-up that is not drawn on stays as it was written, in fractions or pixels", () => {
  assert.deepEqual(setupOfShapes(shapesOfSetup(SETUP, FRAME), FRAME), SETUP);
});

test("shape that is moved becomes fractions of the frame, and keeps its other options", () => {
  const shapes = shapesOfSetup(SETUP, FRAME);
  for (const shape of shapes) shape.points = shape.points.map(([x, y]) => [x + 32, y]);
  const moved = setupOfShapes(shapes, FRAME);
  assert.deepEqual(moved.roi, [0.15, 0.1, 0.5, 0.5]);
  assert.deepEqual(moved.zones[0], { index: 0, name: "gate", vote: "mean", polygon: [[0.0656, 0.0208], [0.5188, 0.0208], [0.5188, 0.6271]] });
  assert.deepEqual(moved.lines[0].points, [[0.15, 0.2], [0.15, 0.9]]);
  assert.equal(freeName("region", [{ name: "region-1" }, { name: "region-3" }]), "region-2");
});

test("corners are a text that is read back, and refused outside the frame", () => {
  const points = [[64, 48], [320, 48], [320, 240]];
  assert.equal(cornersText(points, FRAME), "0.1 0.1, 0.5 0.1, 0.5 0.5");
  assert.deepEqual(cornersOfText(cornersText(points, FRAME), FRAME, 3), points);
  for (const wrong of ["", "0.1 0.1, 0.5 0.1", "0.1 0.1, 0.5 0.1, 1.5 0.5", "0.1 0.1, 0.5, 0.5 0.5", "a b, 0 0, 1 1"]) {
    assert.equal(cornersOfText(wrong, FRAME, 3), null);
  }
});

test("past of a rule is said in words, and its mistake is marked", () => {
  const past = { frames: 9, count: 0, known_seconds: 580, firing_seconds: 0, spans: [] };
  assert.equal(pastWords(past).title, "would not have fired in the last 9 min 40 s");
  const spans = [[0, 2, "a"], [10, 12, "b"], [20, 22, "c"], [30, 32.5, "d"]];
  const words = pastWords({ ...past, count: 5, firing_seconds: 8.5, spans });
  assert.equal(words.title, "would have fired 5 times in the last 9 min 40 s, for 8.5 s in all");
  assert.ok(words.detail.includes("for 2.5 s: d; ") && words.detail.endsWith("; 2 earlier"));
  assert.equal(pastWords({ ...past, frames: 0 }).title, "no frame to try it on yet");
  assert.deepEqual(marked("heat_inside(bel) >= 1", 12), ["heat_inside(", "bel", ") >= 1"]);
  assert.deepEqual(marked("label='a b' and", 6), ["label=", "'a b'", " and"]);
  assert.deepEqual(marked("score > 0.5 and", 15), ["score > 0.5 and", "␣", ""]);
  assert.deepEqual(marked("score", null), ["score", "", ""]);
});
