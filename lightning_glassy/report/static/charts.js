// The charts: traces and axes.

import {escaped, integer, markup} from "./dom.js";
import {accent, axis, faint, labelled, layout, muted, runColour, timeColour} from "./look.js";
import {abscissa, inEpochs, label, model, mu, observable, relativeMsd, relaxing} from "./model.js";

const CONFIG = {responsive: true, displayModeBar: false, doubleClick: "reset+autosize"};
const MANY_POINTS = 4000; // of all series: with more points, lines are enough, and three times as fast

const X_TITLES = {
  lag: "lag <i>t</i> (steps)",
  plain: "<i>t</i> / <i>t</i><sub>w</sub><sup><i>μ</i></sup>",
  effective: "effective time <i>h</i>",
};

const HOVER = "<b>%{customdata[0]}</b><br><i>t</i><sub>w</sub> = %{customdata[1]}<br><i>t</i> = %{customdata[2]}"
  + "<br>%{y:.5~g}%{text}<extra></extra>";
const CROSSING_HOVER = "<b>%{customdata[0]}</b><br><i>t</i><sub>w</sub> = %{customdata[1]}<br><i>t</i>* = %{y:.5~g}"
  + "<extra></extra>";
const STEP_HOVER = "<b>%{customdata[0]}</b><br>step %{customdata[1]}%{text}<br>%{y:.5~g}<extra></extra>";

const lagTexts = new Map(); // many curves have the same lags
function lagText(lag) {
  if (!lagTexts.has(lag)) lagTexts.set(lag, integer(lag));
  return lagTexts.get(lag);
}

// The curves of some series as traces: one per waiting time, or one per series with gaps between its curves.
function curveTraces(seriesList, view, xOf, axes = {}) {
  const groups = new Map(), inRms = view.log && view.isMsd !== false && model.state.observable === "msd";
  seriesList.forEach((one) => {
    const name = escaped(label(one));
    one.waiting_times.forEach((waitingTime, i) => {
      if (view.hidden.has(waitingTime)) return;
      const key = view.byRun ? one.index : waitingTime;
      if (!groups.has(key)) {
        const colour = view.byRun ? runColour(one.index) : timeColour(waitingTime, view.last);
        groups.set(key, {colour, x: [], y: [], customdata: [], text: [], bands: []});
      }
      const into = groups.get(key), band = {x: [], low: [], high: []}, time = integer(waitingTime);
      const epochs = inEpochs(one.run, waitingTime, "<br><i>t</i><sub>w</sub> = ");
      if (into.x.length) { into.x.push(null); into.y.push(null); into.customdata.push(null); into.text.push(""); }
      one.lags[i].forEach((lag, j) => {
        const x = xOf(one, i, j), y = one.values[i][j];
        if (x === null || (view.log && !(y > 0))) return;
        into.x.push(x);
        into.y.push(y);
        const relative = inRms ? relativeMsd(one, y) : "";
        into.customdata.push([name, time, lagText(lag)]);
        into.text.push((relative && `<br>${relative}`) + epochs);
        if (one.band && one.band.low[i][j] !== null) {
          band.x.push(x);
          band.low.push(view.log ? Math.max(one.band.low[i][j], y * 1e-3) : one.band.low[i][j]);
          band.high.push(one.band.high[i][j]);
        }
      });
      if (band.x.length) into.bands.push(band);
    });
  });
  const traces = [];
  for (const {colour, bands} of groups.values()) {
    for (const band of bands) {
      traces.push({
        type: "scatter", mode: "lines", line: {width: 0}, fill: "toself", fillcolor: faint(colour), hoverinfo: "skip",
        x: [...band.x, ...band.x.slice().reverse()], y: [...band.high, ...band.low.slice().reverse()], ...axes,
      });
    }
  }
  for (const {colour, x, y, customdata, text} of groups.values()) {
    if (!x.some((value) => value !== null)) continue;
    traces.push({
      type: "scatter", mode: view.points > MANY_POINTS ? "lines" : "lines+markers", x, y, customdata, text, hovertemplate: HOVER,
      line: {width: 1.6, color: colour}, marker: {size: 3.5, color: colour}, ...axes,
    });
  }
  return traces;
}

