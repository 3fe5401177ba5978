"use strict";
// Tooltips of the marks, sorting and filtering of the table of runs, and printing of collapsed parts.
// The URL holds the view and the section: #runs, #seed=0, #section=runs&seed=0.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

const ofRun = new Map();
for (const place of document.querySelectorAll("[data-run]")) {
  const run = place.dataset.run;
  ofRun.set(run, [...(ofRun.get(run) ?? []), place]);
}
const light = (run, on) => (ofRun.get(run) ?? []).forEach((place) => place.classList.toggle("lit", on));

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
    light(mark.dataset.run, true);
  });
  mark.addEventListener("pointerleave", () => {
    title.textContent = words;
    tip.hidden = true;
    mark.classList.remove("lit");
    light(mark.dataset.run, false);
  });
}

const unfolded = [];
addEventListener("beforeprint", () => {
  unfolded.push(...document.querySelectorAll("details:not([open])"));
  unfolded.forEach((details) => (details.open = true));
});
addEventListener("afterprint", () => unfolded.splice(0).forEach((details) => (details.open = false)));

const MOST_VALUES = 12, MOST_LETTERS = 40;
const MEASURED = ["loss", "train_flops", "recall_at_10", "mrr", "train_loss", "train_tokens", "wall_seconds",
  "tokens_per_second", "run_id", "error", "non_embedding_params"];

class View {
  constructor(table) {
    this.table = table;
    this.body = table.tBodies[0];
    this.rows = [...this.body.rows];
    this.heads = [...table.tHead.rows[0].cells];
    this.columns = this.heads.map((head) => head.dataset.column);
    this.state = new URLSearchParams();
    this.section = "";
    this.panel = document.createElement("div");
    this.panel.className = "filters";
    table.parentElement.before(this.panel);
    this.addSorting();
    this.addWords();
    this.addValues();
    this.addCount();
    this.addPicking();
    addEventListener("hashchange", () => this.read());
    this.read(performance.getEntriesByType("navigation")[0]?.type !== "navigate"); // a reload keeps its scroll position
  }

