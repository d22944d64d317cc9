// The heat's grid as a small picture with an alpha channel, and where it lies.
const FINE = 96; // pixels along the longer side of the small picture: the canvas smooths the rest

export function unpacked(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

// Spread rows x columns levels bilinearly between the centres of cells, colour them, weigh them by level and opacity.
export function heatPicture(levels, rows, columns, palette, opacity, into) {
  const fine = Math.max(1, Math.round(FINE / Math.max(rows, columns)));
  const width = columns * fine, height = rows * fine;
  if (into.width !== width || into.height !== height) Object.assign(into, { width, height });
  const context = into.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = image.data;
  for (let y = 0, at = 0; y < height; y++) {
    const [top, bottom, down] = between(y, fine, rows);
    for (let x = 0; x < width; x++, at += 4) {
      const [left, right, along] = between(x, fine, columns);
      const above = levels[top * columns + left] * (1 - along) + levels[top * columns + right] * along;
      const below = levels[bottom * columns + left] * (1 - along) + levels[bottom * columns + right] * along;
      const level = Math.round(above * (1 - down) + below * down);
      pixels[at] = palette[3 * level];
      pixels[at + 1] = palette[3 * level + 1];
      pixels[at + 2] = palette[3 * level + 2];
      pixels[at + 3] = Math.round(opacity * level);
    }
  }
  context.putImageData(image, 0, 0);
  return into;
}

function between(pixel, fine, cells) {
  const place = Math.min(Math.max((pixel + 0.5) / fine - 0.5, 0), cells - 1);
  const lower = Math.floor(place);
  return [lower, Math.min(lower + 1, cells - 1), place - lower];
}

// The rectangle of the picture that the grid covers: it may be sent smaller than the frame it speaks of.
export function placed(header) {
  const across = header.width / (header.frame_width ?? header.width);
  const down = header.height / (header.frame_height ?? header.height);
  const [left, top, right, bottom] = header.heat_region ?? [0, 0, header.width / across, header.height / down];
  return [left * across, top * down, (right - left) * across, (bottom - top) * down];
}
