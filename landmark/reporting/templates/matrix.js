// The confusion matrix: sorting, clustering and zooming by mouse, touch and keyboard.
widgets.matrix = (container, data) => {
  const size = data.names.length;
  const canvas = make("canvas", { tabindex: 0, role: "application", "aria-roledescription": "confusion matrix" });
  const colorProbe = make("span", { class: "color-probe", hidden: true });
  const status = make("p", { class: "cell", role: "status", "aria-live": "polite" });
  const counts = new Map();
  for (let index = 0; index < data.cells.length; index += 3) {
    counts.set(data.cells[index] * size + data.cells[index + 1], data.cells[index + 2]);
  }
  const labels = [...Array(size).keys()];
  const sortedBy = (compare) => [...labels].sort(compare);
  const orders = {
    label: labels,
    name: sortedBy((a, b) => data.names[a].localeCompare(data.names[b], "en", { numeric: true })),
    "training images": sortedBy((a, b) => data.train[b] - data.train[a]),
    "images": sortedBy((a, b) => data.images[b] - data.images[a]),
    "recall, lowest first": sortedBy((a, b) => (data.recall[a] ?? 2) - (data.recall[b] ?? 2)),
    "similarity (clustered)": data.clustered,
  };
  let order = data.clustered;
  let cursor = [0, 0];
  let view = { x: 0, y: 0, cells: size };
  let errorsOnly = false;

  const themeColors = () => {
    const parse = (element, property) =>
      getComputedStyle(element)[property].match(/[\d.]+/g).slice(0, 3).map(Number);
    colorProbe.hidden = false;
    const colors = {
      foreground: parse(canvas, "color"),
      background: parse(canvas, "backgroundColor"),
      accent: parse(colorProbe, "color"),
    };
    colorProbe.hidden = true;
    return colors;
  };
  const css = (rgb, alpha = 1) => `rgba(${rgb.join(",")},${alpha})`;
  const layout = (width) => {
    const margin = view.cells <= 60 ? Math.min(190, width * 0.28) : 26;
    return { margin, cell: (width - margin - 6) / view.cells };
  };
  const draw = () => {
    const width = canvas.clientWidth;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(width * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const { foreground, background, accent } = themeColors();
    const { margin, cell } = layout(width);
    context.fillStyle = css(background);
    context.fillRect(0, 0, width, width);
    context.save();
    context.beginPath();
    context.rect(margin, margin, width - margin - 6, width - margin - 6);
    context.clip();
    context.fillStyle = css(foreground, 0.04);
    context.fillRect(margin, margin, width, width);
    const visible = (start) => [
      Math.max(0, Math.floor(start)),
      Math.min(size, Math.ceil(start + view.cells) + 1),
    ];
    const [[top, bottom], [left, right]] = [visible(view.y), visible(view.x)];
    const gap = cell > 7 ? 0.5 : 0;
    for (let row = top; row < bottom; row += 1) {
      for (let column = left; column < right; column += 1) {
        const count = counts.get(order[row] * size + order[column]);
        const [x, y] = [margin + (column - view.x) * cell, margin + (row - view.y) * cell];
        if (row === column && gap) {
          context.fillStyle = css(foreground, 0.07);
          context.fillRect(x, y, cell, cell);
        }
        if (!count || (errorsOnly && row === column)) continue;
        const fraction = count / data.support[order[row]];
        // The square root makes rare confusions visible.
        context.fillStyle = css(accent, 0.12 + 0.88 * Math.sqrt(fraction));
        context.fillRect(x + gap, y + gap, Math.max(cell - 2 * gap, 1), Math.max(cell - 2 * gap, 1));
        if (cell > 26) {
          context.fillStyle = css(fraction > 0.3 ? background : foreground);
          context.font = "11px system-ui, sans-serif";
          context.textAlign = "center";
          context.textBaseline = "middle";
          context.fillText(count, x + cell / 2, y + cell / 2);
        }
      }
    }
    const [cursorX, cursorY] = [margin + (cursor[1] - view.x) * cell, margin + (cursor[0] - view.y) * cell];
    context.strokeStyle = css(foreground);
    context.lineWidth = 2;
    context.strokeRect(cursorX, cursorY, Math.max(cell, 3), Math.max(cell, 3));
    context.restore();
    context.fillStyle = css(foreground);
    context.textBaseline = "middle";
    context.font = `${Math.max(8, Math.min(12, cell * 0.9))}px system-ui, sans-serif`;
    if (view.cells <= 60) {
      const truncate = (name) => {
        let text = name;
        while (text.length > 3 && context.measureText(text).width > margin - 10) text = text.slice(0, -2);
        return text.length < name.length ? text + "…" : text;
      };
      context.textAlign = "right";
      for (let row = top; row < bottom; row += 1) {
        const y = margin + (row + 0.5 - view.y) * cell;
        if (y > margin && y < width - 6) context.fillText(truncate(data.names[order[row]]), margin - 5, y);
      }
      context.textAlign = "left";
      for (let column = left; column < right; column += 1) {
        const x = margin + (column + 0.5 - view.x) * cell;
        if (x < margin || x > width - 6) continue;
        context.save();
        context.translate(x, margin - 5);
        context.rotate(-Math.PI / 2);
        context.fillText(truncate(data.names[order[column]]), 0, 0);
        context.restore();
      }
    } else {
      context.font = "12px system-ui, sans-serif";
      context.textAlign = "center";
      context.fillText("predicted class →", width / 2, 13);
      context.save();
      context.translate(13, width / 2);
      context.rotate(-Math.PI / 2);
      context.fillText("← true class", 0, 0);
      context.restore();
    }
  };
  const updateStatus = () => {
    const [row, column] = cursor.map((position) => order[position]);
    const [count, support] = [counts.get(row * size + column) ?? 0, data.support[row]];
    const ratio = `${formatInteger(count)} of ${formatInteger(support)}`;
    const percent = support ? ` (${formatPercent(count / support)})` : "";
    status.textContent = row === column
      ? `${data.names[row]}: ${ratio} correct${percent}; ${formatInteger(data.train[row])} training images.`
      : `${data.names[row]} predicted as ${data.names[column]}: ${ratio}${percent}.`;
    canvas.setAttribute("aria-label", `Confusion matrix of ${size} classes. ${status.textContent}`);
  };
  const clampZoom = (cells) => Math.max(Math.min(5, size), Math.min(size, cells));
  const clampView = () => {
    view.cells = clampZoom(view.cells);
    view.x = Math.max(0, Math.min(size - view.cells, view.x));
    view.y = Math.max(0, Math.min(size - view.cells, view.y));
  };
  const zoom = (factor, row = cursor[0] + 0.5, column = cursor[1] + 0.5) => {
    const [fromTop, fromLeft] = [(row - view.y) / view.cells, (column - view.x) / view.cells];
    view.cells = clampZoom(view.cells * factor);
    view.y = row - fromTop * view.cells;
    view.x = column - fromLeft * view.cells;
    clampView();
    draw();
  };
  const resetZoom = () => { view = { x: 0, y: 0, cells: size }; draw(); };
  const scrollToCursor = () => {
    const center = (position) => position + 0.5 - view.cells / 2;
    if (cursor[0] < view.y || cursor[0] + 1 > view.y + view.cells) view.y = center(cursor[0]);
    if (cursor[1] < view.x || cursor[1] + 1 > view.x + view.cells) view.x = center(cursor[1]);
    clampView();
  };
  const showCursor = () => {
    scrollToCursor();
    updateStatus();
    draw();
  };
  // The row and column at a position on the screen, with fractions.
  const cellAt = ({ clientX, clientY }) => {
    const box = canvas.getBoundingClientRect();
    const { margin, cell } = layout(canvas.clientWidth);
    return [view.y + (clientY - box.top - margin) / cell, view.x + (clientX - box.left - margin) / cell];
  };
  const selectCellAt = (event) => {
    const [row, column] = cellAt(event).map(Math.floor);
    if (row < 0 || column < 0 || row >= size || column >= size) return;
    cursor = [row, column];
    updateStatus();
    draw();
  };
  const pointers = new Map();
  let pinchDistance = null;
  canvas.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
    pinchDistance = null;
    selectCellAt(event);
  });
  for (const type of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(type, (event) => { pointers.delete(event.pointerId); pinchDistance = null; });
  }
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") selectCellAt(event);
      return;
    }
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) {
      const [first, second] = [...pointers.values()];
      const distance = Math.hypot(first.clientX - second.clientX, first.clientY - second.clientY);
      const middle = {
        clientX: (first.clientX + second.clientX) / 2,
        clientY: (first.clientY + second.clientY) / 2,
      };
      if (pinchDistance) zoom(pinchDistance / distance, ...cellAt(middle));
      pinchDistance = distance;
      return;
    }
    const { cell } = layout(canvas.clientWidth);
    view.x -= (event.clientX - before.clientX) / cell;
    view.y -= (event.clientY - before.clientY) / cell;
    clampView();
    draw();
  });
  canvas.addEventListener("wheel", (event) => {
    // The wheel scrolls the page until the matrix has the focus.
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, ...cellAt(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = moves[event.key];
    if (move) cursor = cursor.map((value, axis) => Math.max(0, Math.min(size - 1, value + move[axis])));
    else if (event.key === "Home") cursor = [0, 0];
    else if (event.key === "End") cursor = [size - 1, size - 1];
    else if (event.key === "+" || event.key === "=") return zoom(1 / 1.4);
    else if (event.key === "-") return zoom(1.4);
    else if (event.key === "0") return resetZoom();
    else return;
    event.preventDefault();
    showCursor();
  });

  const select = make("select", {});
  for (const name of Object.keys(orders)) {
    select.append(make("option", { selected: orders[name] === order }, name));
  }
  select.addEventListener("change", () => {
    const [row, column] = cursor.map((position) => order[position]);
    order = orders[select.value];
    cursor = [order.indexOf(row), order.indexOf(column)];
    showCursor();
  });
  const makeButton = (text, label, action) => {
    const button = make("button", { type: "button", "aria-label": label }, text);
    button.addEventListener("click", action);
    return button;
  };
  const errorsButton = makeButton("errors only", "show errors only", () => {
    errorsOnly = !errorsOnly;
    errorsButton.setAttribute("aria-pressed", errorsOnly);
    draw();
  });
  errorsButton.setAttribute("aria-pressed", false);
  container.append(
    make("div", { class: "controls" },
      make("label", {}, "Order by", select),
      makeButton("+", "zoom in", () => zoom(1 / 1.4)),
      makeButton("−", "zoom out", () => zoom(1.4)),
      makeButton("reset", "reset zoom", resetZoom),
      errorsButton),
    make("div", { class: "matrix" }, canvas, colorProbe),
    status,
  );
  repaints.push(draw);
  new ResizeObserver(draw).observe(canvas);
  addEventListener("beforeprint", draw);
  updateStatus();
};
