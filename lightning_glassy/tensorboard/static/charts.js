// What is drawn: traces and axes from the plugin's answers. No number is computed here.

import {escaped, integer, markup} from "./dom.js";
import {accent, axis, faint, layout, muted, runColour, timeColour} from "./look.js";
import {label, model, observable, relaxing} from "./model.js";

const CONFIG = {responsive: true, displayModeBar: false, doubleClick: "reset+autosize"};
const MANY_POINTS = 4000; // of all series: beyond, the lines are enough, and drawn three times as fast

const X_TITLES = {
  lag: "lag <i>t</i> (steps)",
  plain: "<i>t</i> / <i>t</i><sub>w</sub><sup><i>μ</i></sup>",
  effective: "effective time λ",
};

const HOVER = "<b>%{customdata[0]}</b><br><i>t</i><sub>w</sub> = %{customdata[1]}<br><i>t</i> = %{customdata[2]}"
  + "<br>%{y:.5~g}<extra></extra>";
const CROSSING_HOVER = "<b>%{customdata[0]}</b><br><i>t</i><sub>w</sub> = %{customdata[1]}<br><i>t</i>* = %{y:.5~g}"
  + "<extra></extra>";
const STEP_HOVER = "<b>%{customdata[0]}</b><br>step %{customdata[1]}<br>%{y:.5~g}<extra></extra>";

// The curves of some series as traces: one per waiting time, or one per series with gaps between its curves.
function curveTraces(seriesList, view, xOf, axes = {}) {
  const groups = new Map();
  seriesList.forEach((one) => {
    const name = escaped(label(one)), lags = one.lags.map(integer);
    one.waiting_times.forEach((waitingTime, i) => {
      if (view.hidden.has(waitingTime)) return;
      const key = view.byRun ? one.index : waitingTime;
      if (!groups.has(key)) {
        const colour = view.byRun ? runColour(one.index) : timeColour(waitingTime, view.last);
        groups.set(key, {colour, x: [], y: [], customdata: [], bands: []});
      }
      const into = groups.get(key), band = {x: [], low: [], high: []}, time = integer(waitingTime);
      if (into.x.length) { into.x.push(null); into.y.push(null); into.customdata.push(null); }
      one.lags.forEach((lag, j) => {
        const x = xOf(one, i, j), y = one.values[i][j];
        if (x === null || y === null || (view.log && !(y > 0))) return;
        into.x.push(x);
        into.y.push(y);
        into.customdata.push([name, time, lags[j]]);
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
  for (const {colour, x, y, customdata} of groups.values()) {
    if (!x.some((value) => value !== null)) continue;
    traces.push({
      type: "scatter", mode: view.points > MANY_POINTS ? "lines" : "lines+markers", x, y, customdata, hovertemplate: HOVER,
      line: {width: 1.6, color: colour}, marker: {size: 3.5, color: colour}, ...axes,
    });
  }
  return traces;
}

const levelAt = (y, xref, yref, line) => (
  {type: "line", xref: `${xref} domain`, yref, x0: 0, x1: 1, y0: y, y1: y, line: {color: muted(), ...line}});

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
    const automargin = titles.length === 1; // of many panels it takes longer than all of their lines
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
  const xOf = view.x === "lag" ? (one, i, j) => one.lags[j] : (one, i, j) => (one.places ? one.places[i][j] : null);
  const list = view.side ? series.map((one) => [one]) : [series];
  const drawn = view.threshold === null ? null : relaxing(view.threshold);
  const shapes = (xref, yref) => (drawn === null ? [] : [levelAt(drawn, xref, yref, {width: 1.5, dash: "dash"})]);
  const [traces, figure] = panels(element, list.map((part) => label(part[0])), {
    x, y, height: sizeOf(element).phone ? 330 : 440, shapes,
    draw: (i, axes) => curveTraces(list[i], view, xOf, axes),
  });
  // The zoom stays while the same thing is shown.
  figure.uirevision = [view.x, model.state.observable, view.side, list.length].join();
  window.Plotly.react(element, traces, figure, {...CONFIG, edits: {shapePosition: true}});
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
  for (const one of series) {
    const colour = series.length > 1 ? runColour(one.index) : accent();
    const kept = [...one.lags.keys()].filter((i) => one.lags[i] !== null && one.waiting_times[i] > 0);
    traces.push({
      type: "scatter", mode: "markers", marker: {size: 7, color: colour}, hovertemplate: CROSSING_HOVER,
      x: kept.map((i) => one.waiting_times[i]), y: kept.map((i) => one.lags[i]),
      customdata: kept.map((i) => [escaped(label(one)), integer(one.waiting_times[i])]),
    });
    if (one.slope !== null && one.line.y.every((value) => value > 0)) {
      traces.push({type: "scatter", mode: "lines", line: {color: colour, width: 1.5}, hoverinfo: "skip", ...one.line});
    }
  }
  window.Plotly.react(element, traces, layout({
    xaxis: axis("waiting time <i>t</i><sub>w</sub> (steps)", true), yaxis: axis("lag <i>t</i>* (steps)", true), height: 320,
  }), CONFIG);
}

export function drawExponents(element, series, view) {
  const list = view.side ? series.map((one) => [one]) : [series];
  const [traces, figure] = panels(element, list.map((part) => label(part[0])), {
    x: axis(X_TITLES.lag, true), y: axis("<i>γ</i>(<i>t</i><sub>w</sub>, <i>t</i>)", false), height: 320,
    draw: (i, axes) => curveTraces(list[i], {...view, log: false}, (one, _, j) => one.lags[j], axes),
    shapes: (xref, yref) => [levelAt(1, xref, yref, {width: 1, dash: "dot"})],
  });
  window.Plotly.react(element, traces, figure, CONFIG);
}

export function drawSeries(element, name, runs) {
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
      customdata: kept.map((i) => [escaped(one.run), integer(steps[i])]),
    });
  }
  const low = all.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
  const log = low > 0 && high / low > 30, around = Math.abs(high) || 1;
  // What never changes is no reason to look at its last digit.
  const y = axis("", log, high === low ? {range: [high - around, high + around]} : {});
  const figure = layout({xaxis: axis("step", true), yaxis: y, height: 230, margin: {l: 56, r: 12, t: 6, b: 42}});
  window.Plotly.react(element, traces, figure, CONFIG);
}
