// The heat map as a small image with an alpha channel, and its rectangle in the frame's image.
const TILE_PIXELS = 96; // longer side of the small image: the canvas smooths the rest

export function decodeBase64(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

// Interpolate rows x columns levels bilinearly between cell centres; colour by level, alpha by level and opacity.
export function renderHeatmap(levels, rows, columns, palette, opacity, canvas) {
  const scale = Math.max(1, Math.round(TILE_PIXELS / Math.max(rows, columns)));
  const width = columns * scale, height = rows * scale;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = image.data;
  for (let y = 0, offset = 0; y < height; y++) {
    const [top, bottom, weightY] = neighbours(y, scale, rows);
    for (let x = 0; x < width; x++, offset += 4) {
      const [left, right, weightX] = neighbours(x, scale, columns);
      const above = levels[top * columns + left] * (1 - weightX) + levels[top * columns + right] * weightX;
      const below = levels[bottom * columns + left] * (1 - weightX) + levels[bottom * columns + right] * weightX;
      const level = Math.round(above * (1 - weightY) + below * weightY);
      pixels[offset] = palette[3 * level];
      pixels[offset + 1] = palette[3 * level + 1];
      pixels[offset + 2] = palette[3 * level + 2];
      pixels[offset + 3] = Math.round(opacity * level);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Return the two cells next to a pixel's centre, and the weight of the second.
function neighbours(pixel, scale, cells) {
  const position = Math.min(Math.max((pixel + 0.5) / scale - 0.5, 0), cells - 1);
  const lower = Math.floor(position);
  return [lower, Math.min(lower + 1, cells - 1), position - lower];
}

// Return the rectangle [x, y, width, height] of the image that the grid covers; the image may be smaller than the frame.
export function heatmapRectangle(header) {
  const scaleX = header.width / (header.frame_width ?? header.width);
  const scaleY = header.height / (header.frame_height ?? header.height);
  const [left, top, right, bottom] = header.heat_region ?? [0, 0, header.width / scaleX, header.height / scaleY];
  return [left * scaleX, top * scaleY, (right - left) * scaleX, (bottom - top) * scaleY];
}
