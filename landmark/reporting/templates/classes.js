// The table of all classes: decompressed in the browser, searchable, sortable, 100 rows at a time.
widgets.classes = (container, data) => {
  const columns = [
    ["label", "label"],
    ["name", "name"],
    ["training images", "train"],
    ["images", "images"],
    ["recall", "recall"],
    ["precision", "precision"],
  ];
  const pageSize = 100;
  const search = make("input", {
    type: "search",
    "aria-label": "Search classes by name or label",
    placeholder: "name or label",
  });
  const status = make("span", { role: "status", "aria-live": "polite" }, "loading …");
  const body = make("tbody");
  const headers = columns.map(([title, key]) => make(
    "th",
    { scope: "col", "aria-sort": "none", class: key === "name" ? null : "number" },
    make("button", { type: "button" }, title),
  ));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...headers)), body);
  const more = make("button", { type: "button", hidden: true }, "show more");
  const region = make(
    "div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "All classes: table" }, table,
  );
  container.append(
    make("div", { class: "controls" }, make("label", {}, "Search", search), status),
    region,
    make("div", { class: "controls" }, more),
  );

  const format = (key, value) => {
    if (key === "name") return value;
    if (key === "label") return String(value);
    if (key === "recall" || key === "precision") return value === null ? "" : formatPercent(value, 2);
    return formatInteger(value);
  };
  const start = (values) => {
    const lowerNames = values.name.map((name) => name.toLowerCase());
    let order = values.label.map((_, row) => row);
    let matches = order;
    let shown = 0;
    const showMore = () => {
      for (const row of matches.slice(shown, shown + pageSize)) {
        const cells = columns.map(
          ([, key]) => make("td", key === "name" ? {} : { class: "number" }, format(key, values[key][row])),
        );
        body.append(make("tr", {}, ...cells));
      }
      shown = Math.min(matches.length, shown + pageSize);
      const counts = [matches.length, values.label.length, shown].map(formatInteger);
      status.textContent = `${counts[0]} of ${counts[1]} classes, ${counts[2]} shown`;
      more.hidden = shown >= matches.length;
    };
    const filter = () => {
      const query = search.value.trim().toLowerCase();
      const isMatch = (row) => lowerNames[row].includes(query) || String(values.label[row]) === query;
      matches = query === "" ? order : order.filter(isMatch);
      body.replaceChildren();
      shown = 0;
      showMore();
    };
    headers.forEach((header, index) => header.querySelector("button").addEventListener("click", () => {
      const key = columns[index][1];
      const sign = toggleSort(header, key === "name" || key === "label" ? "ascending" : "descending");
      const column = values[key];
      const collator = new Intl.Collator("en", { numeric: true });
      order = [...order].sort((a, b) => {
        const [x, y] = [column[a], column[b]];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (key === "name" ? collator.compare(x, y) : x - y);
      });
      filter();
    }));
    search.addEventListener("input", filter);
    more.addEventListener("click", showMore);
    filter();
  };
  const bytes = Uint8Array.from(atob(data.data), (character) => character.charCodeAt(0));
  const text = new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  text.then((json) => start(JSON.parse(json))).catch(() => {
    status.textContent = "This browser cannot decompress the table. Open classes.csv instead.";
  });
};
