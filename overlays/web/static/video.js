// H.264 of one camera: each message holds one unit, decoded in order from a key frame on (WebCodecs).
const PROBE = "avc1.42c028"; // constrained baseline, as the server encodes

// Return whether this browser decodes H.264 here. WebCodecs exists on pages by HTTPS or of this machine only.
export async function decodesVideo() {
  if (typeof VideoDecoder === "undefined") return false;
  try {
    return (await VideoDecoder.isConfigSupported({ codec: PROBE, optimizeForLatency: true })).supported === true;
  } catch {
    return false;
  }
}

export class VideoStream {
  // handlers: { shown(header, frame): takes a decoded VideoFrame and closes it; dropped(): a unit is never shown;
  // lost(): a key frame is needed }
  constructor(handlers) {
    this.handlers = handlers;
    this.decoder = null;
    this.config = "";
    this.count = 0;
    this.headers = new Map(); // of units in the decoder, by the time stamp that they were given
  }

  // Decode a unit; it is dropped if no key frame was received yet.
  decode(header, data) {
    const { codec, key } = header.video;
    const config = `${codec} ${header.width}x${header.height}`;
    if (key && (!this.decoder || this.config !== config)) this.begin(codec, config);
    if (!this.decoder) {
      this.handlers.dropped();
      return;
    }
    const timestamp = ++this.count;
    this.headers.set(timestamp, header);
    try {
      this.decoder.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp, data }));
    } catch {
      this.fail();
    }
  }

  fail() {
    this.close();
    this.handlers.lost();
  }

  begin(codec, config) {
    this.close();
    const decoder = new VideoDecoder({
      output: (frame) => {
        const header = this.headers.get(frame.timestamp);
        this.headers.delete(frame.timestamp);
        if (header && decoder === this.decoder) this.handlers.shown(header, frame);
        else frame.close();
      },
      error: () => {
        if (decoder === this.decoder) this.fail();
      },
    });
    decoder.configure({ codec, optimizeForLatency: true });
    this.decoder = decoder;
    this.config = config;
  }

  // Release the decoder and drop its frames.
  close() {
    for (let left = this.headers.size; left > 0; left--) this.handlers.dropped();
    this.headers.clear();
    const decoder = this.decoder;
    this.decoder = null;
    if (decoder && decoder.state !== "closed") decoder.close();
  }
}
