// Two trials side by side: their settings, what they reached, their curves.
widgets.compare = (place, data) => {
  const chosen = [...data.chosen];
  const body = make("div");
  const controls = make("div", { class: "controls" });
  ["a", "b"].forEach((kind, side) => {
    const select = make("select", { "aria-label": `Run ${kind.toUpperCase()}` });
    data.trials.forEach((trial, number) => {
      select.append(make("option", { value: number, selected: number === chosen[side] }, `${number + 1}. ${trial.name}`));
    });
    select.addEventListener("change", () => { chosen[side] = Number(select.value); show(); });
    controls.append(make("label", {}, make("strong", { class: `key-${kind}` }, kind.toUpperCase()), select));
  });
  const rowsOf = (pair, part) => {
    const keys = [...new Set(pair.flatMap((trial) => Object.keys(trial[part])))];
    return keys.map((key) => [key, ...pair.map((trial) => trial[part][key] ?? "–")]);
  };
  const show = () => {
    const pair = chosen.map((number) => data.trials[number]);
    const rows = [...rowsOf(pair, "settings"), ["status", ...pair.map((trial) => trial.status)], ...rowsOf(pair, "results")];
    const table = make("table", {}, make("thead", {}, make("tr", {},
      make("th", { scope: "col" }, "setting or result"),
      make("th", { scope: "col", class: "key-a" }, "A"), make("th", { scope: "col", class: "key-b" }, "B"))));
    const list = make("tbody");
    for (const [key, a, b] of rows) {
      const row = make("tr", a !== b ? { class: "differs" } : {}, make("th", { scope: "row" }, key), make("td", {}, a), make("td", {}, b));
      list.append(row);
    }
    table.append(list);
    const lines = make("div", { class: "lines" });
    for (const [name, { title, share }] of Object.entries(data.curves)) {
      const curves = pair.map((trial, side) => ({ points: trial.curves[name], kind: "ab"[side] }));
      if (!curves.some((curve) => curve.points[0].length)) continue;
      const ends = pair.map((trial) => trial.curves[name][1].at(-1)).map((value) => (value === undefined ? "nothing" : share ? percent(value) : value));
      const label = `${title} over epochs. A, ${pair[0].name}, ends at ${ends[0]}; B, ${pair[1].name}, ends at ${ends[1]}.`;
      lines.append(make("div", {}, make("h4", {}, title), lineChart(curves, label, share)));
    }
    const region = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Two runs side by side: table" }, table);
    body.replaceChildren(lines, make("h4", {}, "Settings and results"), region);
  };
  place.append(controls, body);
  show();
};
