// The page: it asks, and shows the answers.

import {ask, isReport, latest} from "./api.js";
import {drawCrossings, drawCurves, drawExponents, drawProfile, drawScans, drawSeries} from "./charts.js";
import {Choice} from "./choice.js";
import {big, debounced, fixed, h, integer, math, short, swatch} from "./dom.js";
import {fitTable, headline, inWords} from "./fits.js";
import {frame, MU, nothing, placeThreshold} from "./frame.js";
import {readAddress, watchAddress, watchReload, watchTheme, writeAddress} from "./host.js";
import {runColour, timeColour} from "./look.js";
import {
  choice, chosenGroups, chosenRuns, commonEps, crossingsOf, doubtsOf, estimateOf, fitOf, fittedVariable, hasEps, keyOf,
  label, model, mu, observable, ofObservable, ofWhat, qualityOf, relaxes, runIndex, seriesIndex, threshold, together,
  versionOf, view, windowOf,
} from "./model.js";
import {powerLaw} from "./relax.js";
import {fromAddress, toAddress} from "./state.js";

const REFRESH = 5000;

let $, sidebar, lost = "";

// ------------------------------------------------------------------ asking

function say(text) {
  $.message.textContent = text;
  $.message.hidden = !text;
}

// Run a part of the page. Its error becomes the message, and the rest of the page goes on.
async function shielded(run) {
  try {
    await run();
  } catch (error) {
    say(error.message);
  }
}

const good = (answers) => answers.filter((one) => !one.error);

const refreshRuns = latest(async (force) => {
  const versions = () => JSON.stringify(chosenRuns().map((run) => [run.name, run.version]));
  try {
    const {runs} = await ask("runs");
    const before = versions(), changed = JSON.stringify(runs) !== JSON.stringify(model.runs), again = force || lost;
    model.runs = runs;
    lost = "";
    if (changed) sidebar.draw();
    if (again || before !== versions()) await load();
  } catch (error) {
    lost = `TensorBoard cannot be reached, or did not understand: ${error.message}`;
    say(lost);
  }
});

const load = latest(async () => {
  const runs = chosenRuns(), {state} = model;
  $.page.classList.toggle("empty", !runs.length);
  $.empty.hidden = runs.length > 0;
  if (!runs.length) return $.empty.replaceChildren(...nothing(model.runs.some((run) => !run.error)));
  if (hasEps()) state.eps ??= commonEps(runs);
  try {
    take((await ask("curves", ofObservable())).series);
  } catch (error) {
    model.series = [];
    say(error.message);
  }
  // An exponent of what the run was a moment ago stays until the next one is found.
  const kept = new Set(model.series.map(keyOf));
  model.fits = new Map([...model.fits].filter(([key, fit]) => kept.has(key) && fit.of === ofWhat()));
  drawLegend();
  drawHeadline();
  await shielded(show);
  // The rest follows, the exponents one by one: they take longest. Another choice need not wait for them.
  if (model.series.length) for (const part of [along, profiles, local, exponents]) shielded(part);
});

// The series that can be drawn; what is wrong with the others is said, and what these lack.
function take(answers) {
  const errors = new Set(answers.filter((one) => one.error).map((one) => `${label(one)}: ${one.error}`));
  for (const one of answers) if (one.note) errors.add(`${one.run}: ${one.note}`);
  if (!model.charts) errors.add("The charts need plotly: pip install 'lightning-glassy[tensorboard]'");
  say([...errors].join("\n"));
  // A colour is a run's, as in the list at the side, unless a run is drawn more than once.
  const several = chosenGroups().length > 1;
  model.series = good(answers).filter((one) => one.waiting_times.length)
    .map((one, i) => ({...one, index: several ? i : runIndex(one.run)}));
}

function show() {
  const {state, series} = model, now = view();
  drawTitle();
  drawMu();
  const dragged = (value) => (value > 0 ? moveThreshold(Number(value.toPrecision(3))) : show());
  if (model.charts) drawCurves($.curves, series, now, dragged);
  // When the picture is on the screen: for whoever measures, and for the tests.
  requestAnimationFrame(() => setTimeout(() => performance.mark("glassy-drawn")));
  $.curves.dataset.drawn = [state.x, state.observable, series.length, now.side ? "side" : "over"].join();
}

// A slider moves faster than many curves are drawn.
const collapse = latest(async () => {
  show();
  drawFits();
  await new Promise((resolve) => { setTimeout(resolve); });
});

