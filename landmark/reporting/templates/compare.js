// The trial comparison: settings, results and curves of two trials.
widgets.compare = (container, data) => {
  const selected = [...data.selected];
  const body = make("div");
  const controls = make("div", { class: "controls" });
  ["a", "b"].forEach((side, index) => {
    const select = make("select", { "aria-label": `Trial ${side.toUpperCase()}` });
    data.trials.forEach((trial, number) => {
      const attributes = { value: number, selected: number === selected[index] };
      select.append(make("option", attributes, `${number + 1}. ${trial.name}`));
    });
    select.addEventListener("change", () => { selected[index] = Number(select.value); show(); });
    controls.append(make("label", {}, make("strong", { class: `key-${side}` }, side.toUpperCase()), select));
  });
  const rowsOf = (pair, group) => {
    const keys = [...new Set(pair.flatMap((trial) => Object.keys(trial[group])))];
    return keys.map((key) => [key, ...pair.map((trial) => trial[group][key] ?? "–")]);
  };
  const show = () => {
    const pair = selected.map((number) => data.trials[number]);
    const status = ["status", ...pair.map((trial) => trial.status)];
    const rows = [...rowsOf(pair, "settings"), status, ...rowsOf(pair, "results")];
    const table = make("table", {}, make("thead", {}, make("tr", {},
      make("th", { scope: "col" }, "setting or result"),
      make("th", { scope: "col", class: "key-a" }, "A"), make("th", { scope: "col", class: "key-b" }, "B"))));
    const tableBody = make("tbody");
    for (const [key, a, b] of rows) {
      const cells = [make("th", { scope: "row" }, key), make("td", {}, a), make("td", {}, b)];
      tableBody.append(make("tr", a !== b ? { class: "differs" } : {}, ...cells));
    }
    table.append(tableBody);
    const lines = make("div", { class: "lines" });
    for (const [name, { title, fraction }] of Object.entries(data.curves)) {
      const curves = pair.map((trial, index) => ({ points: trial.curves[name], className: "ab"[index] }));
      if (!curves.some((curve) => curve.points[0].length)) continue;
      const ends = pair.map((trial) => {
        const value = trial.curves[name][1].at(-1);
        if (value === undefined) return "has no values";
        return `ends at ${fraction ? formatPercent(value) : value}`;
      });
      const label = `${title} per epoch. A, ${pair[0].name}, ${ends[0]}; B, ${pair[1].name}, ${ends[1]}.`;
      lines.append(make("div", {}, make("h4", {}, title), lineChart(curves, label, fraction)));
    }
    const region = make(
      "div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Trial comparison: table" }, table,
    );
    body.replaceChildren(lines, make("h4", {}, "Settings and results"), region);
  };
  container.append(controls, body);
  show();
};
