/* Line charts: `lineChart(spec, linked)`. */

/** Round ticks over [low, high]; `whole` keeps to integers. */
function ticks(low, high, wanted, whole) {
  const span = high - low || Math.abs(high) || 1;
  const rough = whole ? Math.max(1, span / wanted) : span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, whole && power < 10 ? 5 : 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough * 0.999);
  const out = [];
  for (let n = Math.floor(low / step + 1e-9); n * step <= high + step * 1e-6; n++) out.push(Number((n * step).toPrecision(12)));
  return out;
}
function logTicks(low, high) {
  const out = [];
  const leads = Math.log10(high / low) < 2.2 ? [1, 2, 5] : [1];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const m of leads) out.push(Number((m * 10 ** e).toPrecision(6)));
  return out.filter((t) => t >= low * 0.999 && t <= high * 1.001);
}
/** Weighted mean over neighbours; `sigma` in points. Gaps stay out of it. */
function smooth(values, sigma) {
  if (sigma < 0.3) return values;
  const reach = Math.ceil(3 * sigma);
  return values.map((v, i) => {
    if (!isNumber(v)) return null;
    let sum = 0, weight = 0;
    for (let j = Math.max(0, i - reach); j <= Math.min(values.length - 1, i + reach); j++) {
      if (!isNumber(values[j])) continue;
      const w = Math.exp(-((i - j) ** 2) / (2 * sigma * sigma));
      sum += w * values[j];
      weight += w;
    }
    return sum / weight;
  });
}
/** SVG path through the points that exist; a gap lifts the pen. */
function path(xs, ys) {
  let out = "", pen = false;
  for (let i = 0; i < xs.length; i++) {
    if (!isNumber(ys[i])) { pen = false; continue; }
    out += `${pen ? "L" : "M"}${xs[i].toFixed(1)} ${ys[i].toFixed(1)}`;
    pen = true;
  }
  return out;
}
const DASHES = ["", "", "", "", "7 3", "2 3", "9 3 2 3", ""];
/** Labels of the lines that the reader has switched off, by chart: a chart that is drawn anew keeps them. */
const linesOff = new Map();
const smoothing = { level: 3, charts: [] };

/** A figure with one or more lines over a common x.
 *  spec: {title, hint, xs, xName, lines: [{label, values, colour, dash}], show, stack: "area"|"bars"|undefined,
 *         log, smooth, wide, key}. `linked` is an array of charts that share the crosshair. */