async function exponents() {
  drawFits();
  const {series} = model, of = ofWhat();
  for (const one of series) {
    const version = versionOf(one);
    if (fitOf(one)?.version === version) continue;
    const asked = ofObservable({group: [one.group], ...(together() ? {} : {run: [one.run]})});
    const [answer] = (await ask("fits", asked)).series;
    if (model.series !== series) return; // something else is shown by now
    model.fits.set(keyOf(one), {...answer, of, version});
    drawFits();
    drawMu();
    if (model.state.x !== "lag" && model.state.mu === null && model.fits.size === 1) show();
  }
  crossings();
}

const crossings = latest(async () => {
  const {series} = model, aim = threshold();
  $.crossingCard.hidden = !relaxes() || !series.length;
  if ($.crossingCard.hidden) return;
  placeThreshold($, aim);
  show();
  if (aim === null) return;
  const list = series.map((one) => {
    const found = crossingsOf(one, aim), points = found.filter(({lag}) => typeof lag === "number");
    return {one, crossings: found, law: powerLaw(points.map(({time, lag}) => [time, lag]))};
  });
  $.crossingCard.shown = list.map(({one, crossings: found}) => ({...one, threshold: aim, crossings: found}));
  if (model.charts) drawCrossings($.crossings, list);
  $.slopes.replaceChildren(...list.map(({one, crossings: found, law}) => {
    const count = (kind) => found.filter(({lag}) => lag === kind).length, [late, early] = [count("late"), count("early")];
    const left = [late ? `${late} not reached` : "", early ? `${early} passed before the first lag` : ""];
    return h("li", {}, swatch(list.length > 1 ? runColour(one.index) : "var(--accent)"),
      list.length > 1 ? h("span", {className: "name"}, label(one)) : null,
      law === null ? "too few waiting times reach it" : h("span", {}, "slope ", h("b", {}, fixed(law.slope, 2))),
      h("span", {className: "quiet"}, left.filter(Boolean).join(", ")));
  }), ...thresholdsOfFit());
  await new Promise((resolve) => { setTimeout(resolve); });
});

// The thresholds of the fit of a single series, with their slopes.
function thresholdsOfFit() {
  const laws = model.series.length === 1 ? fitOf(model.series[0])?.aging_exponent?.thresholds ?? [] : [];
  return laws.map(({mu: slope, crossings: {threshold: value}}) => h("li", {className: "quiet"},
    h("button", {type: "button", className: "link", title: "Show this threshold of the fit", onclick: () => moveThreshold(value)},
      short(value)), `slope ${fixed(slope, 2)}`));
}

async function local() {
  const {series} = model;
  const list = good((await ask("exponents", choice())).series);
  if (model.series !== series) return;
  $.localCard.shown = list.map((one) => ({...one, index: seriesIndex(one)}));
  $.localCard.hidden = !list.length;
  drawLocal();
}

function drawLocal() {
  const list = $.localCard.shown ?? [], now = view();
  if (model.charts && list.length) drawExponents($.exponents, list, {...now, side: now.side && list.length > 1});
}

async function along() {
  const list = await ofRuns("series", $.alongCard);
  if (!list) return;
  const all = new Set(list.flatMap((one) => Object.keys(one.one_time)));
  // The error of a series is drawn with it.
  const names = [...all].filter((name) => !(name.endsWith("_error") && all.has(name.slice(0, -"_error".length))));
  smallMultiples($.alongCard, $.series, names, (name, plot) => {
    const those = list.filter((one) => Object.hasOwn(one.one_time, name)); // every object has a `constructor`
    if (model.charts) drawSeries(plot, name, those);
    // Step 0 has no place on a logarithmic axis.
    const first = those.map((one) => one.one_time[name].values[one.one_time[name].steps.indexOf(0)])
      .filter((value) => value !== undefined);
    const told = first.slice(0, 3).map((value) => short(value)).join(", ") + (first.length > 3 ? " …" : "");
    return first.length ? `at step 0: ${told}` : "";
  });
}