const levelAt = (y, xref, yref, line) => (
  {type: "line", xref: `${xref} domain`, yref, x0: 0, x1: 1, y0: y, y1: y, line: {color: muted(), ...line}});

// Draw a figure, and set the height of its element. Otherwise charts overlap in a file.
function react(element, traces, figure, more = {}) {
  element.style.height = `${figure.height}px`;
  labelled(figure, traces);
  return window.Plotly.react(element, traces, figure, {...CONFIG, ...more});
}

const sizeOf = (element) => ({width: element.clientWidth, phone: element.clientWidth < 560});

// Several panels in one figure, so that they share their axes and are exported together.
function panels(element, titles, {x, y, height, draw, shapes = () => []}) {
  const {width, phone} = sizeOf(element);
  const columns = Math.min(titles.length, Math.max(1, Math.floor(width / (titles.length > 4 ? 300 : 380))));
  const rows = Math.ceil(titles.length / columns);
  const each = titles.length === 1 ? height : phone ? 250 : rows > 1 ? 270 : height - 40;
  const gapX = 64 / Math.max(width, 300), gapY = 74 / (rows * each);
  const traces = [], axes = {}, annotations = [], lines = [];
  titles.forEach((title, i) => {
    const id = i === 0 ? "" : i + 1, column = i % columns, row = Math.floor(i / columns);
    const wide = (1 - gapX * (columns - 1)) / columns, tall = (1 - gapY * (rows - 1)) / rows;
    const bottom = titles.length - i <= columns, domain = [column * (wide + gapX), column * (wide + gapX) + wide];
    const top = 1 - row * (tall + gapY);
    const automargin = titles.length === 1; // with many panels it takes longer than drawing all lines
    const shared = (name) => (i ? {matches: name} : {}), untitled = (inside) => (inside ? {title: {text: ""}} : {});
    axes[`xaxis${id}`] = {...x, automargin, domain, anchor: `y${id}`, ...shared("x"), ...untitled(!bottom)};
    axes[`yaxis${id}`] = {
      ...y, automargin, domain: [Math.max(0, top - tall), top], anchor: `x${id}`, ...shared("y"), ...untitled(column > 0)};
    traces.push(...draw(i, {xaxis: `x${id}`, yaxis: `y${id}`}));
    lines.push(...shapes(`x${id}`, `y${id}`));
    annotations.push({
      text: `<b>${escaped(title)}</b>`, showarrow: false, xref: "paper", yref: "paper", x: domain[0], y: top,
      xanchor: "left", yanchor: "bottom", yshift: 4, font: {size: 12},
    });
  });
  const several = titles.length > 1;
  return [traces, layout({
    ...axes, annotations: several ? annotations : [], shapes: lines, height: rows * each + (several ? 40 : 0),
    margin: {l: 66, r: 14, t: several ? 30 : 12, b: 48},
  })];
}

export function drawCurves(element, series, view, onThreshold) {
  const x = axis(X_TITLES[view.x], true), y = axis(markup(observable().symbol), view.log);
  const xOf = abscissa();
  const list = view.side ? series.map((one) => [one]) : [series];
  const drawn = view.threshold === null ? null : relaxing(view.threshold);
  const shapes = (xref, yref) => (drawn === null ? [] : [levelAt(drawn, xref, yref, {width: 1.5, dash: "dash"})]);
  const [traces, figure] = panels(element, list.map((part) => label(part[0])), {
    x, y, height: sizeOf(element).phone ? 330 : 440, shapes,
    draw: (i, axes) => curveTraces(list[i], view, xOf, axes),
  });
  // The zoom stays while the chart shows the same data.
  figure.uirevision = [view.x, model.state.observable, view.side, list.length].join();
  react(element, traces, figure, {edits: {shapePosition: true}});
  if (!element.glassyDrag) {
    element.glassyDrag = true;
    element.on("plotly_relayout", (change) => {
      const moved = Object.entries(change).find(([key]) => /^shapes\[\d+\]\.y0$/.test(key));
      if (moved) element.glassyThreshold(moved[1]);
    });
  }
  element.glassyThreshold = (value) => onThreshold(relaxing(value));
}

