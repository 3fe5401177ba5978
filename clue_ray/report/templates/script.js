"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.order;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!head.classList.contains("number")) return (down ? -1 : 1) * x.localeCompare(y);
        if (x === "inf" || y === "inf") return (x === "inf") - (y === "inf");
        return (down ? -1 : 1) * (Number(x) - Number(y));
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
  const filter = document.createElement("input");
  filter.type = "search";
  filter.placeholder = "Filter runs: words, all must match";
  filter.setAttribute("aria-label", "Filter runs");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  table.parentElement.before(filter);
}
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
for (const title of document.querySelectorAll("svg g > title")) {
  const mark = title.parentElement, words = title.textContent;
  mark.setAttribute("aria-label", words);
  mark.addEventListener("pointerenter", (event) => {
    title.textContent = "";
    tip.textContent = words;
    tip.hidden = false;
    tip.style.left = Math.max(8, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
    mark.classList.add("lit");
  });
  mark.addEventListener("pointerleave", () => {
    title.textContent = words;
    tip.hidden = true;
    mark.classList.remove("lit");
  });
}
