// The page. It asks the questions, and shows the answers.

import {ask, isReport, latest} from "./api.js";
import {
  drawAtLag, drawCrossings, drawCurves, drawExponents, drawGroups, drawNoise, drawOverlapDistribution, drawOverlaps, drawProfile,
  drawResponse, drawScans, drawSeries,
} from "./charts.js";
import {Choice} from "./choice.js";
import {big, debounced, explain, fixed, h, integer, math, short, swatch} from "./dom.js";
import {doubtList, fitTable, groupTable, headline, inWords, sectorTable, sentences} from "./fits.js";
import {frame, MU, nothing, placeThreshold} from "./frame.js";
import {readAddress, watchAddress, watchReload, watchTheme, writeAddress} from "./host.js";
import {runColour, timeColour} from "./look.js";
import {
  choice, chosenGroups, chosenRuns, commonEps, crossingsOf, doubtsOf, epsOf, epsText, estimateOf, fitOf, fittedVariable, groupsOf,
  hasEps, keyOf, label, model, mu, observable, ofSeries, ofWhat, qualityOf, questions, relaxes, runIndex,
  seriesIndex, threshold, together, versionOf, view, windowOf,
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
    const answers = await Promise.all(questions().map((question) => ask("curves", question)));
    const order = (one) => runs.findIndex((run) => run.name === one.run);
    take(answers.flatMap(({series}) => series).sort((a, b) => order(a) - order(b)));
  } catch (error) {
    model.series = [];
    say(error.message);
  }
  // Nothing can be drawn, and the message gives the reason.
  $.page.classList.toggle("without", !model.series.length);
  if (!model.series.length) return;
  // The exponent of an earlier state of the run stays until the next exponent is found.
  const kept = new Set(model.series.map(keyOf));
  model.fits = new Map([...model.fits].filter(([key, fit]) => kept.has(key) && fit.of === ofWhat()));
  drawLegend();
  drawHeadline();
  await shielded(show);
  // The other answers follow, the exponents one by one, because they take longest. Another choice does not wait for
  // them.
  for (const part of [along, profiles, local, groups, noise, response, replicas, exponents]) shielded(part);
});

// The series that can be drawn. The page reports the errors of the others, and the missing data of these series.
function take(answers) {
  const errors = new Set(answers.filter((one) => one.error).map((one) => `${label(one)}: ${one.error}`));
  for (const one of answers) if (one.note) errors.add(`${one.run}: ${one.note}`);
  if (!model.charts) errors.add("The charts need plotly: pip install 'lightning-glassy[tensorboard]'");
  say([...errors].join("\n"));
  // A colour belongs to a run, as in the sidebar, unless a run is drawn more than once.
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
  // Note when the picture is on the screen, for measurements of the time and for the tests.
  requestAnimationFrame(() => setTimeout(() => performance.mark("glassy-drawn")));
  $.curves.dataset.drawn = [state.x, state.observable, series.length, now.side ? "side" : "over"].join();
}

// A slider can move faster than many curves can be drawn.
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
    const [answer] = (await ask("fits", ofSeries(one))).series;
    if (model.series !== series) return; // the page shows something else by now
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
  const {series} = model, asked = choice({group: null});
  const [own, logged, fitted] = await Promise.all(["series", "scalars", "regimes"].map((path) => ask(path, asked).catch(() => ({series: []}))));
  if (model.series !== series) return;
  // Series that the user has logged are drawn beside the series of the record, on the same axis.
  const beside = new Map(logged.series.filter((one) => !one.error).map((one) => [one.run, one.one_time]));
  const list = good(own.series).map((one) => ({...one, one_time: {...beside.get(one.run), ...one.one_time}, index: runIndex(one.run)}));
  $.alongCard.shown = list;
  const regimes = good(fitted.series);
  const all = new Set(list.flatMap((one) => Object.keys(one.one_time)));
  // The error of a series is drawn with it.
  const isError = (name) => name.endsWith("_error") && all.has(name.slice(0, -"_error".length));
  // Among the series of groups, draw only the series of the chosen groups.
  const chosen = new Set(chosenGroups()), groups = new Set(groupsOf(chosenRuns()));
  const isLeftOut = (name) => name.includes("/") && groups.has(name.slice(name.indexOf("/") + 1)) && !chosen.has(name.slice(name.indexOf("/") + 1));
  const names = [...all].filter((name) => !isError(name) && !isLeftOut(name));
  smallMultiples($.alongCard, $.series, names, (name, plot) => {
    const those = list.filter((one) => Object.hasOwn(one.one_time, name)); // every object has a `constructor`
    if (model.charts) drawSeries(plot, name, those, regimes);
    // A logarithmic axis cannot show step 0.
    const first = those.map((one) => one.one_time[name].values[one.one_time[name].steps.indexOf(0)])
      .filter((value) => value !== undefined);
    const told = first.slice(0, 3).map((value) => short(value)).join(", ") + (first.length > 3 ? " …" : "");
    return first.length ? `at step 0: ${told}` : "";
  });
}

const AT_LAG = ["displacement", "weights", "loss_path"]; // profiles that are shown at one lag

