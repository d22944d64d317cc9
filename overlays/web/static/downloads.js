// Files that the page saves: named by camera and time in UTC.
import { fileName } from "./events.js";

// Save the image that a card shows.
export function saveSnapshot(canvas, header) {
  const name = fileName({ camera: header.camera, start: header.taken_at_unix }, ".png");
  canvas.toBlob((blob) => save(blob, name), "image/png");
  return name;
}

// Save the last seconds of a camera as a video; `button` shows what happens. Returns the name of the file.
export async function saveClip(button, header, opacity) {
  const text = button.textContent;
  button.disabled = true;
  button.textContent = "making the clip…";
  try {
    const response = await fetch(`clip/${encodeURIComponent(header.camera)}.mp4?opacity=${opacity}`);
    if (!response.ok) throw new Error(await response.text());
    const name = fileName({ camera: header.camera, start: header.taken_at_unix }, ".mp4");
    save(await response.blob(), name);
    button.textContent = text;
    return name;
  } catch (error) {
    button.textContent = "no clip";
    button.title = error.message;
    setTimeout(() => (button.textContent = text), 2000);
    throw error;
  } finally {
    button.disabled = false;
  }
}

function save(blob, name) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
}
