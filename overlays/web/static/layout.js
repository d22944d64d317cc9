// Layout of the wall: columns, and the shape of the box that every camera gets. Pure.
const CANDIDATES = [4 / 3, 16 / 9];
const [NARROWEST, WIDEST] = [0.75, 2]; // aspects of a box

// Return the part of a box of aspect `box` that an image of aspect `image` covers, from 0 to 1.
export function coverage(image, box) {
  return Math.min(image / box, box / image);
}

// Return { columns, width, aspect, fits } that maximises the total size of all images.
// aspects: width / height of each camera's image; area: { width, height } in pixels; tile: { facts: height of the text
// below an image, gap, minWidth }. Where no choice fits the height, tiles have about minWidth and the page scrolls.
export function chooseWall(aspects, area, tile) {
  // A few portrait cameras do not make the box of all others tall.
  const isTall = aspects.toSorted((a, b) => a - b)[aspects.length >> 1] < 1;
  const shapes = [...new Set([...aspects, ...CANDIDATES].map((aspect) => Math.min(Math.max(aspect, NARROWEST), WIDEST)))]
    .filter((shape) => isTall || shape >= 1);
  let best = null;
  for (let columns = 1; columns <= aspects.length; columns++) {
    for (const aspect of shapes) {
      const rows = Math.ceil(aspects.length / columns);
      const widest = (area.width - (columns - 1) * tile.gap) / columns;
      const highest = (area.height - (rows - 1) * tile.gap) / rows - tile.facts;
      const width = Math.floor(Math.min(widest, highest * aspect));
      if (width < Math.min(tile.minWidth, area.width)) continue;
      const shown = aspects.reduce((sum, image) => sum + coverage(image, aspect), 0) * width * (width / aspect);
      if (!best || shown > best.shown * 1.001) best = { columns, width, aspect, shown, fits: true };
    }
  }
  if (best) return best;
  const columns = Math.max(1, Math.min(aspects.length, Math.floor((area.width + tile.gap) / (tile.minWidth + tile.gap))));
  const aspect = bestShape(aspects, shapes);
  return { columns, width: Math.floor((area.width - (columns - 1) * tile.gap) / columns), aspect, fits: false };
}

function bestShape(aspects, shapes) {
  const shown = (box) => aspects.reduce((sum, image) => sum + coverage(image, box), 0);
  return shapes.reduce((best, next) => (shown(next) > shown(best) ? next : best));
}
