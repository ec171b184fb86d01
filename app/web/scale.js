// From numbers to places on a track, in percent of its width.

const STEPS = [1, 2, 2.5, 5, 10];
const MARGIN = 0.04;

export function scale(values, ticks = 4) {
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values);
  const room = (high - low || 1) * MARGIN;
  const [from, to] = [low - room, high + room];
  const place = (value) => `${(100 * (value - from)) / (to - from)}%`;
  return { place, ticks: nice(from, to, ticks) };
}

// Round numbers between two, about so many.
function nice(from, to, count) {
  const rough = (to - from) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * STEPS.find((one) => one * power >= rough);
  const first = Math.ceil(from / step);
  const last = Math.floor(to / step);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}
