"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("data").textContent);

  // Sorting: numbers by value, words by their letters; what has no value stays at the end.
  const key = (row, column) => {
    const text = row.cells[column].dataset.sort;
    return text === "" || text === undefined ? null : isNaN(text) ? text : Number(text);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
  }

  // Parallel coordinates.
  const place = document.getElementById("parallel-plot");
  if (!place) return;
  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS(NS, name);
    for (const [each, value] of Object.entries(attributes)) element.setAttribute(each, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const [width, height, left, right, top, bottom] = [1080, 360, 60, 110, 40, 20];
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "parallel coordinates" }, place);
  const x = (column) => left + (column * (width - left - right)) / Math.max(1, data.columns.length - 1);
  const y = (share) => height - bottom - share * (height - top - bottom);
  // Violet, blue, green, yellow: about viridis, but never as dark as a dark page.
  const stops = [[104, 72, 160], [49, 104, 142], [53, 183, 121], [160, 218, 57]];
  const colour = (share) => {
    const at = Math.min(2.999, Math.max(0, share) * 3), low = stops[Math.floor(at)], high = stops[Math.floor(at) + 1];
    return `rgb(${low.map((value, i) => Math.round(value + (high[i] - value) * (at % 1))).join(",")})`;
  };
  const lines = make("g", {}, svg);
  data.columns.forEach((column, number) => {
    make("line", { x1: x(number), x2: x(number), y1: y(0), y2: y(1) }, svg);
    make("text", { x: x(number), y: top - 20, class: "name" }, svg, column.title);
    for (const [share, text] of column.ticks) make("text", { x: x(number) + 5, y: y(share) + 4, class: "tick" }, svg, text);
  });
  const text = document.getElementById("parallel-text");
  const drawn = new Map();
  const rows = new Map([...document.querySelectorAll("tr[data-point]")].map((row) => [row.dataset.point, row]));
  let kept = null;
  const follow = (id) => {
    const now = id ?? kept;
    lines.classList.toggle("following", now !== null);
    for (const [other, line] of drawn) line.classList.toggle("lit", other === now);
    for (const [other, row] of rows) row.classList.toggle("lit", other === now);
    const point = data.points.find((each) => each.id === now);
    text.textContent = point ? point.text : "\u00a0";
    if (point) lines.append(drawn.get(now));
  };
  const keep = (id) => { kept = kept === id ? null : id; follow(id); };
  const hits = make("g", {}, svg);
  for (const point of [...data.points].reverse()) {
    const d = point.shares.map((share, i) => (share === null ? null : `${x(i)},${y(share)}`)).filter(Boolean).join("L");
    const line = make("path", { d: `M${d}`, stroke: colour(point.good), class: point.top ? "line top" : "line" }, lines);
    const hit = make("path", { d: `M${d}`, class: "hit", "data-point": point.id }, hits);
    drawn.set(point.id, line);
    for (const element of [hit, rows.get(point.id)].filter(Boolean)) {
      element.addEventListener("mouseenter", () => follow(point.id));
      element.addEventListener("mouseleave", () => follow(null));
      element.addEventListener("click", () => keep(point.id));
    }
  }
})();
