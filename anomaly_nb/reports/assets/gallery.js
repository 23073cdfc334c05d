"use strict";
// The gallery of runs. Everything a record says reaches the page as text, never as markup.
// The view (filters, order, chosen runs) is kept in the address after "#", so that it can be shared and gone back to.

const { runs, origins, told, words } = JSON.parse(document.getElementById("records").textContent);
const $ = (id) => document.getElementById(id);
const MOST = 4; // runs side by side
const LETTERS = "ABCD";
const EMPTY = { q: "", report: "", data: "", method: "", status: "", metric: "", side: "min", limit: "", sort: "", turned: "", pick: [], show: [] };
let state = { ...EMPTY };

// ---------------------------------------------------------------- elements

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A value as a dot, its interval as a bar, on the scale from `from` to `to`.
function dot({ value, low, high }, from, to) {
  const x = (v) => (6 + 108 * (to > from ? Math.min(1, Math.max(0, (v - from) / (to - from))) : 0.5)).toFixed(1);
  const parts = [svg("line", { class: "axis", x1: 6, x2: 114, y1: 6, y2: 6 })];
  if (low !== null && high !== null) parts.push(svg("line", { class: "range", x1: x(low), x2: x(high), y1: 6, y2: 6 }));
  parts.push(svg("circle", { cx: x(value), cy: 6, r: 3.6 }));
  return svg("svg", { class: "dot", viewBox: "0 0 120 12", "aria-hidden": "true" }, ...parts);
}

// ---------------------------------------------------------------- what the records hold

const isNumber = (v) => typeof v === "number";
const plain = (v) => (v === null || v === undefined ? "" : typeof v === "string" ? v : JSON.stringify(v));
const file = (run, ...parts) => ["runs", run.folder, ...parts].map(encodeURIComponent).join("/");
const byFolder = new Map(runs.map((run, i) => [run.folder, Object.assign(run, { order: i })]));

// A metric's key as words, and which way it is better.
const say = (name) => words[name]?.[0] ?? name;
const direction = (name) => words[name]?.[1] ?? "";

const metricNames = new Map(); // name -> { runs, fractional, from, to }
for (const run of runs) {
  for (const [name, value] of Object.entries(run.metrics)) {
    if (bound(run, name)) continue;
    const about = metricNames.get(name) || { runs: 0, fractional: false, from: Infinity, to: -Infinity };
    about.runs += 1;
    if (isNumber(value)) {
      const { low, high } = figure(run, name);
      about.fractional ||= !Number.isInteger(value) || direction(name) === "higher is better";
      about.from = Math.min(about.from, value, low ?? value);
      about.to = Math.max(about.to, value, high ?? value);
    }
    metricNames.set(name, about);
  }
}

function bound(run, name) { // is this metric the end of another one's interval?
  const base = name.replace(/_(low|high)$/, "");
  return base !== name && base in run.metrics;
}

function figure(run, name) {
  const value = run.metrics[name];
  const end = (side) => (isNumber(run.metrics[`${name}_${side}`]) ? run.metrics[`${name}_${side}`] : null);
  return { name, value: value === undefined ? null : value, low: end("low"), high: end("high") };
}

function number(value, fractional = true, decimals = 4) {
  if (!isNumber(value)) return plain(value);
  if (!fractional) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e4 || (size > 0 && size < 1e-6)) return value.toExponential(2);
  return size > 0 && size < 0.01 && decimals > 1 ? value.toFixed(1 - Math.floor(Math.log10(size)) + 1) : value.toFixed(decimals); // three digits that tell something
}

const asText = (name, value) => number(value, metricNames.get(name)?.fractional);
const interval = ({ low, high }) => (low === null || high === null ? "" : `${number(low, true, 3)} – ${number(high, true, 3)}`);

