// Lets a long name in a table break after "_" and the like. Marks the tables that are too wide for a
// phone, where site.css makes their rows lists, and those with so many columns that site.css turns
// their headings.
document.addEventListener("DOMContentLoaded", () => {
  for (const code of document.querySelectorAll("article td code")) {
    if (code.textContent.length < 28) continue;
    code.classList.add("long");
    for (const text of [...code.querySelectorAll(".pre")].map((part) => part.firstChild))
      text?.replaceWith(...text.data.split(/(?<=[_.,/:=])/).flatMap((part, number) =>
        number ? [document.createElement("wbr"), part] : [part]));
  }
  for (const table of document.querySelectorAll("article table.docutils")) {
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    if (names.length > 8) table.classList.add("many-columns");
    if (names.length < 3) continue;
    table.classList.add("stacked");
    for (const row of table.tBodies[0].rows)
      [...row.cells].forEach((cell, column) => {
        if (names[column]) cell.dataset.label = names[column];
      });
  }
});
