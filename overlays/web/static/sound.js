// Two tones when an alarm begins, if the viewer switched sound on. Browsers allow sound after a click or a key only.
const TONES = [880, 660]; // hertz
const SECONDS = 0.18;

export class Sound {
  constructor(button) {
    this.button = button;
    this.context = null;
    this.isOn = localStorage.getItem("sound") === "on";
    button.onclick = () => this.set(!this.isOn, { isHeard: true });
    this.set(this.isOn);
    const resume = () => this.isOn && this.open();
    for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, resume, { once: true });
  }

  set(isOn, { isHeard = false } = {}) {
    this.isOn = isOn;
    localStorage.setItem("sound", isOn ? "on" : "off");
    this.button.setAttribute("aria-pressed", String(isOn));
    this.button.textContent = isOn ? "Sound on" : "Sound off";
    if (isOn && isHeard) this.play();
  }

  open() {
    this.context ??= new AudioContext();
    if (this.context.state === "suspended") this.context.resume();
    return this.context;
  }

  play() {
    if (!this.isOn) return;
    const context = this.open();
    TONES.forEach((hertz, index) => {
      const tone = new OscillatorNode(context, { frequency: hertz });
      const volume = new GainNode(context, { gain: 0.15 });
      tone.connect(volume).connect(context.destination);
      tone.start(context.currentTime + index * SECONDS);
      tone.stop(context.currentTime + (index + 1) * SECONDS);
    });
  }
}