function duration(seconds) {
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// Parameters in which runs of one report differ, apart from those told as data or method.
const varying = new Map();
for (const report of new Set(runs.map((r) => r.report))) {
  const same = runs.filter((r) => r.report === report);
  const names = [...new Set(same.flatMap((r) => Object.keys(r.parameters)))];
  varying.set(report, names.filter((n) => new Set(same.map((r) => plain(r.parameters[n]))).size > 1));
}
const differs = (run) => varying.get(run.report).filter((n) => !told.includes(n) && plain(run.parameters[n]) !== "").map((n) => [n, plain(run.parameters[n])]);
const facet = (run, kind) => run[kind].map(([, values]) => values.join(", ")).join(" · ");
const spaced = (text) => text.slice(0, 1).toUpperCase() + text.slice(1).replaceAll("_", " ");
const shape = (run) => ["ok", "running"].includes(run.status) ? run.status : "failed";  // crashed, damaged: failures too
const title = (run) => spaced(run.report);

for (const run of runs) {
  const settings = Object.entries(run.parameters).map(([name, value]) => `${name}=${plain(value)}`);
  run.text = [run.verdict, run.report, title(run), run.id, run.folder, run.status, run.error, run.started, ...settings, ...Object.values(run.about).map(plain), ...Object.keys(run.metrics), ...Object.keys(run.metrics).map(say)].join("\n").toLowerCase();
}

// ---------------------------------------------------------------- filters and order

const shownMetric = (run) => figure(run, state.metric || run.main || "");

const FILTERS = {
  q: (run) => state.q.toLowerCase().split(/\s+/).every((word) => run.text.includes(word)),
  report: (run) => run.report === state.report,
  data: (run) => has(run.data, state.data),
  method: (run) => has(run.method, state.method),
  status: (run) => run.status === state.status,
  limit: (run) => {
    const { value } = shownMetric(run);
    return isNumber(value) && (state.side === "max" ? value <= Number(state.limit) : value >= Number(state.limit));
  },
  metric: (run) => run.metrics[state.metric] !== undefined || run.status !== "ok",
};

function has(values, wanted) { // wanted is "name:value"
  const cut = wanted.indexOf(":");
  return values.some(([kind, list]) => kind === wanted.slice(0, cut) && list.includes(wanted.slice(cut + 1)));
}

function matching(except = "") {
  const active = Object.keys(FILTERS).filter((name) => name !== except && state[name] !== "");
  return runs.filter((run) => active.every((name) => FILTERS[name](run)));
}

const COLUMNS = {
  run: { label: "Run", value: (run) => `${run.report} ${run.folder}` },
  data: { label: "Data", value: (run) => facet(run, "data") },
  method: { label: "Method", value: (run) => facet(run, "method") },
  metric: { label: "Metric", value: (run) => shownMetric(run).value, down: true },
  started: { label: "Started", value: (run) => run.started, down: true },
  seconds: { label: "Took", value: (run) => run.seconds, down: true },
};

function sorted(list) {
  const column = COLUMNS[state.sort];
  const side = state.turned ? -1 : 1;
  if (!column) return side === 1 ? list : [...list].reverse();
  const way = side * (column.down ? -1 : 1);
  const keyed = list.map((run) => [column.value(run), run]);
  const missing = (v) => v === null || v === undefined || v === "";
  keyed.sort(([a, one], [b, two]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b) || one.order - two.order;
    const order = isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return way * order || one.order - two.order;
  });
  return keyed.map(([, run]) => run);
}

// ---------------------------------------------------------------- the table

