// The confusion matrix: sorted, clustered, zoomed; by mouse, touch and keyboard.
widgets.matrix = (place, data) => {
  const size = data.names.length;
  const canvas = make("canvas", { tabindex: 0, role: "application", "aria-roledescription": "confusion matrix" });
  const probe = make("span", { class: "probe", hidden: true });
  const told = make("p", { class: "cell", role: "status", "aria-live": "polite" });
  const counts = new Map();
  for (let at = 0; at < data.cells.length; at += 3) counts.set(data.cells[at] * size + data.cells[at + 1], data.cells[at + 2]);
  const range = [...Array(size).keys()];
  const orders = {
    label: range,
    name: [...range].sort((a, b) => data.names[a].localeCompare(data.names[b], "en", { numeric: true })),
    "training images": [...range].sort((a, b) => data.train[b] - data.train[a]),
    "images": [...range].sort((a, b) => data.sizes[b] - data.sizes[a]),
    "recall, worst first": [...range].sort((a, b) => (data.recall[a] ?? 2) - (data.recall[b] ?? 2)),
    "similarity (clustered)": data.clustered,
  };
  let order = data.clustered;
  let cursor = [0, 0];
  let view = { x: 0, y: 0, cells: size };
  let mistakesOnly = false;

  const colours = () => {
    const parse = (element, property) => getComputedStyle(element)[property].match(/[\d.]+/g).slice(0, 3).map(Number);
    probe.hidden = false;
    const found = { ink: parse(canvas, "color"), ground: parse(canvas, "backgroundColor"), accent: parse(probe, "color") };
    probe.hidden = true;
    return found;
  };
  const css = (rgb, alpha = 1) => `rgba(${rgb.join(",")},${alpha})`;
  const layout = (wide) => {
    const labels = view.cells <= 60 ? Math.min(190, wide * 0.28) : 26;
    return { labels, cell: (wide - labels - 6) / view.cells };
  };
  const draw = () => {
    const wide = canvas.clientWidth;
    if (!wide) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(wide * ratio);
    const paint = canvas.getContext("2d");
    paint.scale(ratio, ratio);
    const { ink, ground, accent } = colours();
    const { labels, cell } = layout(wide);
    paint.fillStyle = css(ground);
    paint.fillRect(0, 0, wide, wide);
    paint.save();
    paint.beginPath();
    paint.rect(labels, labels, wide - labels - 6, wide - labels - 6);
    paint.clip();
    paint.fillStyle = css(ink, 0.04);
    paint.fillRect(labels, labels, wide, wide);
    const seen = (start) => [Math.max(0, Math.floor(start)), Math.min(size, Math.ceil(start + view.cells) + 1)];
    const [[top, bottom], [left, right]] = [seen(view.y), seen(view.x)];
    const gap = cell > 7 ? 0.5 : 0;
    for (let row = top; row < bottom; row += 1) {
      for (let column = left; column < right; column += 1) {
        const count = counts.get(order[row] * size + order[column]);
        const [x, y] = [labels + (column - view.x) * cell, labels + (row - view.y) * cell];
        if (row === column && gap) { paint.fillStyle = css(ink, 0.07); paint.fillRect(x, y, cell, cell); }
        if (!count || (mistakesOnly && row === column)) continue;
        const share = count / data.support[order[row]];
        // The square root shows rare confusions too.
        paint.fillStyle = css(accent, 0.12 + 0.88 * Math.sqrt(share));
        paint.fillRect(x + gap, y + gap, Math.max(cell - 2 * gap, 1), Math.max(cell - 2 * gap, 1));
        if (cell > 26) {
          paint.fillStyle = css(share > 0.3 ? ground : ink);
          paint.font = "11px system-ui, sans-serif";
          paint.textAlign = "center";
          paint.textBaseline = "middle";
          paint.fillText(count, x + cell / 2, y + cell / 2);
        }
      }
    }
    paint.strokeStyle = css(ink);
    paint.lineWidth = 2;
    paint.strokeRect(labels + (cursor[1] - view.x) * cell, labels + (cursor[0] - view.y) * cell, Math.max(cell, 3), Math.max(cell, 3));
    paint.restore();
    paint.fillStyle = css(ink);
    paint.textBaseline = "middle";
    paint.font = `${Math.max(8, Math.min(12, cell * 0.9))}px system-ui, sans-serif`;
    if (view.cells <= 60) {
      const fit = (name) => {
        let text = name;
        while (text.length > 3 && paint.measureText(text).width > labels - 10) text = text.slice(0, -2);
        return text.length < name.length ? text + "…" : text;
      };
      paint.textAlign = "right";
      for (let row = top; row < bottom; row += 1) {
        const y = labels + (row + 0.5 - view.y) * cell;
        if (y > labels && y < wide - 6) paint.fillText(fit(data.names[order[row]]), labels - 5, y);
      }
      paint.textAlign = "left";
      for (let column = left; column < right; column += 1) {
        const x = labels + (column + 0.5 - view.x) * cell;
        if (x < labels || x > wide - 6) continue;
        paint.save();
        paint.translate(x, labels - 5);
        paint.rotate(-Math.PI / 2);
        paint.fillText(fit(data.names[order[column]]), 0, 0);
        paint.restore();
      }
    } else {
      paint.font = "12px system-ui, sans-serif";
      paint.textAlign = "center";
      paint.fillText("answer →", wide / 2, 13);
      paint.save();
      paint.translate(13, wide / 2);
      paint.rotate(-Math.PI / 2);
      paint.fillText("← true class", 0, 0);
      paint.restore();
    }
  };
  const tell = () => {
    const [row, column] = cursor.map((at) => order[at]);
    const count = counts.get(row * size + column) ?? 0;
    const share = data.support[row] ? ` (${percent(count / data.support[row])})` : "";
    told.textContent = row === column
      ? `${data.names[row]}: ${whole(count)} of ${whole(data.support[row])} right${share}; ${whole(data.train[row])} training images.`
      : `${data.names[row]} taken for ${data.names[column]}: ${whole(count)} of ${whole(data.support[row])}${share}.`;
    canvas.setAttribute("aria-label", `Confusion matrix of ${size} classes. ${told.textContent}`);
  };
  const limit = () => {
    view.cells = Math.max(Math.min(5, size), Math.min(size, view.cells));
    view.x = Math.max(0, Math.min(size - view.cells, view.x));
    view.y = Math.max(0, Math.min(size - view.cells, view.y));
  };
  const zoom = (factor, row = cursor[0] + 0.5, column = cursor[1] + 0.5) => {
    const [fromTop, fromLeft] = [(row - view.y) / view.cells, (column - view.x) / view.cells];
    view.cells = Math.max(Math.min(5, size), Math.min(size, view.cells * factor));
    view.y = row - fromTop * view.cells;
    view.x = column - fromLeft * view.cells;
    limit();
    draw();
  };
  const reveal = () => {
    if (cursor[0] < view.y || cursor[0] + 1 > view.y + view.cells) view.y = cursor[0] + 0.5 - view.cells / 2;
    if (cursor[1] < view.x || cursor[1] + 1 > view.x + view.cells) view.x = cursor[1] + 0.5 - view.cells / 2;
    limit();
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const { labels, cell } = layout(canvas.clientWidth);
    return [view.y + (event.clientY - box.top - labels) / cell, view.x + (event.clientX - box.left - labels) / cell];
  };
  const point = (event) => {
    const [row, column] = at(event).map(Math.floor);
    if (row < 0 || column < 0 || row >= size || column >= size) return;
    cursor = [row, column];
    tell();
    draw();
  };
  const fingers = new Map();
  let pinch = null;
  canvas.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); pinch = null; point(event); });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => { fingers.delete(event.pointerId); pinch = null; });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) { if (event.pointerType === "mouse") point(event); return; }
    fingers.set(event.pointerId, event);
    if (fingers.size === 2) {
      const [one, two] = [...fingers.values()];
      const apart = Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY);
      if (pinch) zoom(pinch / apart, ...at({ clientX: (one.clientX + two.clientX) / 2, clientY: (one.clientY + two.clientY) / 2 }));
      pinch = apart;
      return;
    }
    const { cell } = layout(canvas.clientWidth);
    view.x -= (event.clientX - before.clientX) / cell;
    view.y -= (event.clientY - before.clientY) / cell;
    limit();
    draw();
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls until the matrix is chosen
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, ...at(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key]) cursor = cursor.map((value, axis) => Math.max(0, Math.min(size - 1, value + moves[event.key][axis])));
    else if (event.key === "Home") cursor = [0, 0];
    else if (event.key === "End") cursor = [size - 1, size - 1];
    else if (event.key === "+" || event.key === "=") return zoom(1 / 1.4);
    else if (event.key === "-") return zoom(1.4);
    else if (event.key === "0") return reset();
    else return;
    event.preventDefault();
    reveal();
    tell();
    draw();
  });
  const reset = () => { view = { x: 0, y: 0, cells: size }; draw(); };

  const select = make("select", {});
  for (const name of Object.keys(orders)) select.append(make("option", { selected: orders[name] === order }, name));
  select.addEventListener("change", () => {
    const [row, column] = cursor.map((value) => order[value]);
    order = orders[select.value];
    cursor = [order.indexOf(row), order.indexOf(column)];
    reveal();
    tell();
    draw();
  });
  const button = (text, label, action) => {
    const made = make("button", { type: "button", "aria-label": label }, text);
    made.addEventListener("click", action);
    return made;
  };
  const only = button("mistakes only", "show mistakes only", () => {
    mistakesOnly = !mistakesOnly;
    only.setAttribute("aria-pressed", mistakesOnly);
    draw();
  });
  only.setAttribute("aria-pressed", false);
  place.append(
    make("div", { class: "controls" }, make("label", {}, "Order by", select), button("+", "zoom in", () => zoom(1 / 1.4)),
      button("−", "zoom out", () => zoom(1.4)), button("whole", "show the whole matrix", reset), only),
    make("div", { class: "matrix" }, canvas, probe), told,
  );
  repaints.push(draw);
  new ResizeObserver(draw).observe(canvas);
  addEventListener("beforeprint", draw);
  tell();
};
