for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0];
  const value = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending", missing = (text) => text === "–" || text === "";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compared = (a, b) => {
      const [x, y] = [value(a, i), value(b, i)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);  // last in either direction
      const numbers = !isNaN(x) && !isNaN(y), order = numbers ? x - y : x.localeCompare(y, "en", {numeric: true});
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compared));
  }));
}
