// Names the cells of each table that is too wide for a phone, where site.css makes rows lists.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table.docutils")) {
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    if (names.length <= 3) continue;
    table.classList.add("stacked");
    for (const row of table.tBodies[0].rows)
      [...row.cells].forEach((cell, column) => {
        if (names[column]) cell.dataset.label = names[column];
      });
  }
});