function row(run) {
  const box = el("input", { type: "checkbox", "aria-label": `Compare ${name(run)}`, onchange: () => choose(run, box.checked) });
  const opens = run.files.includes("report.html");
  const shot = run.cover !== null && el("img", { src: `thumbs/${encodeURIComponent(`${run.folder}.jpg`)}`, alt: run.cover, width: 120, height: 75, loading: "lazy", decoding: "async" });
  const about = differs(run).slice(0, 6).flatMap(([n, v], i) => [i ? " · " : "", `${n} `, el("b", {}, v.length > 48 ? `${v.slice(0, 47)}…` : v)]);
  const cell = (kind, label, ...inside) => el("td", { class: kind, role: "cell", "data-label": label }, ...inside);
  run.box = box;
  run.valueCell = cell("value", "");
  run.row = el("tr", { role: "row", class: shape(run) },
    cell("pick", "", el("label", {}, box)),
    cell("shot", "", shot),
    cell("run", "",
      el("div", { class: "name" },
        opens ? el("a", { href: file(run, "report.html") }, title(run)) : title(run),
        run.status !== "ok" && el("span", { class: `status ${shape(run)}` }, run.status)),
      run.verdict && el("p", { class: "told" }, run.verdict),
      about.length > 0 && el("div", { class: "varies" }, ...about),
      run.error && el("div", { class: "error" }, el("span", { class: "clamp" }, run.error)),
      el("button", { type: "button", class: "plain", onclick: () => open([run.folder]) }, "Details", el("span", { class: "aside" }, ` of ${name(run)}`))),
    cell("data", "Data", ...clamped(facet(run, "data"))),
    cell("method", "Method", ...clamped(facet(run, "method"))),
    run.valueCell,
    cell("when", "Started", run.started && el("time", { datetime: run.started, title: `${run.started} (UTC)` }, run.started.slice(0, 16).replace("T", " "))),
    cell("took", "Took", run.status === "running" ? "" : duration(run.seconds)));
  return run.row;
}

const clamped = (text) => (text ? [el("span", { class: "clamp", title: text.length > 60 ? text : null }, text)] : []);
const name = (run) => [title(run), facet(run, "data"), run.id || run.folder].filter(Boolean).join(" ");

function fillValue(run) {
  const shown = shownMetric(run);
  run.valueFor = state.metric;
  if (shown.value === null) return run.valueCell.replaceChildren();
  const about = metricNames.get(shown.name);
  const [from, to] = state.metric ? [about.from, about.to] : [0, 1];
  const drawn = isNumber(shown.value) && about.fractional && (state.metric || (about.from >= 0 && about.to <= 1));
  run.valueCell.replaceChildren(
    ...(state.metric ? [] : [el("span", { class: "of" }, [say(shown.name), direction(shown.name)].filter(Boolean).join(", "))]),
    el("span", { class: "number" }, asText(shown.name, shown.value)),
    ...(interval(shown) ? [el("span", { class: "between", title: "95 % interval as the report states it" }, interval(shown))] : []),
    ...(drawn ? [dot(shown, from, to)] : []));
}

function head() {
  const cells = Object.entries(COLUMNS).map(([key, column]) => {
    const sort = state.sort === key ? (Boolean(column.down) !== Boolean(state.turned) ? "descending" : "ascending") : null;
    const about = key === "metric" && state.metric && metricNames.get(state.metric);
    const kind = { run: "run", metric: "value", started: "when", seconds: "took" }[key] || key;
    return el("th", { scope: "col", role: "columnheader", class: kind, "aria-sort": sort },
      el("button", { type: "button", "data-sort": key, onclick: () => order(key) }, key === "metric" && state.metric ? say(state.metric) : column.label),
      about && about.fractional && el("span", { class: "scale", "aria-hidden": "true" }, el("span", {}, number(about.from, true, 2)), el("span", {}, number(about.to, true, 2))));
  });
  const hidden = (text, kind) => el("th", { scope: "col", role: "columnheader", class: kind }, el("span", { class: "aside" }, text));
  return el("tr", { role: "row" }, hidden("Compare", "pick"), hidden("Image", "shot"), ...cells);
}

const body = el("tbody", { role: "rowgroup" });
const heading = el("thead", { role: "rowgroup" });
const table = el("table", { class: "runs", role: "table", "aria-label": "Runs" }, heading, body);
const nothing = el("p", { class: "nothing" }, "No run matches.");

// Rows come a part at a time, the first at once, so that a thousand runs do not keep anybody waiting.
const PART = 100;
let drawn = { list: [], metric: "" };

function draw(list) {
  const mine = (drawn = { list, metric: state.metric });
  const part = (from) => {
    if (drawn !== mine) return;
    const rows = list.slice(from, from + PART).map((run) => {
      if (!run.row) row(run);
      if (run.valueFor !== state.metric) fillValue(run);
      return run.row;
    });
    if (from) body.append(...rows);
    else body.replaceChildren(...rows);
    renderChosen();
    if (from + PART < list.length) setTimeout(part, 0, from + PART);
  };
  part(0);
}

