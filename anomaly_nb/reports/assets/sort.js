"use strict";
// Tables of a report sort by a click or Enter on a header: up, down, as they were. Without this script nothing is missing.

const NUMBER = /^[+\-−]?(\d[\d,]*(\.\d*)?|\.\d+|inf)(e[+-]?\d+)?(?=$|[\s[(%])/i; // "0.93 [0.90, 0.95]" is 0.93
const isEmpty = (text) => text === "" || text === "–" || text === "-";

function toNumber(text) {
  const found = NUMBER.exec(text);
  return found ? Number(found[0].replaceAll(",", "").replace("−", "-").replace(/inf/i, "Infinity")) : NaN;
}

function sortRows(body, rows, column, turn) { // turn: 1 up, -1 down, 0 as they were
  const texts = new Map(rows.map((row) => [row, (row.cells[column]?.textContent ?? "").trim()]));
  const asNumbers = rows.every((row) => isEmpty(texts.get(row)) || !Number.isNaN(toNumber(texts.get(row))));
  const compare = (a, b) => (asNumbers ? toNumber(a) - toNumber(b) || 0 : a.localeCompare(b, "en", { numeric: true }));
  const sorted = turn === 0 ? rows : [...rows].sort((one, two) => {
    const [a, b] = [texts.get(one), texts.get(two)];
    return isEmpty(a) || isEmpty(b) ? isEmpty(a) - isEmpty(b) : turn * compare(a, b); // empty cells last, either way
  });
  body.append(...sorted);
}

for (const table of document.querySelectorAll("table.table")) {
  const [body, heads] = [table.tBodies[0], [...(table.tHead?.rows[0]?.cells ?? [])]];
  const rows = [...(body?.rows ?? [])];
  for (const [column, head] of rows.length > 1 ? heads.entries() : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      const turn = { ascending: -1, descending: 0 }[head.getAttribute("aria-sort")] ?? 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      if (turn) head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
      sortRows(body, rows, column, turn);
    });
    head.append(button);
  }
}
