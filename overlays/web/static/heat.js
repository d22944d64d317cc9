// The heat map as a small image with an alpha channel, and its rectangle in the frame's image.
const TILE_PIXELS = 96; // longer side of the small image: the canvas smooths the rest

export function decodeBase64(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

// Return levels above their median (the base level is no evidence), scaled so that 255 stays 255.
export function evidence(levels) {
  const floor = levels.toSorted()[levels.length >> 1];
  const scale = floor < 255 ? 255 / (255 - floor) : 0;
  return levels.map((level) => Math.max(level - floor, 0) * scale);
}

// Return a palette of one colour.
export function plainPalette(colour) {
  return Uint8Array.from({ length: 768 }, (_, index) => colour[index % 3]);
}

// Interpolate rows x columns levels bilinearly between cell centres; colour by level, alpha by level and opacity.
export function renderHeatmap(levels, rows, columns, palette, opacity, canvas, pixels = TILE_PIXELS) {
  const scale = Math.max(1, Math.round(pixels / Math.max(rows, columns)));
  const width = columns * scale, height = rows * scale;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const data = image.data;
  for (let y = 0, offset = 0; y < height; y++) {
    const [top, bottom, weightY] = neighbours(y, scale, rows);
    for (let x = 0; x < width; x++, offset += 4) {
      const [left, right, weightX] = neighbours(x, scale, columns);
      const above = levels[top * columns + left] * (1 - weightX) + levels[top * columns + right] * weightX;
      const below = levels[bottom * columns + left] * (1 - weightX) + levels[bottom * columns + right] * weightX;
      const level = Math.round(above * (1 - weightY) + below * weightY);
      data[offset] = palette[3 * level];
      data[offset + 1] = palette[3 * level + 1];
      data[offset + 2] = palette[3 * level + 2];
      data[offset + 3] = Math.round(opacity * level);
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
  const whole = [0, 0, header.frame_width ?? header.width, header.frame_height ?? header.height];
  return imageRectangle(header, header.heat_region ?? whole);
}

// Return a box of the frame as a rectangle [x, y, width, height] of the image.
export function imageRectangle(header, [left, top, right, bottom]) {
  const scaleX = header.width / (header.frame_width ?? header.width);
  const scaleY = header.height / (header.frame_height ?? header.height);
  return [left * scaleX, top * scaleY, (right - left) * scaleX, (bottom - top) * scaleY];
}