function render() {
  const list = sorted(matching());
  const failed = list.filter((run) => shape(run) === "failed").length;
  const focused = document.activeElement?.dataset?.sort;
  heading.replaceChildren(head());
  if (focused) heading.querySelector(`[data-sort="${focused}"]`).focus();
  if (state.metric !== drawn.metric || list.length !== drawn.list.length || list.some((run, i) => run !== drawn.list[i])) draw(list);
  const found = list.length ? table : nothing;
  if ($("results").firstChild !== found) $("results").replaceChildren(found);
  $("count").textContent = `${list.length === runs.length ? "All" : `${list.length} of`} ${runs.length} ${runs.length === 1 ? "run" : "runs"}${failed ? `, ${failed} failed` : ""}`;
  $("reset").hidden = Object.keys(EMPTY).every((key) => key === "pick" || key === "show" || state[key] === EMPTY[key]);
  renderControls();
  renderChosen();
}

function renderControls() {
  const options = (select, first, counted, value) => {
    const entry = (v, label) => el("option", { value: v, selected: v === value }, label);
    const groups = new Map();
    if (value && !counted.has(value)) counted.set(value, 0);
    for (const [key, count] of [...counted].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }))) {
      const cut = select === "data" || select === "method" ? key.indexOf(":") : -1;
      const group = cut < 0 ? "" : key.slice(0, cut);
      const label = select === "metric" ? say(key) : select === "report" ? spaced(key) : key.slice(cut + 1);
      groups.set(group, [...(groups.get(group) || []), entry(key, `${label} (${count})`)]);
    }
    const inner = [...groups].flatMap(([group, entries]) => (group ? [el("optgroup", { label: group }, ...entries)] : entries));
    $(select).replaceChildren(entry("", first), ...inner);
    $(select).value = value;
  };
  const count = (list, keys) => {
    const counted = new Map();
    for (const run of list) for (const key of keys(run)) counted.set(key, (counted.get(key) || 0) + 1);
    return counted;
  };
  const pairs = (values) => values.flatMap(([n, list]) => list.map((v) => `${n}:${v}`));
  options("report", "All reports", count(matching("report"), (r) => [r.report]), state.report);
  options("data", "All data", count(matching("data"), (r) => pairs(r.data)), state.data);
  options("method", "All methods", count(matching("method"), (r) => pairs(r.method)), state.method);
  options("status", "Any", count(matching("status"), (r) => [r.status]), state.status);
  options("metric", "Each report's main one", count(matching("metric"), (r) => Object.keys(r.metrics).filter((n) => !bound(r, n))), state.metric);
  $("sort").replaceChildren(el("option", { value: "" }, "Failures first, newest"), ...Object.entries(COLUMNS).map(([key, c]) => el("option", { value: key }, key === "metric" && state.metric ? say(state.metric) : c.label)));
  for (const key of ["sort", "side", "limit"]) $(key).value = state[key];
  if (document.activeElement !== $("q")) $("q").value = state.q;
  const filters = ["report", "data", "method", "status", "metric", "limit", "sort"].filter((key) => state[key] !== "").length;
  $("more").textContent = `Filters and order${filters ? ` (${filters})` : ""}`;
  $("turn").textContent = Boolean(COLUMNS[state.sort]?.down) !== Boolean(state.turned) ? "↓" : "↑";
}

function renderChosen() {
  const n = state.pick.length;
  $("chosen").hidden = n === 0 || state.show.length > 0;
  $("chosen-text").textContent = n === 1 ? "1 run chosen; choose another to compare" : n === MOST ? `${n} runs chosen, the most there can be` : `${n} runs chosen`;
  $("open").disabled = n < 2;
  for (const run of runs.filter((r) => r.row)) {
    run.box.checked = state.pick.includes(run.folder);
    run.box.disabled = n >= MOST && !run.box.checked;
    run.row.classList.toggle("picked", run.box.checked);
  }
}

// ---------------------------------------------------------------- side by side

