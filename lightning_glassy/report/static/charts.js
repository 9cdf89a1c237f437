// The charts: traces and axes.

import {escaped, integer, markup} from "./dom.js";
import {accent, axis, faint, layout, muted, runColour, timeColour} from "./look.js";
import {abscissa, label, model, mu, observable, relaxing} from "./model.js";

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

const lagTexts = new Map(); // many curves have the same lags
function lagText(lag) {
  if (!lagTexts.has(lag)) lagTexts.set(lag, integer(lag));
  return lagTexts.get(lag);
}

// The curves of some series as traces: one per waiting time, or one per series with gaps between its curves.
function curveTraces(seriesList, view, xOf, axes = {}) {
  const groups = new Map();
  seriesList.forEach((one) => {
    const name = escaped(label(one));
    one.waiting_times.forEach((waitingTime, i) => {
      if (view.hidden.has(waitingTime)) return;
      const key = view.byRun ? one.index : waitingTime;
      if (!groups.has(key)) {
        const colour = view.byRun ? runColour(one.index) : timeColour(waitingTime, view.last);
        groups.set(key, {colour, x: [], y: [], customdata: [], bands: []});
      }
      const into = groups.get(key), band = {x: [], low: [], high: []}, time = integer(waitingTime);
      if (into.x.length) { into.x.push(null); into.y.push(null); into.customdata.push(null); }
      one.lags[i].forEach((lag, j) => {
        const x = xOf(one, i, j), y = one.values[i][j];
        if (x === null || (view.log && !(y > 0))) return;
        into.x.push(x);
        into.y.push(y);
        into.customdata.push([name, time, lagText(lag)]);
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

// Draw a figure, and give its element the height of the figure. Otherwise charts overlap in a file.
function react(element, traces, figure, more = {}) {
  element.style.height = `${figure.height}px`;
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
  const xOf = abscissa();
  const list = view.side ? series.map((one) => [one]) : [series];
  const drawn = view.threshold === null ? null : relaxing(view.threshold);
  const shapes = (xref, yref) => (drawn === null ? [] : [levelAt(drawn, xref, yref, {width: 1.5, dash: "dash"})]);
  const [traces, figure] = panels(element, list.map((part) => label(part[0])), {
    x, y, height: sizeOf(element).phone ? 330 : 440, shapes,
    draw: (i, axes) => curveTraces(list[i], view, xOf, axes),
  });
  // The zoom stays while the same thing is shown.
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

// Draw S against mu. A single series has a line for each scaling variable, several series one line each.
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
  const [low, high] = ends(all), around = Math.abs(high) || 1;
  // What never changes is no reason to look at its last digit.
  const y = axis("", spansDecades(all), high === low ? {range: [high - around, high + around]} : {});
  const figure = layout({xaxis: axis("step", true), yaxis: y, height: 230, margin: {l: 56, r: 12, t: 6, b: 42}});
  react(element, traces, figure);
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
        customdata: kept.map(() => [escaped(one.run), integer(time), integer(lags[i])]), hovertemplate: HOVER,
      });
    });
  }
  const figure = layout({
    xaxis: axis("", false), yaxis: axis("", spansDecades(all)), height: 230, margin: {l: 56, r: 12, t: 6, b: 30}});
  react(element, traces, figure);
}