async function profiles() {
  const list = await ofRuns("profiles", $.profileCard);
  if (!list) return;
  smallMultiples($.profileCard, $.profiles, [...new Set(list.flatMap((one) => Object.keys(one.profiles)))], (name, plot) => {
    const those = list.filter((one) => Object.hasOwn(one.profiles, name));
    if (model.charts) drawProfile(plot, name, those);
    const drawn = those.reduce((sum, one) => sum + one.profiles[name].lags.length, 0);
    const there = those.reduce((sum, one) => sum + one.profiles[name].n, 0);
    return [those[0].profiles[name].density ? "density" : "", drawn < there ? `${drawn} of ${there} lines` : ""].filter(Boolean).join(", ");
  });
}

// Ask about each run, and keep the answers in a card. Return null if the page shows something else by now.
async function ofRuns(path, card) {
  const {series} = model;
  const answers = good((await ask(path, choice({group: null}))).series);
  if (model.series !== series) return null;
  card.shown = answers.map((one) => ({...one, index: runIndex(one.run)}));
  return card.shown;
}

// Draw a small chart for each name. The function `draw` returns the caption.
function smallMultiples(card, element, names, draw) {
  card.hidden = !names.length;
  const there = new Map([...element.children].map((child) => [child.dataset.name, child]));
  for (const [name, child] of there) if (!names.includes(name)) child.remove();
  for (const name of names) {
    const figure = there.get(name) ?? h("figure", {className: "small", "data-name": name},
      h("figcaption", {}, h("b", {}, name.replace(/_/g, " ")), h("span")), h("div", {className: "plot"}));
    if (!there.has(name)) element.append(figure);
    figure.querySelector("span").textContent = draw(name, figure.querySelector(".plot"));
  }
}

// ------------------------------------------------------------------ choosing

// Browsers mind an address that changes with every move of a slider.
const remember = debounced(() => writeAddress(toAddress(model.state)), 200);

function change(what, then) {
  Object.assign(model.state, what);
  remember();
  return shielded(then);
}

function choose(what) {
  Object.assign(model.state, what);
  sidebar.draw(); // which leaves the observable only if the runs have it
  return change({}, load);
}

function moveMu(value, variable) {
  const x = variable ?? (value === null || model.state.x === "lag" ? fittedVariable() : model.state.x);
  return change({mu: value, x}, collapse);
}

const moveThreshold = (value) => change({threshold: value}, crossings);

// ------------------------------------------------------------------ showing

function drawTitle() {
  const {state, series} = model, what = observable();
  $.title.textContent = what.title;
  const times = series.flatMap((one) => one.waiting_times.filter((time) => windowOf(one).used.has(time)));
  const range = (pick) => integer(times.reduce((a, b) => pick(a, b)));
  $.formula.replaceChildren(...math(what.symbol), hasEps() ? `, ε = ${short(state.eps)}` : "",
    ", one curve per waiting time ", ...math("t_w"),
    state.x !== "lag" && times.length ? ` = ${range(Math.min)} … ${range(Math.max)}` : "",
    series.some((one) => one.band) ? `; the bands are ${what.band}` : "");
  for (const input of $.axes.querySelectorAll("input")) input.checked = input.value === state.x;
}

// The slider of mu, with the fitted exponents and their intervals marked.
function drawMu() {
  const {series, state} = model, value = mu();
  const part = (x) => (Math.min(Math.max(x, MU.min), MU.max) - MU.min) / (MU.max - MU.min);
  const place = (x) => `calc(8px + (100% - 16px) * ${part(x)})`;
  if (document.activeElement !== $.mu || state.mu === null) $.mu.value = value;
  if (document.activeElement !== $.muNumber) $.muNumber.value = value.toFixed(3);
  const found = series.filter((one) => estimateOf(fitOf(one)) !== null).map((one) => [one, fitOf(one).aging_exponent]);
  $.marks.replaceChildren(...found.flatMap(([one, {estimate, interval, why_not: why}]) => {
    const colour = `--mark:${series.length > 1 ? runColour(one.index) : "var(--accent)"}`, kind = why === null ? "" : " hollow";
    const mark = h("i", {className: `mark${kind}`, style: `left:${place(estimate)};${colour}`});
    if (!interval) return [mark];
    const ends = `left:${place(interval[0])};right:calc(100% - ${place(interval[1])});${colour}`;
    return [h("i", {className: `interval${kind}`, style: ends}), mark];
  }));
  // The marks lie under the slider, which gets the mouse.
  $.mu.title = found.map(([one, {estimate, why_not: why}]) => (
    `${series.length > 1 ? `${label(one)}: ` : ""}fitted μ = ${fixed(estimate)}, ${why === null ? "solid mark" : `dashed mark, no headline: ${why}`}`
  )).join("\n");
  $.fitted.disabled = !found.length;
  const shown = series.length === 1 && qualityOf(series[0]);
  $.quality.replaceChildren(...(shown ? [h("var", {}, "S"), ` = ${big(shown)}`] : []));
}