async function profiles() {
  const list = await ofRuns("profiles", $.profileCard);
  if (!list) return;
  const names = [...new Set(list.flatMap((one) => Object.keys(one.profiles)))];
  smallMultiples($.profileCard, $.profiles, names.filter((name) => !AT_LAG.includes(name)), (name, plot) => {
    const those = list.filter((one) => Object.hasOwn(one.profiles, name));
    if (model.charts) drawProfile(plot, name, those);
    const drawn = those.reduce((sum, one) => sum + one.profiles[name].lags.length, 0);
    const there = those.reduce((sum, one) => sum + one.profiles[name].n, 0);
    return [those[0].profiles[name].density ? "density" : "", drawn < there ? `${drawn} of ${there} lines` : ""].filter(Boolean).join(", ");
  });
  $.profileCard.hidden = !names.length;
  drawLags();
}

// The available lags of the distributions, and the shown lag. At first, it is the longest lag that half of the waiting
// times have.
function lagsThere() {
  const times = new Map();
  for (const one of $.profileCard.shown ?? []) {
    for (const name of ["displacement", "loss_path"]) {
      const {lags = [], waiting_times: of = []} = one.profiles[name] ?? {};
      lags.forEach((lag, i) => { if (lag > 0) times.set(lag, (times.get(lag) ?? new Set()).add(of[i])); });
    }
  }
  const most = [...times.values()].reduce((largest, one) => Math.max(largest, one.size), 0);
  const all = [...times.keys()].sort((a, b) => a - b);
  return {all, usual: all.findLastIndex((lag) => times.get(lag).size >= most / 2)};
}

let lagShown = null;

function drawLags() {
  const list = $.profileCard.shown ?? [], {all, usual} = lagsThere();
  const names = AT_LAG.filter((name) => list.some((one) => Object.hasOwn(one.profiles, name)));
  const place = lagShown === null || !all.length ? usual : Math.min(lagShown, all.length - 1), lag = all[place] ?? 1;
  $.lagBar.hidden = all.length < 2;
  $.lag.max = Math.max(all.length - 1, 1);
  $.lag.value = place;
  $.lagText.textContent = `${integer(lag)} steps`;
  const hidden = $.profileCard.hidden;
  smallMultiples($.profileCard, $.atLag, names, (name, plot) => {
    const those = list.filter((one) => Object.hasOwn(one.profiles, name));
    if (model.charts) drawAtLag(plot, name, those, lag);
    return those[0].profiles[name].density ? "density" : "";
  });
  $.profileCard.hidden = hidden;
}

const moveLag = latest(async (place) => {
  lagShown = place;
  drawLags();
  await new Promise((resolve) => { setTimeout(resolve); });
});

// ------------------------------------------------------------------ groups, noise, response and replicas

const DIVERGING = {
  light: [[0, "#2f6db3"], [0.5, "#f7f7f7"], [1, "#b3372f"]], dark: [[0, "#6ea8e8"], [0.5, "#3a3f47"], [1, "#ef8f88"]],
};
const GROUPS_AT_ONCE = 4; // fits of groups that are requested at the same time
let sorting = "rate";

async function groups() {
  const {series} = model, runs = chosenRuns();
  const one = runs.length === 1 || together() ? series[0] : null;
  $.groupCard.hidden = true;
  if (!one || groupsOf(runs).length < 3 || !relaxes()) return;
  const [answer] = (await ask("groups", {...ofSeries(one), group: ["all"]})).series;
  if (model.series !== series || answer.error || answer.rows.length < 3) return;
  const of = `${ofWhat()} ${versionOf(one)}`;
  if ($.groupCard.shown?.of !== of) $.groupCard.shown = {...answer, run: one.run, of, fits: new Map()};
  $.groupCard.hidden = false;
  drawGroupCard();
}

function drawGroupCard() {
  const shown = $.groupCard.shown;
  if (!shown || $.groupCard.hidden) return;
  const {rows, n_groups: n, fits} = shown, fixedMu = rows.every((row) => row.mu !== null);
  if (model.charts) drawGroups($.groupMap, shown, DIVERGING[document.documentElement.dataset.theme === "dark" ? "dark" : "light"]);
  const left = rows.filter((row) => row.mu === null && !fits.has(row.group)).length;
  $.fitGroups.hidden = fixedMu || !left || shown.fitting || isReport();
  $.groupText.textContent = [shown.fitting ? `fitted ${rows.length - left} of ${rows.length} groups …` : "",
    rows.length - 1 < n ? `the ${rows.length - 1} groups with the most parameters, of ${n}` : ""].filter(Boolean).join("; ");
  $.groupTable.replaceChildren(groupTable(rows, fits, (by) => { sorting = by; drawGroupCard(); }, sorting));
}

// The exponents of the groups take a second each, so they are fitted on request.
async function fitGroups() {
  const {shown} = $.groupCard, {series} = model, todo = shown.rows.map((row) => row.group).filter((group) => !shown.fits.has(group));
  shown.fitting = true;
  const work = async () => {
    while (todo.length && model.series === series && $.groupCard.shown === shown) {
      const group = todo.shift();
      const [answer] = (await ask("fits", {...ofSeries({run: shown.run, group})})).series;
      shown.fits.set(group, answer);
      drawGroupCard();
    }
  };
  drawGroupCard();
  await shielded(() => Promise.all(Array.from({length: isReport() ? 1 : GROUPS_AT_ONCE}, work)));
  shown.fitting = false;
  drawGroupCard();
}

