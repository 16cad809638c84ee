"use strict";
// The report's curves, drawn from the numbers in the page. One cursor and one range of steps for all of them.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const view = { from: data.span[0], to: data.span[1], cursor: null, smoothing: 0, row: 0, lines: new Set(data.chosen) };
  const plots = []; // { draw, point }: all of it, or what moves with the cursor
  const drawAll = () => plots.forEach((plot) => { plot.draw(); plot.point(); });
  const pointAll = () => plots.forEach((plot) => plot.point());
  const dark = matchMedia("(prefers-color-scheme: dark)"), print = matchMedia("print");

  // ── Elements and numbers ──────────────────────────────────────────────────────────────────────────────────────

  const put = (element, attributes) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const svg = (parent, name, attributes, text) => {
    const element = put(document.createElementNS("http://www.w3.org/2000/svg", name), attributes);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  };
  const html = (parent, name, attributes, text) => {
    const element = put(document.createElement(name), attributes);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  };
  const finite = (value) => typeof value === "number"; // NaN and infinities come as text, what is missing as null
  const rounded = (value) => value.toLocaleString("en-GB", { maximumFractionDigits: 0 });
  function number(value) {
    if (value === null || value === undefined) return "–";
    if (!finite(value)) return value;
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e7) && !(Number.isInteger(value) && size < 1e15)) {
      const [mantissa, exponent] = value.toExponential(3).split("e");
      return `${Number(mantissa)}e${Number(exponent)}`;
    }
    return size >= 1e3 || Number.isInteger(value) ? rounded(value) : String(Number(value.toPrecision(4)));
  }
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  function nearest(steps, step) {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  }

  // ── Scales ────────────────────────────────────────────────────────────────────────────────────────────────────

  function linearTicks(low, high, count) {
    const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(Number((i * step).toPrecision(12)));
    return ticks;
  }
  function logTicks(low, high, count) {
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), decades = Math.log10(high / low);
    if (decades < 0.8) return linearTicks(low, high, count);
    const mantissas = decades < 1.6 ? [1, 2, 3, 5] : decades < 3 ? [1, 3] : [1], every = Math.ceil(decades / (count + 2));
    const ticks = [];
    for (let e = first; e <= last; e++) for (const m of mantissas) {
      const tick = Number(`${m}e${e}`);
      if (e % every === 0 && tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
    return ticks;
  }
  // The line that fits best around each step, near ones counting most: it does not lag behind, as a running mean does.
  function smoothed(steps, values, width) {
    const real = values.flatMap((value, i) => (finite(value) ? [i] : []));
    const smooth = values.slice();
    let first = 0;
    for (const i of real) {
      while (steps[i] - steps[real[first]] > 3 * width) first++;
      let n = 0, x = 0, xx = 0, y = 0, xy = 0;
      for (let k = first; k < real.length && steps[real[k]] - steps[i] <= 3 * width; k++) {
        const d = (steps[real[k]] - steps[i]) / width, w = Math.exp(-d * d / 2), value = values[real[k]];
        n += w; x += w * d; xx += w * d * d; y += w * value; xy += w * d * value;
      }
      const spread = n * xx - x * x;
      smooth[i] = spread > 1e-9 * n * n ? (xx * y - x * xy) / spread : y / n;
    }
    return smooth;
  }

  // ── What all plots share: steps along x, the pointer, the keys ────────────────────────────────────────────────

  function frame(plot, left, height) {
    const width = Math.max(plot.clientWidth, 120), box = { left, right: 8, top: 10, bottom: 24, width, height };
    plot.querySelector("svg")?.remove();
    const root = svg(plot, "svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const inner = width - left - box.right;
    const x = (step) => left + ((step - view.from) / (view.to - view.from || 1)) * inner;
    const step = (px) => view.from + ((px - left) / inner) * (view.to - view.from);
    const bottom = height - box.bottom;
    for (const tick of linearTicks(view.from, view.to, clamp(width / 110, 2, 8)).filter(Number.isInteger)) {
      const anchor = x(tick) > width - 26 ? "end" : x(tick) < left + 12 ? "start" : "middle";
      svg(root, "text", { x: anchor === "end" ? width - box.right : x(tick), y: height - 6, "text-anchor": anchor }, rounded(tick));
    }
    svg(root, "line", { class: "axis", x1: left, x2: width - box.right, y1: bottom, y2: bottom });
    return { root, box, x, step, bottom, inner };
  }
  function marks({ root, box, x, bottom }) {
    const inside = (step) => step >= view.from && step <= view.to;
    for (const step of data.resumed.filter(inside)) svg(root, "line", { class: "mark", x1: x(step), x2: x(step), y1: box.top, y2: bottom });
    for (const step of data.saved.filter(inside)) svg(root, "path", { class: "saved", d: `M${x(step)} ${bottom}l3.5 5h-7z` });
  }
  function zoom(from, to) {
    [view.from, view.to] = to - from >= data.least ? [from, to] : data.span;
    document.getElementById("whole").hidden = view.from === data.span[0] && view.to === data.span[1];
    drawAll();
  }
  function listen(plot, steps, of, more = () => false) { // of: where steps are now; more: further keys, of one plot
    let start = null;
    plot.dragged = false;
    const at = (event) => of().step((event.clientX - plot.getBoundingClientRect().left));
    const follow = (event) => {
      const step = clamp(at(event), view.from, view.to);
      view.cursor = steps[nearest(steps, step)];
      if (start !== null) plot.brush(start, step);
      pointAll();
    };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", (event) => {
      follow(event);
      if (event.pointerType !== "mouse" || event.button) return;
      start = clamp(at(event), view.from, view.to);
      plot.dragged = false;
      plot.setPointerCapture(event.pointerId);
    });
    const end = (event) => {
      const from = start, to = clamp(at(event), view.from, view.to);
      start = null;
      plot.brush(0, 0);
      plot.dragged = from !== null && Math.abs(of().x(from) - of().x(to)) > 8;
      if (plot.dragged) zoom(Math.min(from, to), Math.max(from, to));
    };
    plot.addEventListener("pointerup", end);
    plot.addEventListener("pointercancel", () => { start = null; plot.brush(0, 0); });
    plot.addEventListener("dblclick", () => zoom(...data.span));
    plot.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "mouse" || document.activeElement === plot) return; // a finger that is lifted leaves too
      view.cursor = null;
      pointAll();
    });
    plot.addEventListener("focus", () => { if (view.cursor === null && plot.matches(":focus-visible")) { view.cursor = steps.at(-1); pointAll(); } });
    plot.addEventListener("blur", () => { view.cursor = null; pointAll(); });
    plot.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const low = nearest(steps, view.from), high = nearest(steps, view.to), far = Math.max(1, Math.round((high - low) / 10));
      const here = view.cursor === null ? high : nearest(steps, view.cursor), span = view.to - view.from;
      const to = { ArrowLeft: here - 1, ArrowRight: here + 1, PageDown: here - far, PageUp: here + far, Home: low, End: high }[event.key];
      if (to !== undefined) view.cursor = steps[clamp(to, low, high)];
      else if (event.key === "Escape") view.cursor = null;
      else if (event.key === "+" || event.key === "-") {
        const centre = view.cursor ?? (view.from + view.to) / 2, half = span * (event.key === "+" ? 0.25 : 1);
        zoom(Math.max(data.span[0], centre - half), Math.min(data.span[1], centre + half));
      } else if (event.key === "0") zoom(...data.span);
      else if (!more(event)) return;
      event.preventDefault();
      pointAll();
    });
  }
  function speak(plot, step, text) {
    put(plot, { "aria-valuemin": data.span[0], "aria-valuemax": data.span[1], "aria-valuenow": step, "aria-valuetext": `step ${rounded(step)}: ${text}` });
  }

  // ── A chart of lines ──────────────────────────────────────────────────────────────────────────────────────────

  function chart(figure, spec) { // spec: { steps, series() -> [{ name, kind, values }], level, log, zero }
    const plot = figure.querySelector(".plot"), readout = figure.querySelector(".readout"), steps = spec.steps;
    let now, y, logarithmic = Boolean(spec.log), positive = true;
    const buttons = [...figure.querySelectorAll(".scale button")];
    buttons.forEach((button) => button.addEventListener("click", () => { logarithmic = button.value === "log"; draw(); point(); }));

    function draw() {
      const low = nearest(steps, view.from), high = nearest(steps, view.to);
      const seen = spec.series().flatMap((s) => s.values.slice(low, high + 1)).filter(finite);
      positive = seen.some((v) => v > 0) && (!spec.level || spec.level.value > 0);
      const log = logarithmic && positive;
      buttons.forEach((button) => { put(button, { "aria-pressed": (button.value === "log") === log }); button.disabled = !positive && button.value === "log"; });
      const fit = (log ? seen.filter((v) => v > 0) : seen).concat(spec.level ? [spec.level.value] : []);
      let [bottom, top] = fit.length ? [fit.reduce((a, b) => Math.min(a, b)), fit.reduce((a, b) => Math.max(a, b))] : [0, 1];
      if (spec.zero && !log) bottom = Math.min(bottom, 0);
      if (bottom === top) [bottom, top] = log ? [bottom / 2, top * 2] : [bottom - (Math.abs(bottom) * 0.1 || 1), top + (Math.abs(top) * 0.1 || 1)];
      const scale = log ? Math.log : (v) => v, pad = 0.04 * (scale(top) - scale(bottom));
      now = frame(plot, 52, figure.classList.contains("wide") ? clamp(plot.clientWidth * 0.34, 190, 330) : 190);
      const { root, box, x } = now, lowest = scale(bottom) - pad, tall = scale(top) + pad - lowest;
      y = (v) => (log && v <= 0 ? NaN : now.bottom - ((scale(v) - lowest) / tall) * (now.bottom - box.top));
      for (const tick of (log ? logTicks : linearTicks)(bottom, top, Math.max(4, Math.round(box.height / 55)))) {
        svg(root, "line", { class: "grid", x1: box.left, x2: box.width - box.right, y1: y(tick), y2: y(tick) });
        svg(root, "text", { x: box.left - 7, y: y(tick) + 4, "text-anchor": "end" }, number(tick));
      }
      marks(now);
      if (spec.level) svg(root, "line", { class: "line c-level", x1: box.left, x2: box.width - box.right, y1: y(spec.level.value), y2: y(spec.level.value) });
      const path = (values) => {
        let d = "", pen = "M";
        for (let i = Math.max(low - 1, 0); i <= Math.min(high + 1, steps.length - 1); i++) {
          if (values[i] === null) continue;
          const height = finite(values[i]) ? y(values[i]) : NaN;
          if (Number.isNaN(height)) { pen = "M"; continue; }
          d += `${pen}${x(steps[i]).toFixed(1)} ${height.toFixed(1)}`;
          pen = "L";
        }
        return d;
      };
      const clip = `clip-${plots.findIndex((p) => p.draw === draw)}`;
      const clipped = svg(svg(root, "clipPath", { id: clip }), "rect", { x: box.left - 2, y: box.top - 6, width: now.inner + 4, height: now.bottom - box.top + 8 });
      const lines = svg(root, "g", { "clip-path": `url(#${clip})` });
      for (const s of spec.series()) {
        if (view.smoothing) svg(lines, "path", { class: `line raw c-${s.kind}`, d: path(s.values) });
        svg(lines, "path", { class: `line c-${s.kind}`, d: path(view.smoothing ? smoothed(steps, s.values, view.smoothing) : s.values) });
        const real = s.values.flatMap((v, i) => (finite(v) ? [i] : []));
        if (real.length === 1) svg(lines, "circle", { class: `dot c-${s.kind}`, cx: x(steps[real[0]]), cy: y(s.values[real[0]]) || 0, r: 3 });
        s.values.forEach((v, i) => { // neither a number nor missing: a cross at the top
          if (v !== null && !finite(v)) svg(lines, "path", { class: "bad", d: `M${x(steps[i]) - 3} ${box.top - 3}l6 6m0-6l-6 6` });
        });
      }
      plot.brush = brush(now);
    }
    function point() {
      const { root, box, x, bottom } = now, all = spec.series(), whole = view.cursor === null;
      root.querySelector(".moving")?.remove();
      const moving = svg(root, "g", { class: "moving" });
      const i = whole ? steps.length - 1 : nearest(steps, view.cursor);
      readout.replaceChildren();
      if (!steps.length) return;
      html(readout, "span", { class: "at" }, `step ${rounded(steps[i])}`);
      const told = [], cell = () => { readout.append(" "); return html(readout, "span", {}); };
      if (!whole && x(steps[i]) >= box.left - 1) svg(moving, "line", { class: "cursor", x1: x(steps[i]), x2: x(steps[i]), y1: box.top, y2: bottom });
      for (const s of all) {
        let j = i;
        while (j > 0 && s.values[j] === null) j--; // a column that is not in every row: its last value
        const text = number(s.values[j]), late = j < i && s.values[j] !== null ? ` at ${rounded(steps[j])}` : "";
        const span = cell();
        html(span, "i", { class: `key c-${s.kind}` });
        if (s.name) span.append(`${s.name} `);
        html(span, "b", {}, text);
        span.append(late);
        told.push(`${s.name} ${text}${late}`.trim());
        if (!whole && finite(s.values[j]) && y(s.values[j]) >= 0 && x(steps[j]) >= box.left - 1) svg(moving, "circle", { class: `dot c-${s.kind}`, cx: x(steps[j]), cy: y(s.values[j]), r: 3.5 });
      }
      if (spec.level) {
        const span = cell();
        html(span, "i", { class: "key dashed c-level" });
        span.append(`${spec.level.name} `);
        html(span, "b", {}, number(spec.level.value));
        told.push(`${spec.level.name} ${number(spec.level.value)}`);
      }
      speak(plot, steps[i], told.join(", "));
    }
    plots.push({ draw, point });
    listen(plot, steps, () => now);
  }
  const brush = ({ root, box, x, bottom }) => {
    const rect = svg(root, "rect", { class: "brush", y: box.top, height: bottom - box.top, x: 0, width: 0 });
    return (a, b) => put(rect, { x: Math.min(x(a), x(b)), width: Math.abs(x(a) - x(b)) });
  };

  // ── Gradient flow: layer × step, the colour on a logarithmic scale ────────────────────────────────────────────

  const LIGHT = [[247, 244, 224], [199, 224, 190], [128, 193, 187], [66, 150, 178], [36, 100, 156], [27, 58, 115], [17, 22, 66]];
  const DARK = [[24, 30, 48], [27, 58, 100], [30, 100, 138], [60, 146, 150], [129, 189, 150], [200, 222, 150], [252, 246, 190]];
  function colour(t) {
    const ramp = dark.matches && !print.matches ? DARK : LIGHT, place = clamp(t, 0, 1) * (ramp.length - 1), i = Math.min(Math.floor(place), ramp.length - 2);
    return `rgb(${ramp[i].map((c, k) => Math.round(c + (ramp[i + 1][k] - c) * (place - i))).join(",")})`;
  }
  function heat(figure, { steps, names, labels, values }) {
    const plot = figure.querySelector(".plot"), readout = figure.querySelector(".readout"), canvas = plot.querySelector("canvas");
    const seen = values.flat().filter((v) => finite(v) && v > 0).map(Math.log10).sort((a, b) => a - b);
    const low = seen[Math.floor(0.005 * seen.length)] ?? 0, high = seen[Math.ceil(0.995 * seen.length) - 1] ?? 1;
    const shade = (v) => (Math.log10(v) - low) / (high - low || 1);
    const tall = clamp(Math.floor(420 / names.length), 4, 24);
    let now;
    const top = (row) => now.box.top + row * tall;

    function draw() {
      const small = plot.clientWidth < 560, left = small ? 92 : 170;
      now = frame(plot, left, names.length * tall + 34);
      const { root, box, x, bottom } = now, sharp = devicePixelRatio || 1;
      put(canvas, { width: Math.round(now.inner * sharp), height: Math.round((bottom - box.top) * sharp) });
      Object.assign(canvas.style, { left: `${left}px`, top: `${box.top}px`, width: `${now.inner}px`, height: `${bottom - box.top}px` });
      const pen = canvas.getContext("2d");
      pen.scale(sharp, sharp);
      const alarm = getComputedStyle(plot).getPropertyValue("--alarm");
      values.forEach((row, r) => row.forEach((v, i) => {
        if (v === null) return;
        pen.fillStyle = !finite(v) ? alarm : colour(v > 0 ? shade(v) : 0);
        const from = x(i ? steps[i - 1] : data.span[0]) - left, to = x(steps[i]) - left;
        if (to >= 0 && from <= now.inner) pen.fillRect(from, r * tall, Math.max(to - from, 1) + 0.5, tall - (tall > 8 ? 1 : 0));
      }));
      let free = -Infinity;
      labels.forEach(([name, index], r) => {
        const begins = r === 0 || labels[r - 1][0] !== name, height = top(r) + tall / 2;
        if (height - free < (begins ? 9 : 12)) return;
        free = height;
        const room = small ? 13 : 26, text = name.length > room ? `${name.slice(0, room - 1)}…` : name;
        const label = svg(root, "text", { x: left - 8, y: height + 4, "text-anchor": "end" }, index === "" ? text : begins ? `${text} ${index}` : index);
        svg(label, "title", {}, names[r]);
      });
      marks(now);
      plot.brush = brush(now);
    }
    function point() {
      const { root, box, x } = now, i = view.cursor === null ? steps.length - 1 : nearest(steps, view.cursor), value = number(values[view.row][i]);
      root.querySelector(".moving")?.remove();
      const moving = svg(root, "g", { class: "moving" });
      [...view.lines].forEach((row, k) => svg(moving, "line", { class: `chosen c-${k % 6}`, x1: box.left - 4, x2: box.left - 4, y1: top(row) + 1, y2: top(row) + tall - 1 }));
      if (view.cursor !== null) {
        svg(moving, "line", { class: "cursor", x1: x(steps[i]), x2: x(steps[i]), y1: box.top, y2: now.bottom });
        svg(moving, "rect", { class: "row", x: box.left, y: top(view.row), width: now.inner, height: tall });
      }
      readout.replaceChildren();
      html(readout, "span", { class: "at" }, `step ${rounded(steps[i])}`);
      readout.append(" ");
      const span = html(readout, "span", {}, `${names[view.row]} `);
      html(span, "b", {}, value);
      readout.append(" ");
      const key = html(readout, "span", {}, number(10 ** low));
      const ramp = html(key, "i", { class: "ramp" });
      ramp.style.background = `linear-gradient(90deg, ${[0, 1, 2, 3, 4, 5, 6].map((k) => colour(k / 6)).join(", ")})`;
      key.append(number(10 ** high));
      speak(plot, steps[i], `${names[view.row]} ${value}${view.lines.has(view.row) ? ", drawn below" : ""}`);
    }
    const choose = () => { if (!view.lines.delete(view.row)) view.lines.add(view.row); drawAll(); };
    const over = (event) => clamp(Math.floor((event.clientY - plot.getBoundingClientRect().top - now.box.top) / tall), 0, names.length - 1);
    for (const name of ["pointermove", "pointerdown"]) plot.addEventListener(name, (event) => { view.row = over(event); });
    plot.addEventListener("click", (event) => { view.row = over(event); if (!plot.dragged) choose(); });
    plots.push({ draw, point });
    listen(plot, steps, () => now, (event) => {
      if (event.key === "Enter" || event.key === " ") choose();
      else if (event.key === "ArrowUp" || event.key === "ArrowDown") view.row = clamp(view.row + (event.key === "ArrowUp" ? -1 : 1), 0, names.length - 1);
      else return false;
      return true;
    });
  }

  // ── The page ──────────────────────────────────────────────────────────────────────────────────────────────────

  document.querySelectorAll("[data-chart]").forEach((figure) => {
    const spec = data.charts[figure.dataset.chart];
    chart(figure, { ...spec, steps: data.tables[spec.table].step, series: () => spec.series.map((s) => ({ ...s, values: data.tables[spec.table][s.column] })) });
  });
  if (data.layers) {
    heat(document.getElementById("flow"), data.layers);
    const series = () => [...view.lines].map((row, k) => ({ name: data.layers.names[row], kind: k % 6, values: data.layers.values[row] }));
    chart(document.getElementById("lines"), { steps: data.layers.steps, series, log: true });
  }
  const slider = document.getElementById("smoothing");
  slider?.addEventListener("input", () => {
    view.smoothing = 0.1 * slider.value ** 2 * data.span[1];
    slider.nextElementSibling.value = view.smoothing ? `over ± ${number(Number(view.smoothing.toPrecision(2)))} steps` : "none";
    drawAll();
  });
  document.getElementById("whole")?.addEventListener("click", () => zoom(...data.span));
  document.querySelector("details.values")?.addEventListener("toggle", function () {
    const box = this.querySelector(".scroll");
    if (box.firstChild) return;
    const table = html(box, "table", {}), names = Object.keys(data.tables.rows);
    const head = html(html(table, "thead", {}), "tr", {}), body = html(table, "tbody", {});
    names.forEach((name) => html(head, "th", { class: "n", scope: "col" }, name));
    data.tables.rows.step.forEach((_, i) => {
      const line = html(body, "tr", {});
      names.forEach((name) => html(line, "td", { class: "n" }, number(data.tables.rows[name][i])));
    });
  });
  addEventListener("pointerdown", (event) => { if (!event.target.closest(".plot") && view.cursor !== null) { view.cursor = null; pointAll(); } });
  drawAll();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
  dark.addEventListener("change", drawAll);
  print.addEventListener("change", drawAll);
})();