// A chip per waiting time: it shows the colour, and hides and shows the curve.
function drawLegend() {
  const {state, series} = model, now = view();
  const times = [...new Set(series.flatMap((one) => one.waiting_times))].sort((a, b) => a - b);
  const hide = (hidden) => {
    const focused = document.activeElement?.dataset?.time;
    const done = change({hidden}, show);
    drawLegend();
    drawLocal();
    [...$.legend.children].find((chip) => chip.dataset.time === focused)?.focus();
    return done;
  };
  const without = (time) => state.hidden.filter((one) => one !== time);
  const toggled = (time) => (state.hidden.includes(time) ? without(time) : [...state.hidden, time]);
  const alone = (time) => times.filter((other) => other !== time);
  const chips = times.map((time) => h("button", {
    type: "button", className: "chip", ariaPressed: String(!state.hidden.includes(time)), "data-time": String(time),
    title: "Hide or show; with Shift, or by a double click, show this one alone",
    onclick: (event) => hide(event.shiftKey ? alone(time) : toggled(time)), ondblclick: () => hide(alone(time)),
  }, swatch(now.byRun ? "var(--muted)" : timeColour(time, now.last)), integer(time)));
  const all = h("button", {type: "button", className: "link", onclick: () => hide([])}, "show all");
  const more = state.hidden.length ? [all] : [];
  $.legend.replaceChildren(h("span", {className: "quiet"}, ...math("t_w"), " ="), ...chips, ...more);
}

function drawHeadline() {
  const {series} = model;
  $.name.textContent = series.length === 1 ? label(series[0]) : "";
  $.name.hidden = series.length !== 1;
  $.headline.replaceChildren(...(series.length === 1 ? headline(series[0]) : []));
  $.doubts.replaceChildren(...doubtsOf(chosenRuns()).map((doubt) => h("li", {}, doubt)));
}

function drawFits() {
  $.fitCard.hidden = !model.series.length;
  if ($.fitCard.hidden) return;
  drawHeadline();
  $.fits.replaceChildren(fitTable(moveMu, choose));
  const scans = model.series.map((one) => ({one, fit: fitOf(one)})).filter(({fit}) => fit?.scan);
  $.scan.hidden = !scans.length;
  if (model.charts && scans.length) drawScans($.scan, scans);
  const open = new Map([...$.words.querySelectorAll("details")].map((one) => [one.dataset.key, one.open]));
  $.words.replaceChildren(...inWords(open));
}

function redraw() {
  if (!model.series.length) return;
  sidebar.draw();
  drawLegend();
  drawFits();
  drawLocal();
  for (const part of [show, along, profiles, crossings]) shielded(part);
}

// ------------------------------------------------------------------ beginning

export async function start(root, charts) {
  performance.mark("glassy-loaded");
  const {observables} = await ask("observables"), there = () => Object.keys(model.observables);
  model.observables = Object.fromEntries(observables.map((one) => [one.name, one]));
  Object.assign(model, {charts, state: fromAddress(readAddress(), there())});
  sidebar = new Choice(choose);
  $ = frame(sidebar.element, {moveMu, moveThreshold, chooseAxis: (x) => change({x}, collapse)});
  watchTheme(redraw);
  root.replaceChildren($.page);
  watchAddress(() => {
    const next = fromAddress(readAddress(), there());
    if (JSON.stringify(toAddress(next)) !== JSON.stringify(toAddress(model.state))) choose(next);
  });
  await refreshRuns(true);
  if (!isReport()) {
    watchReload(() => refreshRuns(false));
    const again = async () => {
      // Not while nobody looks: behind another window, or another tab of TensorBoard.
      if (!document.hidden && window.innerHeight > 0) await refreshRuns(false);
      setTimeout(again, REFRESH);
    };
    setTimeout(again, REFRESH);
  }
  let width = window.innerWidth;
  window.addEventListener("resize", debounced(() => {
    if (window.innerWidth !== width) redraw();
    width = window.innerWidth;
  }, 150));
  document.body.dataset.ready = "yes";
}
