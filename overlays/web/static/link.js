// WebSocket connection to the server: receives frames and the status, sends acknowledgements, and reconnects.
const INTERVAL_MS = 250; // between an answer and the next question
const text = new TextDecoder();

export class Link {
  // handlers: { hello(message), status(message), events(message), frame(header, bytes), lost() }; only: "events" for a
  // page that shows no frames
  constructor(handlers, only = "") {
    this.handlers = handlers;
    this.only = only;
    this.retryMs = 250;
    this.offset = null; // this clock minus the server's; too large by at most the shortest transfer time of a message
    this.receivedAt = performance.now();
    this.canAsk = false; // whether the server passes questions to a detector
    this.questions = new Map(); // functions that take the answers, by number
    this.lastQuestion = 0;
    this.turn = Promise.resolve(); // ends when the next question to the detector may be sent
    this.open();
  }

  open() {
    const address = new URL("frames", document.baseURI); // relative: a proxy may serve the page below a path
    if (this.only) address.searchParams.set("only", this.only);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => this.receive(event.data);
    socket.onclose = () => this.lost();
    this.socket = socket;
  }

  receive(data) {
    this.receivedAt = performance.now();
    if (typeof data === "string") {
      const message = JSON.parse(data);
      if (message.kind === "hello") {
        this.retryMs = 250;
        this.offset = null;
        this.canAsk = message.why;
        document.body.classList.toggle("viewing", !message.act);
        this.handlers.hello(message);
      } else if (message.kind === "answer") {
        this.questions.get(message.id)?.(message);
        this.questions.delete(message.id);
      } else if (message.kind === "events") {
        this.handlers.events?.(message);
      } else if (message.kind === "status") {
        this.updateOffset(message.unix);
        this.send({ heard: true });
        this.handlers.status(message);
      }
      return;
    }
    const length = new DataView(data).getUint32(0);
    const header = JSON.parse(text.decode(new Uint8Array(data, 4, length)));
    this.updateOffset(header.sent_at_unix);
    this.handlers.frame?.(header, new Uint8Array(data, 4 + length));
  }

  updateOffset(unix) {
    const difference = Date.now() / 1000 - unix;
    this.offset = this.offset === null ? difference : Math.min(this.offset, difference);
  }

  // Return the time of the server's clock. An offset below 50 ms is taken as transfer time.
  now() {
    const offset = Math.abs(this.offset ?? 0) < 0.05 ? 0 : this.offset;
    return Date.now() / 1000 - offset;
  }

  // Return the seconds since a time of the server's clock.
  age(unix) {
    return Math.max(this.now() - unix, 0);
  }

  shown(camera) {
    this.send({ shown: camera });
  }

  // Ask for a key frame: the next units of H.264 cannot be decoded.
  needsKey(camera) {
    this.send({ lost: camera });
  }

  send(message) {
    if (this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  // Ask the detector about a place; return its answer.
  why(place) {
    return this.question({ why: place });
  }

  // Ask in turn, because the server answers one question of a viewer at a time.
  question(question) {
    const answer = this.turn.then(() => this.ask(question));
    this.turn = answer.then(() => new Promise((resolve) => setTimeout(resolve, INTERVAL_MS)));
    return answer;
  }

  // Send a question; return its answer, which has the key "error" if it failed.
  ask(question) {
    const id = ++this.lastQuestion;
    return new Promise((resolve) => {
      if (this.send({ ...question, id })) this.questions.set(id, resolve);
      else resolve({ error: "there is no connection to the server" });
    });
  }

  async lost() {
    for (const resolve of this.questions.values()) resolve({ error: "the connection to the server was lost" });
    this.questions.clear();
    this.handlers.lost();
    // A WebSocket does not report why it was refused; a plain request shows whether the session has expired.
    const response = await fetch("metrics", { method: "HEAD" }).catch(() => null);
    if (response?.status === 401) location.assign("login");
    setTimeout(() => this.open(), this.retryMs);
    this.retryMs = Math.min(this.retryMs * 2, 3000);
  }
}