async function noise() {
  const {series} = model;
  const list = good((await ask("noise", choice())).series).filter((one) => one.waiting_times.length);
  if (model.series !== series) return;
  $.noiseCard.shown = list.map((one) => ({...one, index: seriesIndex(one)}));
  drawNoiseCard();
}

function drawNoiseCard() {
  const list = $.noiseCard.shown ?? [], now = view();
  $.noiseCard.hidden = !list.length;
  if (model.charts && list.length) drawNoise($.noise, list, {...now, side: now.side && list.length > 1});
}

async function response() {
  const {series} = model;
  const list = good((await ask("response", choice({group: null}))).series).filter((one) => one.waiting_times.length);
  if (model.series !== series) return;
  // The response belongs to all parameters.
  $.responseCard.shown = list.map((one) => ({...one, group: "all", index: seriesIndex({...one, group: "all"})}));
  drawResponseCard();
}

function drawResponseCard() {
  const list = $.responseCard.shown ?? [], now = view(), several = list.length > 1;
  $.responseCard.hidden = !list.length;
  if (!list.length) return;
  if (model.charts) drawResponse($.response, list, {...now, side: now.side && several, byRun: now.byRun && several});
  $.sectors.replaceChildren(...(list.some((one) => one.sectors.length) ? [sectorTable(list)] : []));
  const doubts = doubtsOf(list.map((one) => ({name: one.run, doubts: one.doubts})));
  $.responseDoubts.replaceChildren(...doubtList(doubts, $.responseDoubts.querySelector("details")?.open ?? false));
}

async function replicas() {
  const {series} = model;
  const found = good((await ask("replicas", choice({group: null}))).series).filter((one) => one.steps.length);
  if (model.series !== series) return;
  [$.replicaCard.shown] = found;
  drawReplicaCard();
}

function drawReplicaCard() {
  const {shown} = $.replicaCard;
  $.replicaCard.hidden = !shown;
  if (!shown || !model.charts) return;
  drawOverlaps($.overlaps, shown);
  drawOverlapDistribution($.overlapDistribution, shown);
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

// Browsers limit changes of the address, so it does not change with every move of a slider.
const remember = debounced(() => writeAddress(toAddress(model.state)), 200);

function change(what, then) {
  Object.assign(model.state, what);
  remember();
  return shielded(then);
}

function choose(what) {
  Object.assign(model.state, what);
  sidebar.draw(); // this keeps the observable only if the runs have it
  return change({}, load);
}

function moveMu(value, variable) {
  const x = variable ?? (value === null || model.state.x === "lag" ? fittedVariable() : model.state.x);
  return change({mu: value, x}, collapse);
}

const moveThreshold = (value) => change({threshold: value}, crossings);

// ------------------------------------------------------------------ showing

// The shown threshold of each run.
function thresholds() {
  if (together()) return `ε = ${short(model.state.eps)}`;
  const runs = chosenRuns().filter((run) => run.eps.length), texts = [...new Set(runs.map((run) => epsText(run, epsOf(run))))];
  if (texts.length < 2) return texts[0] ?? "";
  return runs.map((run) => `${run.name}: ${epsText(run, epsOf(run))}`).join("; ");
}

function drawTitle() {
  const {state, series} = model, what = observable();
  $.title.textContent = what.title;
  const times = series.flatMap((one) => one.waiting_times.filter((time) => windowOf(one).used.has(time)));
  const range = (pick) => integer(times.reduce((a, b) => pick(a, b)));
  $.formula.replaceChildren(...math(what.symbol), hasEps() ? `, ${thresholds()}` : "",
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

// A chip for each waiting time. It shows the colour, and hides and shows the curve.
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
  $.sentences.replaceChildren(...(series.length === 1 ? sentences(series[0]) : []));
  const all = (series.length === 1 && fitOf(series[0])?.doubts) || doubtsOf(chosenRuns());
  $.doubts.replaceChildren(...doubtList(all, $.doubts.querySelector("details")?.open ?? false));
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
  for (const part of [show, along, profiles, crossings, drawGroupCard, drawNoiseCard, drawResponseCard, drawReplicaCard]) shielded(part);
}

// ------------------------------------------------------------------ beginning

export async function start(root, charts) {
  performance.mark("glassy-loaded");
  const {observables, symbols} = await ask("observables"), there = () => Object.keys(model.observables);
  explain(symbols ?? {});
  model.observables = Object.fromEntries(observables.map((one) => [one.name, one]));
  Object.assign(model, {charts, state: fromAddress(readAddress(), there())});
  sidebar = new Choice(choose);
  $ = frame(sidebar.element, {moveMu, moveThreshold, moveLag, fitGroups, chooseAxis: (x) => change({x}, collapse)});
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
      // Do nothing while the page is hidden behind another window, or another tab of TensorBoard.
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
