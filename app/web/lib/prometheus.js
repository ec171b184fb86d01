// Parses the Prometheus text format that /metrics returns, and sums samples.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

export function parseSamples(text) {
  return text.split("\n").flatMap((line) => {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) return [];
    const labels = Object.fromEntries(
      [...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value.replace(/\\(.)/g, "$1")]),
    );
    return [{ name: match[1], labels, value: Number(match[3]) }];
  });
}

// The sum of a metric's samples that carry the given labels.
export function sumSamples(samples, name, labels = {}) {
  const matches = (sample) =>
    sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value);
  return samples.filter(matches).reduce((sum, sample) => sum + sample.value, 0);
}
