// Numbers and names as people read them, and the rate that they are made of.

const SIZES = ["bytes", "kB", "MB", "GB", "TB"];

/** 12300000 → "12.3 MB", in powers of 1000 as in the service's options. */
export function bytes(count) {
  let value = count;
  let unit = 0;
  while (value >= 999.5 && unit < SIZES.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits)} ${SIZES[unit]}`;
}

/** 75 → "1 min 15 s"; a duration that nobody can rely on needs no more than two parts. */
export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** Never "100 %" before it is all there. */
export function percent(part, whole) {
  return `${whole > 0 ? Math.floor((100 * part) / whole) : 0} %`;
}

// The same characters as in trioresume/text.py: controls, and what reverses the direction of
// writing, so that "evil\u202egpj.exe" would be shown as "evilexe.jpg".
const CONTROLS = /[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2028\u2029\u2066-\u2069]/g;

/** *text* with a mark in the place of each character that would change how the rest is shown. */
export function printable(text) {
  return text.replace(CONTROLS, "\ufffd");
}

/**
 * Bytes per second over the last seconds.
 *
 * The first sample after a start is where the upload goes on, not what was sent since:
 * a resumed upload must not seem to be fast.
 */
export class Rate {
  static SPAN = 5000; // ms

  #samples = [];

  reset() {
    this.#samples = [];
  }

  get started() {
    return this.#samples.length > 0;
  }

  note(count, now) {
    this.#samples.push([now, count]);
    while (this.#samples.length > 2 && now - this.#samples[1][0] >= Rate.SPAN) this.#samples.shift();
  }

  /** Zero until it can be told. */
  at(now) {
    if (this.#samples.length < 2) return 0;
    const [then, before] = this.#samples[0];
    return (1000 * (this.#samples.at(-1)[1] - before)) / Math.max(now - then, 1);
  }
}
