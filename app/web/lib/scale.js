// A linear scale from numbers to positions on a track, in percent of its width.

const STEP_FACTORS = [1, 2, 2.5, 5, 10];
const MARGIN = 0.04;

export function createScale(values, tickCount = 4) {
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values);
  const margin = (high - low || 1) * MARGIN;
  const [from, to] = [low - margin, high + margin];
  const position = (value) => `${(100 * (value - from)) / (to - from)}%`;
  return { position, ticks: roundTicks(from, to, tickCount) };
}

// About `count` round numbers between two bounds.
function roundTicks(from, to, count) {
  const roughStep = (to - from) / count;
  const power = 10 ** Math.floor(Math.log10(roughStep));
  const step = power * STEP_FACTORS.find((factor) => factor * power >= roughStep);
  const first = Math.ceil(from / step);
  const last = Math.floor(to / step);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}
