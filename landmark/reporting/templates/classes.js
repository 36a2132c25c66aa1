// All classes: unpacked in the browser, searched and sorted, a hundred rows at a time.
widgets.classes = (place, data) => {
  const columns = [["label", "label"], ["name", "name"], ["training images", "train"], ["images", "images"], ["recall", "recall"], ["precision", "precision"]];
  const step = 100;
  const search = make("input", { type: "search", "aria-label": "Search classes by name or label", placeholder: "name or label" });
  const status = make("span", { role: "status", "aria-live": "polite" }, "unpacking …");
  const body = make("tbody");
  const headers = columns.map(([title, key]) => make("th", { scope: "col", "aria-sort": "none", class: key === "name" ? null : "number" }, make("button", { type: "button" }, title)));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...headers)), body);
  const more = make("button", { type: "button", hidden: true }, "more");
  const region = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "All classes: table" }, table);
  place.append(make("div", { class: "controls" }, make("label", {}, "Search", search), status), region, make("div", { class: "controls" }, more));

  const ready = (values) => {
    const lower = values.name.map((name) => name.toLowerCase());
    let order = values.label.map((_, row) => row);
    let found = order;
    let shown = 0;
    const add = () => {
      for (const row of found.slice(shown, shown + step)) {
        body.append(make("tr", {}, ...columns.map(([, key]) => {
          const value = values[key][row];
          const text = key === "name" ? value : key === "recall" || key === "precision" ? (value === null ? "" : percent(value, 2)) : key === "label" ? String(value) : whole(value);
          return make("td", key === "name" ? {} : { class: "number" }, text);
        })));
      }
      shown = Math.min(found.length, shown + step);
      status.textContent = `${whole(found.length)} of ${whole(values.label.length)} classes, ${whole(shown)} shown`;
      more.hidden = shown >= found.length;
    };
    const filter = () => {
      const words = search.value.trim().toLowerCase();
      found = words === "" ? order : order.filter((row) => lower[row].includes(words) || String(values.label[row]) === words);
      body.replaceChildren();
      shown = 0;
      add();
    };
    headers.forEach((header, place_) => header.querySelector("button").addEventListener("click", () => {
      const key = columns[place_][1];
      const sign = nextSort(header, key === "name" || key === "label" ? "ascending" : "descending");
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
    more.addEventListener("click", add);
    filter();
  };
  const bytes = Uint8Array.from(atob(data.data), (letter) => letter.charCodeAt(0));
  const text = new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  text.then((json) => ready(JSON.parse(json))).catch(() => { status.textContent = "this browser cannot unpack the table; it lies in classes.csv"; });
};