function lineChart(spec, linked) {
  const off = linesOff.get(spec.key) || new Set();
  linesOff.set(spec.key, off);
  const hiddenLines = new Set(spec.lines.map((line, n) => (off.has(line.label) ? n : -1)).filter((n) => n >= 0));
  const readout = h("span", { class: "readout" });
  const plot = h("div", { class: "plot" });
  const show = spec.show || plain;
  const many = spec.lines.length > 1;
  const last = spec.xs.length - 1;
  let svg, cursor = null, geometry = null;

  const legend = many && h("div", { class: "legend" }, spec.lines.map((line, n) =>
    h("button", {
      type: "button", "aria-pressed": String(!hiddenLines.has(n)), title: "Show or hide this line",
      onclick: (event) => {
        if (hiddenLines.delete(n)) off.delete(line.label);
        else if (hiddenLines.size < spec.lines.length - 1) {
          hiddenLines.add(n);
          off.add(line.label);
        }
        event.currentTarget.setAttribute("aria-pressed", String(!hiddenLines.has(n)));
        plot.redraw(plot.drawnAt);
      },
    }, spec.stack
      ? h("span", { class: "swatch", css: { background: line.colour, width: "10px", height: "10px", "border-radius": "2px" } })
      : s("svg", { viewBox: "0 0 18 8", "aria-hidden": "true" }, s("line", { x1: 0, x2: 18, y1: 4, y2: 4, stroke: line.colour, "stroke-width": 2.2, "stroke-dasharray": line.dash || null })),
    h("span", { class: line.code ? "mono" : null }, line.label))));

  const rows = (i) => spec.lines.map((line, n) => ({ label: line.label, value: line.exact ? line.exact(i) : show(line.values[i]), colour: line.colour, n })).filter((r) => !hiddenLines.has(r.n));
  const words = (i) => `${spec.xName} ${plain(spec.xs[i])}: ` + rows(i).map((r) => (many ? `${r.label} ${r.value}` : r.value)).join(", ");

  function read(i) {
    if (many) readout.replaceChildren(i === null ? "" : `${spec.xName} ${plain(spec.xs[i])}`);
    else {
      // At rest, the last value there is: a step without a usable group measures nothing.
      const known = Math.max(0, spec.lines[0].values.findLastIndex(isNumber));
      const at = i === null ? known : i;
      readout.replaceChildren(i === null && known === last ? "" : `${spec.xName} ${plain(spec.xs[at])}\u2002`, h("span", {}, show(spec.lines[0].values[at])));
    }
  }
  function mark() {
    if (!geometry) return;
    geometry.overlay.replaceChildren();
    if (cursor === null) return;
    const x = geometry.x[cursor];
    geometry.overlay.append(s("line", { class: "cross", x1: x, x2: x, y1: geometry.top, y2: geometry.bottom }));
    if (!spec.stack) {
      spec.lines.forEach((line, n) => {
        const value = line.values[cursor];
        if (isNumber(value) && !hiddenLines.has(n)) geometry.overlay.append(s("circle", { cx: x, cy: geometry.y(value), r: 3.6, fill: line.colour, stroke: "var(--surface)", "stroke-width": 1.5 }));
      });
    }
  }
  const chart = {
    moveTo(i) {
      cursor = i;
      read(i);
      mark();
      if (svg) {
        svg.setAttribute("aria-valuenow", plain(spec.xs[i ?? last]));
        svg.setAttribute("aria-valuetext", words(i ?? last));
      }
    },
    redraw: () => plot.drawnAt && plot.redraw(plot.drawnAt),
  };
  linked.push(chart);
  if (spec.smooth) smoothing.charts.push(chart);

  function point(i, event) {
    for (const other of linked) other.moveTo(i);
    if (i === null) return hideTip();
    const box = svg.getBoundingClientRect();
    const x = event ? event.clientX : box.left + geometry.x[i];
    showTip(rows(i), `${spec.xName} ${plain(spec.xs[i])}`, x, event ? event.clientY : box.top + box.height / 2);
  }
  function nearest(event) {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * (geometry.width / box.width);
    let best = 0;
    for (let i = 1; i <= last; i++) if (Math.abs(geometry.x[i] - x) < Math.abs(geometry.x[best] - x)) best = i;
    return best;
  }
  function onKey(event) {
    const jump = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (event.key === "Escape") return point(null);
    if (jump === undefined && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault();
    const next = event.key === "Home" ? 0 : event.key === "End" ? last : Math.min(last, Math.max(0, (cursor ?? (jump < 0 ? last + 1 : -1)) + jump));
    point(next);
  }

  responsive(plot, (width) => {
    const height = spec.wide ? 190 : 140;
    const visible = spec.lines.filter((_, n) => !hiddenLines.has(n));
    const smoothed = visible.map((line) => (spec.smooth && !spec.stack ? smooth(line.values, (smoothing.level / 3) * Math.max(0.8, spec.xs.length / 50)) : line.values));
    let sums = null;
    if (spec.stack === "area") {
      // Cumulated from the first line upwards, as shares of the whole.
      sums = [spec.xs.map(() => 0)];
      visible.forEach((line) => sums.push(sums.at(-1).map((v, i) => v + (line.values[i] || 0))));
      const whole = sums.at(-1);
      sums = sums.map((row) => row.map((v, i) => (whole[i] ? v / whole[i] : 0)));
    }
    const every = (sums ? sums.flat() : visible.flatMap((line) => line.values)).filter(isNumber);
    // Not Math.min(...every): the curves of many runs are more values than a call may have arguments.
    const extreme = (first, better) => every.reduce((a, b) => (better(b, a) ? b : a), every[0] ?? first);
    let low = extreme(0, (b, a) => b < a), high = extreme(1, (b, a) => b > a);
    const log = spec.log && low > 0 && high / low > 20;
    if (!log && (spec.zero || (low > 0 && low < high * 0.35))) low = Math.min(0, low);
    if (spec.stack === "area") [low, high] = [0, 1];
    if (low === high) [low, high] = low ? [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1] : [0, 1];
    const at = log ? logTicks(low, high) : ticks(low, high, 3);
    if (!log) {
      const step = at.length > 1 ? at[1] - at[0] : high - low;
      if (at.at(-1) < high - step * 0.02 && !(spec.most !== undefined && at.at(-1) >= spec.most)) at.push(Number((at.at(-1) + step).toPrecision(12)));
      [low, high] = [Math.min(low, at[0]), Math.max(high, at.at(-1))];
    }
    const tickText = spec.axis || show;
    const left = Math.max(22, ...at.map((t) => tickText(t).length * 6.3 + 8)), right = 10, top = 8, bottom = height - 20;
    const scale = (v) => (log ? Math.log(v) - Math.log(low) : v - low) / (log ? Math.log(high) - Math.log(low) : high - low);
    const y = (v) => bottom - scale(v) * (bottom - top);
    const [x0, x1] = [spec.xs[0], spec.xs[last]];
    const slot = (width - left - right) / Math.max(1, spec.xs.length);
    const inset = spec.stack === "bars" ? slot / 2 : 0;
    const toX = (v) => (x1 === x0 ? (left + width - right) / 2 : left + inset + ((v - x0) / (x1 - x0)) * (width - left - right - 2 * inset));
    const x = spec.xs.map(toX);
    const marks = s("g", {});
    if (sums && last > 0) {
      visible.forEach((line, n) => {
        const upper = path(x, sums[n + 1].map(y)), lower = path([...x].reverse(), sums[n].map(y).reverse());
        marks.append(s("path", { d: `${upper}L${lower.slice(1)}Z`, fill: line.colour, stroke: "var(--surface)", "stroke-width": 0.8 }));
      });
    } else if (spec.stack) {
      // Bars stand beside each other; with one step an area has no width either.
      const bar = Math.max(1.5, Math.min(12, (slot * 0.8) / visible.length));
      visible.forEach((line, n) => (sums ? sums[n + 1].map((v, i) => v - sums[n][i]) : line.values).forEach((v, i) => {
        if (v > 0) marks.append(s("rect", { x: (x[i] + (n - visible.length / 2) * bar).toFixed(1), width: bar, y: y(v), height: bottom - y(v), fill: line.colour }));
      }));
    } else {
      visible.forEach((line, n) => {
        const raw = smoothed[n] !== line.values;
        if (raw && x.length <= 240) line.values.forEach((v, i) => isNumber(v) && marks.append(s("circle", { cx: x[i].toFixed(1), cy: y(v).toFixed(1), r: 1.5, fill: line.colour, "fill-opacity": many ? 0.28 : 0.4 })));
        else if (raw) marks.append(s("path", { d: path(x, line.values.map((v) => (isNumber(v) ? y(v) : null))), fill: "none", stroke: line.colour, "stroke-opacity": 0.25 }));
        marks.append(s("path", { d: path(x, smoothed[n].map((v) => (isNumber(v) ? y(v) : null))), fill: "none", stroke: line.colour, "stroke-width": 1.9, "stroke-linejoin": "round", "stroke-linecap": "round", "stroke-dasharray": line.dash || null }));
        const alone = (i) => !isNumber(line.values[i - 1]) && !isNumber(line.values[i + 1]);
        line.values.forEach((v, i) => isNumber(v) && (line.points || alone(i)) && marks.append(s("circle", { cx: x[i], cy: y(v), r: 3.2, fill: line.colour })));
      });
    }
    const xTicks = spec.whole ? spec.xs : ticks(x0, x1, Math.max(3, Math.floor(width / 110)), true).filter((t) => t >= x0 && t <= x1);
    const overlay = s("g", {});
    svg = s("svg", {
      viewBox: `0 0 ${width} ${height}`, class: "live", tabindex: 0, role: "slider", "data-chart": spec.key,
      "aria-label": `${spec.title}; arrow keys read the values`, "aria-valuemin": x0, "aria-valuemax": x1,
      onpointermove: (event) => point(nearest(event), event), onpointerdown: (event) => point(nearest(event), event),
      onpointerleave: () => point(null), onblur: () => point(null), onkeydown: onKey,
    },
    s("rect", { x: 0, y: 0, width, height, fill: "transparent" }),
    at.map((t) => [
      s("line", { class: t === at[0] && !log ? "axis" : "grid", x1: left, x2: width - right, y1: y(t), y2: y(t) }),
      s("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, tickText(t)),
    ]),
    !spec.whole && toX(xTicks[0] ?? x1) > left + 44 && s("text", { x: left, y: height - 4 }, spec.xName),
    xTicks.map((t) => s("text", { x: toX(t), y: height - 4, "text-anchor": toX(t) > width - 24 && !spec.whole ? "end" : "middle" }, plain(t))),
    marks, overlay);
    geometry = { x, y, top, bottom, width, overlay };
    const focused = plot.contains(document.activeElement);
    plot.replaceChildren(svg);
    if (focused) svg.focus({ preventScroll: true });
    chart.moveTo(cursor);
  });
  read(null);
  return h("figure", { class: "chart" + (spec.wide ? " wide" : "") },
    h("figcaption", {}, h("b", {}, spec.title), readout), spec.hint && h("p", { class: "hint" }, spec.hint), legend, plot);
}
