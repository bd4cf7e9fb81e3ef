// Column heads become buttons that sort their table; without scripts the tables are read as they stand.
const compare = new Intl.Collator("en", { numeric: true }).compare;

function key(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
}

// Cells without a value stay at the end, whichever way is sorted.
function order(a, b, direction) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const found = typeof a === "number" && typeof b === "number" ? a - b : compare(String(a), String(b));
  return direction * found;
}

function sort(table, head, column) {
  const falling = head.getAttribute("aria-sort") === "ascending" ||
    (!head.hasAttribute("aria-sort") && head.classList.contains("n"));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => [key(row, column), row]);
  rows.sort((a, b) => order(a[0], b[0], falling ? -1 : 1));
  body.append(...rows.map((pair) => pair[1]));
}

for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length < 2) continue;
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.title = "Sort by " + head.textContent;
    button.addEventListener("click", () => sort(table, head, column));
    head.replaceChildren(button);
  });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
