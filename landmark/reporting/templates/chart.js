// A small line chart. Each line has points ([xs, ys]) and a CSS class.
const niceTicks = (low, high, count) => {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) ticks.push(tick);
  return [ticks, step];
};
const lineChart = (lines, label, isFraction) => {
  const [width, height, left, right, top, bottom] = [420, 240, 48, 12, 10, 34];
  const xs = lines.flatMap((line) => line.points[0]);
  const ys = lines.flatMap((line) => line.points[1]);
  const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  if (!ys.length) return svg;
  const [minX, maxX] = [Math.min(0, ...xs), Math.max(1, ...xs)];
  const spread = Math.max(...ys) - Math.min(...ys) || Math.abs(ys[0]) || 1;
  const minY = Math.max(Math.min(...ys) - 0.06 * spread, Math.min(0, ...ys));
  const maxY = Math.max(...ys) + 0.06 * spread;
  const x = (value) => left + ((value - minX) / (maxX - minX)) * (width - left - right);
  const y = (value) => height - bottom - ((value - minY) / (maxY - minY)) * (height - top - bottom);
  const text = (content, attributes) => {
    const node = make("svg:text", attributes);
    node.textContent = content;
    svg.append(node);
  };
  const [yTicks, yStep] = niceTicks(minY, maxY, 4);
  for (const tick of yTicks) {
    svg.append(make("svg:line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    const digits = Math.max(0, -Math.floor(Math.log10(yStep)));
    const tickLabel = isFraction ? formatPercent(tick, yStep < 0.01 ? 1 : 0) : tick.toFixed(digits);
    text(tickLabel, { x: left - 6, y: y(tick) + 4, "text-anchor": "end" });
  }
  for (const tick of niceTicks(minX, maxX, 6)[0].filter(Number.isInteger)) {
    text(tick, { x: x(tick), y: height - bottom + 16, "text-anchor": "middle" });
  }
  text("epoch", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" });
  for (const { points: [lineXs, lineYs], className } of lines) {
    if (!lineXs.length) continue;
    const commands = lineXs.map(
      (value, index) => `${index ? "L" : "M"}${x(value).toFixed(1)} ${y(lineYs[index]).toFixed(1)}`,
    );
    svg.append(make("svg:path", { class: className, d: commands.join("") }));
    svg.append(make("svg:circle", { class: className, r: 3.5, cx: x(lineXs.at(-1)), cy: y(lineYs.at(-1)) }));
  }
  return svg;
};