export function drawCrossings(element, series) {
  const traces = [];
  for (const {one, crossings, law} of series) {
    const colour = series.length > 1 ? runColour(one.index) : accent();
    const kept = crossings.filter(({time, lag}) => typeof lag === "number" && time > 0);
    traces.push({
      type: "scatter", mode: "markers", marker: {size: 7, color: colour}, hovertemplate: CROSSING_HOVER,
      x: kept.map(({time}) => time), y: kept.map(({lag}) => lag),
      customdata: kept.map(({waitingTime}) => [escaped(label(one)), integer(waitingTime)]),
    });
    if (law) {
      const x = [kept[0].time, kept.at(-1).time], y = x.map(law.line);
      traces.push({type: "scatter", mode: "lines", line: {color: colour, width: 1.5}, hoverinfo: "skip", x, y});
    }
  }
  const origins = new Set(series.flatMap(({crossings}) => crossings.map(({time, waitingTime}) => time - waitingTime)));
  const from = origins.size === 1 && !origins.has(0) ? ` + ${Number([...origins][0].toPrecision(3))}` : "";
  react(element, traces, layout({
    xaxis: axis(`waiting time <i>t</i><sub>w</sub>${from} (steps)`, true), yaxis: axis("lag <i>t</i>* (steps)", true), height: 320,
  }));
}

