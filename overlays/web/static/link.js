// The WebSocket: frames and states in, "shown" out; comes back by itself.
const text = new TextDecoder();

export class Link {
  // told: { hello(said), status(said, offset), frame(header, blob), lost(reason) }
  constructor(told) {
    this.told = told;
    this.wait = 250;
    this.offset = null; // this clock less the server's, at most so much too large as a message took
    this.heardAt = performance.now();
    this.open();
  }

  open() {
    const address = new URL("frames", document.baseURI); // relative: a proxy may serve the page below a path
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => this.hear(event.data);
    socket.onclose = () => this.lost();
    this.socket = socket;
  }

  hear(data) {
    this.heardAt = performance.now();
    if (typeof data === "string") {
      const said = JSON.parse(data);
      if (said.kind === "hello") {
        this.wait = 250;
        this.offset = null;
        this.told.hello(said);
      } else {
        this.clock(said.unix);
        this.say({ heard: true });
        this.told.status(said);
      }
      return;
    }
    const length = new DataView(data).getUint32(0);
    const header = JSON.parse(text.decode(new Uint8Array(data, 4, length)));
    this.clock(header.sent_at_unix);
    this.told.frame(header, new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
  }

  clock(unix) {
    const apart = Date.now() / 1000 - unix;
    this.offset = this.offset === null ? apart : Math.min(this.offset, apart);
  }

  // Seconds since something with the server's time on it happened. Clocks that agree to a few ms are taken as one.
  since(unix) {
    const offset = Math.abs(this.offset ?? 0) < 0.05 ? 0 : this.offset;
    return Math.max(Date.now() / 1000 - offset - unix, 0);
  }

  shown(camera) {
    this.say({ shown: camera });
  }

  say(what) {
    if (this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(what));
    return true;
  }

  async lost() {
    this.told.lost();
    // A session that has run out looks like any other refusal to a WebSocket.
    const answer = await fetch("metrics", { method: "HEAD" }).catch(() => null);
    if (answer?.status === 401) location.assign("login");
    setTimeout(() => this.open(), this.wait);
    this.wait = Math.min(this.wait * 2, 3000);
  }
}
