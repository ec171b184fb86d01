// The server's own numbers: Prometheus' text format → samples, and sums over them.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

export function samples(text) {
  return text.split("\n").flatMap((line) => {
    const found = line.startsWith("#") ? null : LINE.exec(line);
    if (!found) return [];
    const labels = Object.fromEntries(
      [...(found[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value.replace(/\\(.)/g, "$1")]),
    );
    return [{ name: found[1], labels, value: Number(found[3]) }];
  });
}

// Of one series, all samples whose labels are these, together.
export function total(found, name, labels = {}) {
  const fits = (one) => one.name === name && Object.entries(labels).every(([key, value]) => one.labels[key] === value);
  return found.filter(fits).reduce((sum, one) => sum + one.value, 0);
}