function renderCompare() {
  const chosen = state.show.map((folder) => byFolder.get(folder)).filter(Boolean).slice(0, MOST);
  const alone = chosen.length === 1;
  const labels = chosen.map((run, i) => (alone ? [] : [el("span", { class: "letter" }, LETTERS[i])]));
  const heading = el("h2", { tabindex: -1, class: "title" }, alone ? name(chosen[0]) : `${chosen.length} runs side by side`);
  const rows = el("div", { class: alone ? "" : "same-hidden" });
  const toggle = el("input", { type: "checkbox", onchange: () => rows.classList.toggle("same-hidden", !toggle.checked) });
  const sides = el("div", { class: "sides" }, ...chosen.map((run, i) => side(run, labels[i])));
  rows.append(
    el("h2", {}, "Parameters"), facing("Parameters", chosen, chosen.map((r) => r.parameters), "No parameter differs."),
    el("h2", {}, "Metrics"), measures(chosen),
    el("h2", {}, "Figures"), ...figures(chosen, labels),
    el("h2", {}, "Where it comes from"), facing("Origin", chosen, chosen.map((run) => origin(run, alone)), "Same code, data and machine."));
  $("compare").replaceChildren(
    el("div", { class: "back" },
      el("button", { type: "button", id: "back", onclick: close }, "← All runs"),
      !alone && el("label", { class: "same-toggle" }, toggle, "Show also what is the same")),
    heading, sides, rows);
  $("compare").style.setProperty("--n", chosen.length);
  $("compare").style.setProperty("--gaps", 0);
  $("compare").querySelector(".gapped")?.style.setProperty("--gaps", chosen.length - 1);
  heading.focus();
  window.scrollTo(0, 0);
}

function side(run, label) {
  const link = (path, text) => el("li", {}, el("a", { href: file(run, path) }, text));
  const known = { "report.html": "Report", "notebook.ipynb": "Notebook" };
  return el("section", { class: "side", "aria-label": name(run) },
    el("h3", {}, ...label.map((l) => l.cloneNode(true)), title(run)),
    el("p", {}, [facet(run, "data"), facet(run, "method")].filter(Boolean).join(" · ")),
    el("p", { class: "soft" }, run.id ? "Run " : "", el("span", { class: "mono" }, run.id || run.folder)),
    el("p", { class: "soft" }, el("span", { class: `status ${shape(run)}` }, run.status), ` · ${run.started.slice(0, 16).replace("T", " ")} UTC · ${duration(run.seconds)}`),
    run.verdict && el("p", {}, run.verdict),
    run.error && el("p", { class: "error" }, run.error),
    el("ul", { class: "links", "aria-label": "Files" }, ...Object.entries(known).filter(([path]) => run.files.includes(path)).map(([path, text]) => link(path, text)), link("run.json", "Record")),
    run.tables.length > 0 && el("ul", { class: "links", "aria-label": "Tables" }, el("li", { class: "soft" }, "Tables:"), ...run.tables.map((t) => link(`${t}.csv`, t))));
}

function origin(run, alone) { // of one run alone, hundreds of packages say little; they are in its record
  const short = Object.entries(run.inputs).map(([n, v]) => [`${n} (sha256)`, plain(v).slice(0, 12)]);
  const where = Object.entries(origins[run.origin]).filter(([n]) => !alone || !n.startsWith("packages "));
  return { ...run.about, ...Object.fromEntries([...short, ...where]) };
}

// What tells a run from the others beside it.
function short(run, chosen) {
  const unlike = Object.keys(run.parameters).filter((n) => new Set(chosen.map((r) => plain(r.parameters[n]))).size > 1);
  const words = unlike.slice(0, 3).map((n) => (told.includes(n) ? plain(run.parameters[n]) : `${n} ${plain(run.parameters[n])}`).slice(0, 40));
  return words.filter((w) => w.trim()).join(" · ") || (chosen.length > 1 ? run.id || run.folder : "Value");
}

function headRow(chosen, ...more) {
  const of = (run, i) => el("th", { scope: "col" }, ...(chosen.length > 1 ? [el("span", { class: "letter" }, LETTERS[i])] : []), short(run, chosen));
  return el("thead", {}, el("tr", {}, el("td", { class: "names" }), ...chosen.map(of), ...more));
}