  addSorting() {
    for (const head of this.heads) {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = this.state.get("sort") === head.dataset.column && this.state.get("order") !== "down";
        this.state.set("sort", head.dataset.column);
        down ? this.state.set("order", "down") : this.state.delete("order");
        this.show();
      });
    }
  }

  addWords() {
    this.words = document.createElement("input");
    this.words.type = "search";
    this.words.placeholder = "Filter runs: words, all must match";
    this.words.setAttribute("aria-label", "Filter runs");
    this.words.addEventListener("input", () => {
      this.words.value ? this.state.set("words", this.words.value) : this.state.delete("words");
      this.show();
    });
    this.panel.append(this.words);
  }

  addValues() {
    this.buttons = [];
    this.columns.forEach((column, place) => {
      const cells = this.rows.map((row) => row.cells[place]);
      const values = new Map(cells.map((cell) => [cell.textContent, cell.dataset.order]));
      if (MEASURED.includes(column) || values.size < 2 || values.size > MOST_VALUES) return;
      const numeric = this.heads[place].classList.contains("number");
      const order = (a, b) => (numeric ? Number(a[1]) - Number(b[1]) : a[1].localeCompare(b[1]));
      const group = document.createElement("div");
      group.className = "values";
      group.setAttribute("role", "group");
      group.setAttribute("aria-label", this.heads[place].textContent);
      group.append(this.heads[place].textContent);
      for (const [value] of [...values].sort(order)) group.append(this.valueButton(column, value));
      this.panel.append(group);
    });
  }

  valueButton(column, value) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = value.length > MOST_LETTERS ? `${value.slice(0, MOST_LETTERS - 1)}…` : value;
    button.title = value;
    button.addEventListener("click", () => this.toggle(column, value));
    this.buttons.push({ button, column, value });
    return button;
  }

  addCount() {
    const line = document.createElement("p");
    line.className = "note";
    this.count = document.createElement("span");
    this.count.setAttribute("role", "status");
    this.clear = document.createElement("button");
    this.clear.type = "button";
    this.clear.textContent = "Show all";
    this.clear.addEventListener("click", () => {
      this.state = new URLSearchParams([...this.state].filter(([key]) => key === "sort" || key === "order"));
      this.show();
    });
    line.append(this.count, " ", this.clear);
    this.panel.append(line);
  }

  addPicking() {
    for (const [run, places] of ofRun) {
      for (const place of places) {
        place.addEventListener("click", () => getSelection()?.toString() || this.toggle("run", run));
        if (!this.rows.includes(place)) continue;
        place.addEventListener("pointerenter", () => light(run, true));
        place.addEventListener("pointerleave", () => light(run, false));
      }
    }
  }

  toggle(key, value) {
    const kept = this.state.getAll(key).filter((other) => other !== value);
    if (kept.length === this.state.getAll(key).length) kept.push(value);
    this.state.delete(key);
    kept.forEach((other) => this.state.append(key, other));
    this.show();
  }

  read(still = false) {
    const hash = location.hash.slice(1);
    if (hash && !hash.includes("=")) {
      this.section = hash; // a link to a section, which the browser follows: the view does not change
      return this.show();
    }
    this.state = new URLSearchParams(hash);
    this.section = this.state.get("section") ?? "";
    this.state.delete("section");
    this.show();
    if (!still) document.getElementById(this.section)?.scrollIntoView();
  }

  address() {
    if (!this.state.toString()) return this.section;
    const section = this.section ? [["section", this.section]] : [];
    return new URLSearchParams([...section, ...this.state]).toString();
  }

  matches(row) {
    const said = row.textContent.toLowerCase();
    const words = (this.state.get("words") ?? "").toLowerCase().split(/\s+/);
    const runs = this.state.getAll("run");
    if (runs.length && !runs.includes(row.dataset.run)) return false;
    if (!words.every((word) => said.includes(word))) return false;
    return this.columns.every((column, place) => {
      const wanted = this.state.getAll(column);
      return !wanted.length || MEASURED.includes(column) || wanted.includes(row.cells[place].textContent);
    });
  }

  sort() {
    const place = this.columns.indexOf(this.state.get("sort"));
    const down = this.state.get("order") === "down" ? -1 : 1;
    this.heads.forEach((head) => head.removeAttribute("aria-sort"));
    if (place < 0) return this.body.append(...this.rows);
    this.heads[place].setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
    const numeric = this.heads[place].classList.contains("number");
    const key = (row) => row.cells[place].dataset.order;
    this.body.append(...[...this.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (!numeric) return down * x.localeCompare(y);
      if (x === "inf" || y === "inf") return (x === "inf") - (y === "inf"); // missing values are always last
      return down * (Number(x) - Number(y));
    }));
  }

  show() {
    this.sort();
    const shown = new Set();
    for (const row of this.rows) {
      row.hidden = !this.matches(row);
      if (!row.hidden) shown.add(row.dataset.run);
    }
    for (const [run, places] of ofRun) {
      for (const place of places) if (place.tagName !== "TR") place.classList.toggle("dim", !shown.has(run));
    }
    for (const { button, column, value } of this.buttons) {
      button.setAttribute("aria-pressed", this.state.getAll(column).includes(value));
    }
    this.words.value = this.state.get("words") ?? "";
    const runs = this.state.getAll("run");
    this.count.textContent = `${shown.size} of ${this.rows.length} runs shown` +
      (runs.length ? `: picked ${runs.join(", ")}.` : ". Click a run in a figure or a row to pick it.");
    this.clear.hidden = shown.size === this.rows.length;
    const hash = this.address();
    if (hash !== location.hash.slice(1)) {
      history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
    }
  }
}
document.querySelectorAll("table.sortable").forEach((table) => new View(table));
