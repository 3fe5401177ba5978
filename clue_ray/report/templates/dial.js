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

  // A curve has values at its own places of compute: the loss, or the distance of a score from 1, which falls alike.
  between(curve, name, compute) {
    const { compute: places, [name]: values } = curve, last = places.length - 1;
    let i = 0;
    while (i < last - 1 && places[i + 1] < compute) i += 1;
    const share = Math.log(compute / places[i]) / Math.log(places[i + 1] / places[i]);
    return Math.exp(Math.log(values[i]) + share * Math.log(values[i + 1] / values[i]));
  }

  reach(curve, name, wanted) {
    const { compute, [name]: values } = curve;
    if (values[0] <= wanted) return compute[0];
    const i = values.findIndex((value) => value <= wanted);
    if (i < 0) return null;
    const share = Math.log(values[i - 1] / wanted) / Math.log(values[i - 1] / values[i]);
    return Math.exp(Math.log(compute[i - 1]) + share * Math.log(compute[i] / compute[i - 1]));
  }

  show() {
    const { compute: places, names, sizes } = this.data;
    const share = Number(this.field("compute").value) / Number(this.field("compute").max);
    const compute = places[0] * (places[places.length - 1] / places[0]) ** share;
    const [loss, low, high] = ["value", "low", "high"].map((name) => this.between(this.data, name, compute));
    const at = `${this.number(compute)}${names.compute_unit}`;
    const made = `${this.number(loss)}${names.loss_unit} (80% interval ${this.number(low)} to ${this.number(high)})`;
    this.field("compute").setAttribute("aria-valuetext", `${at}: ${names.loss} ${made}`);
    this.said("forecast").textContent = `${at}: forecast ${names.loss} ${made}.`;
    this.said("scores").textContent = this.data.scores.map((curve) => this.score(curve, compute)).filter(Boolean).join(", ");
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

  score(curve, compute) {
    if (compute < curve.compute[0]) return "";
    const [made, high, low] = ["value", "low", "high"].map((name) => 1 - this.between(curve, name, compute));
    return `${curve.name} ${this.number(made)} (80% interval ${this.number(low)} to ${this.number(high)})`;
  }

  split(compute) {
    return `${this.number(this.between(this.data, "sizes", compute))} parameters on ${this.number(this.between(this.data, "tokens", compute))} tokens`;
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
    const { names } = this.data, score = of === "" ? null : this.data.scores[Number(of)];
    const curve = score ?? this.data, wanted = score ? 1 - Number(asked) : Number(asked);
    if (score && (wanted < 0 || Number(asked) < (score.least ?? -Infinity))) {
      return `${score.name} is ${score.least === null ? "at most" : `between ${score.least} and`} 1; give such a number.`;
    }
    if (!score && wanted <= 0) return `Give a ${names.loss} above 0.`;
    const best = score ? `${score.name} ${this.number(1 - score.best)}` : `${names.loss} ${this.number(curve.best)}`;
    return wanted >= curve.best ? `A run has it already (${best}).` : this.answer(curve, wanted);
  }

  answer(curve, wanted) {
    const unit = this.data.names.compute_unit;
    const [early, place, late] = ["low", "value", "high"].map((name) => this.reach(curve, name, wanted));
    if (place === null) {
      return "The forecast does not reach it within ten times the largest run, as far as forecasts were checked" +
        (early === null ? "." : `; it may be reached from ${this.number(early)}${unit} on.`);
    }
    const money = this.price(place), split = this.data.sizes.length ? ` (${this.split(place)})` : "";
    return `Train ${this.number(place)}${unit}${split}${money ? `: ${money}` : "."} How sure: 80% interval from ` +
      `${this.number(early)} to ${late === null ? "beyond ten times the largest run" : this.number(late)}${unit}.`;
  }

  number(value) {
    const size = Math.abs(value);
    if (size >= 1e6 || (size < 1e-3 && size > 0)) return value.toExponential(1).replace("e+", "e");
    return Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  }
}
document.querySelectorAll("form.dial").forEach((panel) => new Dial(panel));