// Rows of values, those that differ marked; equal ones are hidden until asked for.
function facing(label, chosen, columns, allSame) {
  const names = [...new Set(columns.flatMap((values) => Object.keys(values)))];
  const lines = names.map((n) => {
    const texts = columns.map((values) => plain(values[n]));
    const same = chosen.length > 1 && new Set(texts).size === 1;
    return el("tr", { class: chosen.length === 1 ? "" : same ? "same" : "differ" }, el("th", { scope: "row" }, n), ...texts.map((t) => el("td", {}, t || "–")));
  });
  const none = chosen.length > 1 && lines.every((line) => line.classList.contains("same"));
  const table = el("table", { class: "facing" }, headRow(chosen), el("tbody", {}, ...lines));
  return el("div", {}, none && el("p", { class: "soft" }, allSame), el("div", { class: none ? "scroll same" : "scroll", tabindex: 0, role: "region", "aria-label": label }, table));
}

function measures(chosen) {
  const names = [...new Set(chosen.flatMap((run) => Object.keys(run.metrics).filter((n) => !bound(run, n))))];
  if (!names.length) return el("p", { class: "soft" }, "No metrics.");
  const first = chosen.map((run) => run.main).find(Boolean);
  names.sort((a, b) => (b === first) - (a === first));
  const gaps = chosen.slice(1).map((_, i) => el("th", { scope: "col", class: "gaps" }, `${LETTERS[i + 1]} − A`));
  const lines = names.map((n) => {
    const found = chosen.map((run) => figure(run, n));
    const { fractional, from, to } = metricNames.get(n);
    const cells = found.map((f) => el("td", { class: isNumber(f.value) ? "number" : "" },
      f.value === null ? "–" : asText(n, f.value),
      interval(f) && el("span", { class: "between" }, interval(f)),
      chosen.length > 1 && fractional && isNumber(f.value) && to > from && dot(f, from, to)));
    return el("tr", { class: `metric ${chosen.length > 1 && new Set(found.map((f) => f.value)).size === 1 ? "same" : "differ"}` },
      el("th", { scope: "row" }, say(n), direction(n) && el("span", { class: "of" }, direction(n))), ...cells, ...found.slice(1).map((f) => el("td", { class: "number gap" }, gap(found[0], f, fractional))));
  });
  const note = chosen.length > 1 && el("p", { class: "soft" }, "Intervals are each run's own, 95 % in the library's reports. “Apart” means they do not overlap; runs on the same images can differ surely even where they do. Marks lie on the range of all runs.");
  return el("div", {}, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Metrics" }, el("table", { class: "facing gapped" }, headRow(chosen, ...gaps), el("tbody", {}, ...lines))), note);
}

function gap(a, b, fractional) {
  if (!isNumber(a.value) || !isNumber(b.value)) return "";
  const value = b.value - a.value;
  const apart = a.low !== null && b.low !== null && (a.low > b.high || b.low > a.high);
  return `${value > 0 ? "+" : value < 0 ? "−" : ""}${number(Math.abs(value), fractional)}${apart ? " apart" : ""}`;
}

function figures(chosen, labels) {
  const names = [...new Set(chosen.flatMap((run) => run.figures.map((f) => f.name)))];
  const holders = (n) => chosen.filter((run) => run.figures.some((f) => f.name === n)).length;
  const alike = (n) => n.startsWith("same"); // the same images in every run
  names.sort((a, b) => holders(b) - holders(a) || alike(b) - alike(a));
  if (!names.length) return [el("p", { class: "soft" }, "No figures.")];
  return names.map((n) => el("section", { class: "figures", "aria-label": `Figure ${n}` }, el("h3", {}, spaced(n)), el("div", { class: "sides" }, ...chosen.map((run, i) => {
    const found = run.figures.find((f) => f.name === n);
    if (!found) return el("p", { class: "absent" }, ...labels[i].map((l) => l.cloneNode(true)), "This run has no such figure.");
    const path = file(run, "figures", `${n}.png`);
    const image = el("img", { src: path, alt: found.caption || spaced(n), width: found.width, height: found.height, loading: "lazy", decoding: "async" });
    return el("figure", {}, el("a", { href: path }, image), el("figcaption", {}, ...labels[i].map((l) => l.cloneNode(true)), found.caption));
  }))));
}

// ---------------------------------------------------------------- the view and its address

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...EMPTY };
  for (const key of Object.keys(EMPTY)) {
    if (Array.isArray(EMPTY[key])) state[key] = given.getAll(key).filter((f) => byFolder.has(f)).slice(0, MOST);
    else if (given.has(key)) state[key] = given.get(key);
  }
  if (!Object.hasOwn(COLUMNS, state.sort)) state.sort = "";
  if (state.side !== "max") state.side = "min";
  if (state.metric && !metricNames.has(state.metric)) state.metric = "";
  if (state.limit !== "" && !Number.isFinite(Number(state.limit))) state.limit = "";
}

