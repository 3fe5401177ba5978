// The dial: a slider over compute on the first figure. All numbers come from the page; a target or a price is
// looked up between the places that were forecast, on logarithmic scales, as the figure draws them.
class Dial {
  constructor(panel) {
    this.panel = panel;
    this.data = JSON.parse(panel.dataset.values);
    this.field = (name) => panel.querySelector(`[name='${name}']`);
    this.said = (name) => panel.querySelector(`[data-said='${name}']`);
    panel.hidden = false;
    for (const name of ["compute", "target", "of", "speed", "price"]) {
      this.field(name)?.addEventListener("input", () => this.show());
    }
    this.marks = [...document.querySelectorAll("svg [id$='extrapolation']")].map((zone) => this.mark(zone));
    this.show();
  }

  mark(zone) {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("class", "dial-mark");
    zone.parentElement.append(line);
    return { zone, line };
  }

  between(values, compute) {
    const { compute: places } = this.data, last = places.length - 1;
    let i = 0;
    while (i < last - 1 && places[i + 1] < compute) i += 1;
    const share = Math.log(compute / places[i]) / Math.log(places[i + 1] / places[i]);
    return Math.exp(Math.log(values[i]) + share * Math.log(values[i + 1] / values[i]));
  }

  reach(values, loss) {
    const { compute } = this.data;
    if (values[0] <= loss) return compute[0];
    const i = values.findIndex((value) => value <= loss);
    if (i < 0) return null;
    const share = Math.log(values[i - 1] / loss) / Math.log(values[i - 1] / values[i]);
    return Math.exp(Math.log(compute[i - 1]) + share * Math.log(compute[i] / compute[i - 1]));
  }

  show() {
    const { compute: places, names, sizes } = this.data;
    const share = Number(this.field("compute").value) / Number(this.field("compute").max);
    const compute = places[0] * (places[places.length - 1] / places[0]) ** share;
    const loss = this.between(this.data.value, compute), low = this.between(this.data.low, compute);
    const high = this.between(this.data.high, compute);
    const at = `${this.number(compute)}${names.compute_unit}`;
    const made = `${this.number(loss)}${names.loss_unit} (80% interval ${this.number(low)} to ${this.number(high)})`;
    this.field("compute").setAttribute("aria-valuetext", `${at}: ${names.loss} ${made}`);
    this.said("forecast").textContent = `${at}: forecast ${names.loss} ${made}.`;
    this.said("scores").textContent = this.data.scores.map(({ name, offset, slope }) =>
      `${name} ${this.number(offset + slope * loss)}`).join(", ");
    this.said("recipe").textContent = sizes.length
      ? `Best split by the law in size and tokens: ${this.split(compute)}.`
      : `These runs do not identify a split between size and data; scale up the best run (${this.data.settings}).`;
    this.said("price").textContent = this.price(compute);
    this.said("target").textContent = this.target();
    for (const { zone, line } of this.marks) {
      const box = zone.getBBox();
      const x = box.x + (box.width * Math.log(compute / this.data.largest)) / Math.log(this.data.reach);
      for (const [key, value] of Object.entries({ x1: x, x2: x, y1: box.y, y2: box.y + box.height })) {
        line.setAttribute(key, value);
      }
    }
  }

  split(compute) {
    const { sizes, tokens } = this.data;
    return `${this.number(this.between(sizes, compute))} parameters on ${this.number(this.between(tokens, compute))} tokens`;
  }

  price(compute) {
    const speed = Number(this.field("speed")?.value), price = Number(this.field("price")?.value);
    if (!(speed > 0)) return "";
    const hours = compute / speed / 3600;
    return `${this.number(hours)} device-hours` + (price > 0 ? `, ${this.number(hours * price)} in your currency.` : ".");
  }

  target() {
    const asked = this.field("target").value, of = this.field("of")?.value ?? "";
    if (asked === "") return "";
    const line = this.data.scores[Number(of)];
    const loss = of === "" ? Number(asked) : (Number(asked) - line.offset) / line.slope;
    const { names } = this.data, unit = names.compute_unit;
    if (!(loss > 0)) return "Give a number that this target can have.";
    if (loss >= this.data.best) return `The best run has it already (${names.loss} ${this.number(this.data.best)}).`;
    const place = this.reach(this.data.value, loss);
    const early = this.reach(this.data.low, loss), late = this.reach(this.data.high, loss);
    const implied = of === "" ? "" : `It needs a ${names.loss} of ${this.number(loss)}${names.loss_unit}. `;
    if (place === null) {
      return `${implied}The forecast does not reach it within ten times the largest run, as far as forecasts were checked` +
        (early === null ? "." : `; it may be reached from ${this.number(early)}${unit} on.`);
    }
    const money = this.price(place), split = this.data.sizes.length ? ` (${this.split(place)})` : "";
    return `${implied}Train ${this.number(place)}${unit}${split}${money ? `: ${money}` : "."} How sure: 80% interval from ` +
      `${this.number(early)} to ${late === null ? "beyond ten times the largest run" : this.number(late)}${unit}.`;
  }

  number(value) {
    if (value >= 1e6 || value < 1e-3) return value.toExponential(1).replace("e+", "e");
    return Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  }
}
document.querySelectorAll("form.dial").forEach((panel) => new Dial(panel));