// Draw S against mu. A single series has a line for each scaling variable. Several series have one line each.
export function drawScans(element, fits) {
  const several = fits.length > 1, value = mu();
  const traces = fits.flatMap(({one, fit}) => (several ? [fit.variable] : ["effective", "plain"]).map((variable) => {
    const name = several ? escaped(label(one)) : X_TITLES[variable];
    const color = several ? runColour(one.index) : variable === "plain" ? runColour(1) : accent();
    return {
      type: "scatter", mode: "lines", x: fit.scan.mus, y: fit.scan[variable], line: {width: 1.5, color}, name, text: name,
      hovertemplate: "<b>%{text}</b><br><i>μ</i> = %{x:.3f}<br><i>S</i> = %{y:.3~g}<extra></extra>",
    };
  }));
  const here = {type: "line", yref: "paper", x0: value, x1: value, y0: 0, y1: 1, line: {color: muted(), width: 1, dash: "dot"}};
  react(element, traces, layout({
    xaxis: axis("<i>μ</i>", false), yaxis: axis("quality <i>S</i> of the collapse", true), height: 240, shapes: [here],
    showlegend: !several, legend: {orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom"},
    margin: {l: 64, r: 16, t: 30, b: 48},
  }));
}

export function drawExponents(element, series, view) {
  const list = view.side ? series.map((one) => [one]) : [series];
  const [traces, figure] = panels(element, list.map((part) => label(part[0])), {
    x: axis(X_TITLES.lag, true), y: axis("<i>γ</i>(<i>t</i><sub>w</sub>, <i>t</i>)", false), height: 320,
    draw: (i, axes) => curveTraces(list[i], {...view, log: false}, (one, i, j) => one.lags[i][j], axes),
    shapes: (xref, yref) => [levelAt(1, xref, yref, {width: 1, dash: "dot"})],
  });
  react(element, traces, figure);
}

const ends = (values) => [
  values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];

function spansDecades(values) {
  const [low, high] = ends(values);
  return low > 0 && high / low > 30;
}

// A symmetric logarithm: linear up to a hundredth of the largest size, and logarithmic above, for both signs.
function symlog(values) {
  const sizes = values.map(Math.abs).filter((value) => value > 0), most = sizes.reduce((a, b) => Math.max(a, b), 0);
  const small = most / 100, place = (value) => Math.sign(value) * Math.log10(1 + Math.abs(value) / small);
  const power = 10 ** Math.floor(Math.log10(most)), levels = [power, power / 10];
  const ticks = [...levels.map((value) => -value).filter((value) => value >= Math.min(...values) * 1.1), 0, ...levels.reverse()];
  const tick = (value) => String(Number(value.toPrecision(2))).replace("-", "−");
  return {place, axis: {tickmode: "array", tickvals: ticks.map(place), ticktext: ticks.map(tick)}};
}

export function drawSeries(element, name, runs, regimes = []) {
  const traces = [];
  let all = [];
  for (const one of runs) {
    const {steps, values} = one.one_time[name], colour = runs.length > 1 ? runColour(one.index) : accent();
    const kept = [...steps.keys()].filter((i) => steps[i] > 0 && values[i] !== null), y = kept.map((i) => values[i]);
    const error = one.one_time[`${name}_error`];
    const errors = error && new Map(error.steps.map((step, i) => [step, error.values[i]]));
    all = all.concat(y);
    traces.push({
      type: "scatter", mode: kept.length > 300 ? "lines" : "lines+markers", line: {width: 1.5, color: colour},
      marker: {size: 3.5}, x: kept.map((i) => steps[i]), y, hovertemplate: STEP_HOVER,
      error_y: {visible: Boolean(errors), array: kept.map((i) => errors?.get(steps[i]) ?? 0), thickness: 1, width: 2},
      customdata: kept.map((i) => [escaped(one.run), integer(steps[i])]), text: kept.map((i) => inEpochs(one.run, steps[i])),
    });
  }
  const [low, high] = ends(all), around = Math.abs(high) || 1, shapes = [];
  // Eigenvalues of both signs over several decades.
  const both = /^(hessian|gauss_newton)_(min|max|q\d|\w*_at_)/.test(name) && low < 0 && (high <= 0 || spansDecades(all.map(Math.abs)));
  // A constant series needs no magnified axis.
  let y = axis("", spansDecades(all), high === low ? {range: [high - around, high + around]} : {});
  if (both) {
    const {place, axis: ticks} = symlog(all);
    y = axis("", false, ticks);
    for (const trace of traces) {
      trace.text = trace.y.map((value, i) => `${trace.text[i]}<br>${Number(value.toPrecision(5))}`);
      trace.hovertemplate = STEP_HOVER.replace("<br>%{y:.5~g}", "");
      trace.y = trace.y.map(place);
      trace.error_y.visible = false;
    }
  }
  for (const {steps, fitted, crossovers} of name === "train_loss" ? regimes : []) {
    traces.push({type: "scatter", mode: "lines", x: steps, y: fitted, line: {color: muted(), width: 1, dash: "dash"}, hoverinfo: "skip"});
    for (const {step, interval} of crossovers) {
      if (interval) shapes.push({type: "rect", yref: "paper", x0: interval[0], x1: interval[1], y0: 0, y1: 1, fillcolor: faint("#808080"), line: {width: 0}});
      shapes.push({type: "line", yref: "paper", x0: step, x1: step, y0: 0, y1: 1, line: {color: muted(), width: 1}});
    }
  }
  const figure = layout({xaxis: axis("step", true), yaxis: y, height: 230, shapes, margin: {l: 56, r: 12, t: 6, b: 42}});
  react(element, traces, figure);
}

// Functions of one lag: one line for each waiting time, with a Gaussian beside displacements.
export function drawAtLag(element, name, runs, lag) {
  const traces = [], {density} = runs[0].profiles[name];
  let last = 1, all = [];
  for (const one of runs) last = one.profiles[name].waiting_times.reduce((a, b) => Math.max(a, b), last);
  for (const one of runs) {
    const {waiting_times: times, lags, grid, values} = one.profiles[name];
    for (const time of new Set(times)) {
      const places = times.map((other, i) => i).filter((i) => times[i] === time);
      const distance = (i) => Math.abs(Math.log(Math.max(lags[i], 1) / Math.max(lag, 1)));
      const i = places.reduce((best, k) => (distance(k) < distance(best) ? k : best));
      const kept = [...grid.keys()].filter((j) => values[i][j] !== null && !(density && values[i][j] <= 0));
      const y = kept.map((j) => values[i][j]), colour = runs.length > 1 ? runColour(one.index) : timeColour(time, last);
      all = all.concat(y);
      traces.push({
        type: "scatter", mode: "lines", line: {width: 1.3, color: colour}, x: kept.map((j) => grid[j]), y,
        text: "",
        customdata: kept.map(() => [escaped(one.run), integer(time), integer(lags[i])]), hovertemplate: HOVER,
      });
    }
  }
  if (name === "displacement") {
    const x = Array.from({length: 161}, (_, k) => -8 + k / 10), y = x.map((value) => Math.exp(-value * value / 2) / Math.sqrt(2 * Math.PI));
    traces.push({type: "scatter", mode: "lines", x, y, line: {color: muted(), width: 1.2, dash: "dash"}, hoverinfo: "skip"});
  }
  const titles = {displacement: "Δ<i>w</i> over its rms", weights: "<i>w</i>", loss_path: "place between the two times"};
  const log = density || spansDecades(all), x = axis(titles[name] ?? "", false), y = axis("", log);
  if (name === "displacement") { x.range = [-8, 8]; y.range = [-5, 0.3]; }
  react(element, traces, layout({xaxis: x, yaxis: y, height: 280, margin: {l: 56, r: 12, t: 6, b: 44}}));
}

// The displacement against the accumulated noise.
export function drawNoise(element, series, view) {
  const list = view.side ? series.map((one) => [one]) : [series];
  const [traces, figure] = panels(element, list.map((part) => label(part[0])), {
    x: axis("noise since <i>t</i><sub>w</sub>, ∫<i>D</i> d<i>n</i>", true), y: axis("Δ", true), height: 300,
    draw: (i, axes) => curveTraces(list[i], {...view, log: true}, (one, a, b) => one.clock[a][b], axes),
  });
  react(element, traces, figure);
}

// The straight line of the slope of the early lags, up to the largest displacement or response.
function earlyLine(one, colour, axes) {
  if (one.slope === null) return [];
  const [low, high] = ends(one.x.flat().filter((x) => x > 0)), most = ends(one.values.flat())[1] / one.slope;
  const x = [low, Math.min(high, 1.1 * most)], y = x.map((place) => place * one.slope);
  return [{type: "scatter", mode: "lines", line: {color: colour, width: 1.2, dash: "dash"}, hoverinfo: "skip", x, y, ...axes}];
}

// The response to a field against half the displacement.
export function drawResponse(element, series, view) {
  const list = view.side ? series.map((one) => [one]) : [series];
  const colour = (one) => (view.byRun ? runColour(one.index) : muted());
  const [traces, figure] = panels(element, list.map((part) => label(part[0])), {
    x: axis(markup("Δ(t_w, t_w+t)/2"), true), y: axis(`response ${markup("χ(t_w+t, t_w)")}`, true), height: 300,
    draw: (i, axes) => [
      ...curveTraces(list[i], {...view, log: true, isMsd: false}, (one, a, b) => one.x[a][b], axes),
      ...list[i].flatMap((one) => earlyLine(one, colour(one), axes)),
    ],
  });
  react(element, traces, figure);
}

// The overlap between replicas along the run.
export function drawOverlaps(element, {steps, mean, low, high}) {
  const kept = [...steps.keys()].filter((i) => steps[i] > 0), at = (values) => kept.map((i) => values[i]), x = at(steps);
  react(element, [
    {type: "scatter", mode: "lines", line: {width: 0}, fill: "toself", fillcolor: faint(accent()), hoverinfo: "skip",
      x: [...x, ...x.slice().reverse()], y: [...at(high), ...at(low).reverse()]},
    {type: "scatter", mode: "lines+markers", x, y: at(mean), line: {color: accent(), width: 1.5}, marker: {size: 3.5},
      hovertemplate: "step %{x:,}<br>%{y:.4~g}<extra></extra>"},
  ], layout({xaxis: axis("step", true), yaxis: axis("<i>q</i> between replicas", false), height: 260}));
}

export function drawOverlapDistribution(element, {grid, density}) {
  react(element, [{type: "bar", x: grid, y: density, marker: {color: accent()}, hovertemplate: "%{x:.4~g}: %{y:.3~g}<extra></extra>"}],
    layout({xaxis: axis("<i>q</i>", false), yaxis: axis("<i>P</i>(<i>q</i>)", false), height: 260, bargap: 0.04}));
}

// The local aging rates of groups: a row for each group, a column between two waiting times.
export function drawGroups(element, {rows, waiting_times: times}, colour) {
  const names = rows.map((row) => (row.group.length > 34 ? `…${row.group.slice(-33)}` : row.group));
  const middle = times.slice(1).map((time, i) => Math.sqrt(time * times[i]));
  react(element, [{
    type: "heatmap", x: times, y: rows.map((_, i) => i), z: rows.map((row) => row.local_rates), zmin: -1.5, zmax: 1.5,
    colorscale: colour, hoverongaps: false, customdata: rows.map((row) => middle.map((time) => [escaped(row.group), integer(time)])),
    hovertemplate: "<b>%{customdata[0]}</b><br><i>t</i><sub>w</sub> ≈ %{customdata[1]}<br>aging rate %{z:.2f}<extra></extra>",
    colorbar: {title: {text: "aging rate", side: "right"}, thickness: 12, tickvals: [-1, 0, 1]},
  }], layout({
    xaxis: axis("waiting time <i>t</i><sub>w</sub> (steps)", true, {showgrid: false}),
    yaxis: {...axis("", false), tickmode: "array", tickvals: rows.map((_, i) => i), ticktext: names.map(escaped),
      autorange: "reversed", showgrid: false, zeroline: false, tickfont: {size: 11}},
    height: Math.max(200, 90 + 17 * rows.length), margin: {l: 20, r: 10, t: 8, b: 48},
  }));
}

// One line per pair of times.
export function drawProfile(element, name, runs) {
  const traces = [];
  let all = [], last = 1;
  for (const one of runs) last = one.profiles[name].waiting_times.reduce((a, b) => Math.max(a, b), last);
  for (const one of runs) {
    const {waiting_times: times, lags, grid, values, density} = one.profiles[name];
    times.forEach((time, i) => {
      const kept = [...grid.keys()].filter((j) => values[i][j] !== null && !(density && values[i][j] <= 0));
      const y = kept.map((j) => values[i][j]), colour = runs.length > 1 ? runColour(one.index) : timeColour(time, last);
      all = all.concat(y);
      traces.push({
        type: "scatter", mode: "lines", line: {width: 1, color: colour}, x: kept.map((j) => grid[j]), y,
        text: "",
        customdata: kept.map(() => [escaped(one.run), integer(time), integer(lags[i])]), hovertemplate: HOVER,
      });
    });
  }
  const figure = layout({
    xaxis: axis("", false), yaxis: axis("", spansDecades(all)), height: 230, margin: {l: 56, r: 12, t: 6, b: 30}});
  react(element, traces, figure);
}