function writeAddress(push = false) {
  const kept = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) {
    if (Array.isArray(value)) value.forEach((v) => kept.append(key, v));
    else if (value !== EMPTY[key]) kept.set(key, value);
  }
  const address = `${location.pathname}${location.search}${kept.size ? `#${kept}` : ""}`;
  history[push ? "pushState" : "replaceState"](null, "", address);
}

let leftAt = { focus: null, scroll: 0 };

function show() {
  const comparing = state.show.length > 0;
  $("browse").hidden = comparing;
  $("compare").hidden = !comparing;
  if (comparing) renderCompare();
  else $("compare").replaceChildren();
  render();
}

function set(changes) {
  Object.assign(state, changes);
  writeAddress();
  render();
}

function order(key) {
  set(state.sort === key ? { turned: state.turned ? "" : "1" } : { sort: key, turned: "" });
}

function choose(run, on) {
  set({ pick: on ? [...state.pick, run.folder].slice(0, MOST) : state.pick.filter((f) => f !== run.folder) });
}

function open(folders) {
  leftAt = { focus: document.activeElement, scroll: window.scrollY };
  state.show = folders;
  writeAddress(true);
  show();
}

function close() {
  state.show = [];
  writeAddress(true);
  show();
  window.scrollTo(0, leftAt.scroll);
  (leftAt.focus?.isConnected && leftAt.focus.checkVisibility() ? leftAt.focus : $("q")).focus({ preventScroll: true });
}

const newest = runs.map((run) => run.started).sort().at(-1);
$("summary").textContent = runs.length ? `${runs.length} in all, newest ${newest.slice(0, 16).replace("T", " ")} UTC` : "";
for (const key of ["q", "limit"]) $(key).addEventListener("input", () => set({ [key]: $(key).value }));
for (const key of ["report", "data", "method", "status", "metric", "side"]) $(key).addEventListener("change", () => set({ [key]: $(key).value }));
$("sort").addEventListener("change", () => set({ sort: $("sort").value, turned: "" }));
$("turn").addEventListener("click", () => set({ turned: state.turned ? "" : "1" }));
$("reset").addEventListener("click", () => { set({ ...EMPTY, pick: state.pick, show: state.show }); $("q").value = ""; $("q").focus(); });
$("unchoose").addEventListener("click", () => { set({ pick: [] }); $("results").focus(); });
$("open").addEventListener("click", () => open(state.pick));
$("more").addEventListener("click", () => $("more").setAttribute("aria-expanded", $("controls").classList.toggle("open")));
$("controls").addEventListener("submit", (event) => event.preventDefault());
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("results").focus(); });
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  if (event.key === "Escape" && state.show.length) close();
  else if (event.key === "/" && !typing && !state.show.length && !event.ctrlKey && !event.metaKey) { event.preventDefault(); $("q").focus(); }
});
window.addEventListener("hashchange", () => { readAddress(); show(); });

if (runs.length) {
  readAddress();
  show();
} else {
  $("browse").replaceChildren(el("p", { class: "nothing" }, "No run yet. Start one: ", el("code", {}, "anomaly-nb demo")));
}
