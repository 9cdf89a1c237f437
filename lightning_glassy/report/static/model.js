// The data of the page, and the values that follow from them.

import {lagTo, scaledLag} from "./relax.js";
import {initial} from "./state.js";

const SHOWN_AT_FIRST = 20; // runs. More can be chosen
const SIDE_BY_SIDE = 6; // up to so many series are drawn side by side by default

// A series is the answer to one question about one run and one group. The key of a series also finds its fit. The
// server lists the observables and how to show each.
export const model = {state: initial(), observables: {}, runs: [], series: [], fits: new Map(), charts: true};

export const observable = () => model.observables[model.state.observable];
export const hasEps = () => observable().has_threshold;
export const relaxes = () => observable().relaxing !== null;
// Convert a drawn value to the quantity that reaches a threshold, and back: one minus the value, or the value.
export const relaxing = (value) => (observable().falls ? 1 - value : value);
export const keyOf = (one) => JSON.stringify([one.run, one.group]);
export const label = (one) => (one.group === undefined || one.group === "all" ? one.run : `${one.run} · ${one.group}`);
export const runIndex = (name) => Math.max(model.runs.findIndex((run) => run.name === name), 0);
export const seriesIndex = (one) => model.series.find((other) => keyOf(other) === keyOf(one))?.index ?? runIndex(one.run);
export const groupsOf = (runs) => [...new Set(runs.flatMap((run) => run.groups.map((group) => group.name)))];

export function chosenRuns() {
  const good = model.runs.filter((run) => !run.error), {runs} = model.state;
  return runs === null ? good.slice(0, SHOWN_AT_FIRST) : good.filter((run) => runs.includes(run.name));
}

// The doubts about some runs, each once. If only some of the runs have a doubt, it names them.
export function doubtsOf(runs) {
  return [...new Set(runs.flatMap((run) => run.doubts))].map((doubt) => {
    const having = runs.filter((run) => run.doubts.includes(doubt)).map((run) => run.name);
    return having.length === runs.length ? doubt : `${having.join(", ")}: ${doubt}`;
  });
}

export function chosenGroups() {
  const there = groupsOf(chosenRuns()), groups = model.state.groups.filter((group) => there.includes(group));
  return groups.length ? groups : ["all"];
}

export const together = () => model.state.layout === "together" && chosenRuns().length > 1;

// The beginning of every question to the plugin.
export function choice(more = {}) {
  return {run: chosenRuns().map((run) => run.name), group: chosenGroups(), together: together() ? "1" : null, ...more};
}
export function ofObservable(more = {}) {
  const {observable, eps} = model.state;
  return choice({observable, eps: hasEps() ? eps : null, ...more});
}

// A threshold over the rms weight of a run, null if the run does not have it.
export const relativeEps = (run, eps) => (run?.rms_weight?.all ? eps / run.rms_weight.all : null);

// The thresholds of runs are seldom equal, because each network has its own. If a run lacks the chosen threshold, the
// nearest threshold of this run is shown. Both are compared over the rms weight of their run.
export function epsOf(run) {
  const {eps} = model.state;
  if (!hasEps() || together() || run.eps.includes(eps) || !run.eps.length) return eps;
  const from = chosenRuns().find((one) => one.eps.includes(eps)), aim = relativeEps(from, eps);
  if (aim === null || relativeEps(run, 1) === null) return eps;
  const distance = (one) => Math.abs(Math.log(relativeEps(run, one) / aim));
  return run.eps.reduce((best, one) => (distance(one) < distance(best) ? one : best));
}

// The questions about the observable: one for each threshold, with its runs.
export function questions() {
  if (!hasEps() || together()) return [ofObservable()];
  const runs = chosenRuns(), values = [...new Set(runs.map(epsOf))];
  return values.map((eps) => ofObservable({eps, run: runs.filter((run) => epsOf(run) === eps).map((run) => run.name)}));
}

const percent = (part) => `${Number((100 * part).toPrecision(2))} %`;
export function epsText(run, eps) {
  const part = relativeEps(run, eps);
  return `ε = ${Number(eps.toPrecision(3))}${part === null ? "" : ` = ${percent(part)} of the rms weight`}`;
}

// An rms displacement in percent of the rms weight of the group, as text. Empty if the run does not have it.
export function relativeMsd(one, value) {
  const size = chosenRuns().find((run) => run.name === one.run)?.rms_weight?.[one.group ?? "all"];
  return size && value > 0 ? `${Number((100 * Math.sqrt(value) / size).toPrecision(3))} % of the rms weight` : "";
}

// Steps in epochs, as text. Empty if the run does not know its epochs.
export function inEpochs(name, steps, before = "") {
  const size = chosenRuns().find((run) => run.name === name)?.steps_per_epoch, number = Number((steps / size).toPrecision(3));
  return size ? (before ? `${before}${number} epochs` : ` (${number} epochs)`) : "";
}

export function layoutShown() {
  const {layout} = model.state, groups = chosenGroups();
  if (layout === "side" || layout === "over") return layout;
  const count = together() ? groups.length
    : chosenRuns().reduce((sum, run) => sum + run.groups.filter((group) => groups.includes(group.name)).length, 0);
  return count > 1 && count <= SIDE_BY_SIDE ? "side" : "over";
}

// The threshold of the overlap that most runs have. If there are several, the smallest.
export function commonEps(runs) {
  const all = runs.flatMap((run) => run.eps).sort((a, b) => a - b), count = (eps) => all.filter((one) => one === eps).length;
  return all.reduce((best, eps) => (best === null || count(eps) > count(best) ? eps : best), null);
}

// How the series are drawn.
export function view() {
  const {state, series} = model, side = layoutShown() === "side" && series.length > 1;
  return {
    side, x: state.x, log: observable().log, hidden: new Set(state.hidden), threshold: threshold(),
    byRun: !side && series.length > 1 && state.colour !== "time",
    points: series.reduce((sum, one) => sum + one.lags.reduce((all, row) => all + row.length, 0), 0),
    last: series.flatMap((one) => one.waiting_times).reduce((a, b) => Math.max(a, b), 1),
  };
}

// ------------------------------------------------------------------ exponents

// The choice that the fits belong to. If it changes, the fits are not valid for the shown curves.
export const ofWhat = () => JSON.stringify(ofObservable({group: null, ...(together() ? {} : {run: null})}));

// The questions about a single series.
export function ofSeries(one) {
  const run = chosenRuns().find((other) => other.name === one.run);
  return ofObservable({group: [one.group], ...(together() || !run ? {} : {run: [one.run], eps: hasEps() ? epsOf(run) : null})});
}

export function versionOf(one) {
  return chosenRuns().filter((run) => together() || run.name === one.run).map((run) => run.version).join();
}

export const fitOf = (one) => model.fits.get(keyOf(one));
// The fitted exponent, null if it is at a bound of the search, or if the record is too short for one.
export const estimateOf = (fit) => (fit?.aging_exponent?.too_short ? null : fit?.aging_exponent?.estimate ?? null);
const firstFit = () => [...model.fits.values()].find((fit) => estimateOf(fit) !== null);
export const mu = () => model.state.mu ?? estimateOf(firstFit()) ?? 0.5;
// Until the slider is moved, each series has the exponent that was fitted to it.
export const muOf = (one) => model.state.mu ?? estimateOf(fitOf(one)) ?? mu();
export const fittedVariable = () => firstFit()?.variable ?? "effective";

// The waiting times of the exponent, and the origin of the clock in steps before step 0.
export function windowOf(one) {
  const fitted = fitOf(one)?.aging_exponent;
  return {used: new Set(fitted?.waiting_times ?? one.used), t0: fitted?.t0 ?? 0};
}

// The abscissa of each point of the chosen axis, as a function of a series and of the places of waiting time and lag.
export function abscissa() {
  const {state, series} = model, windows = new Map(series.map((one) => [one, windowOf(one)]));
  if (state.x === "lag") return (one, i, j) => one.lags[i][j];
  const values = new Map(series.map((one) => [one, muOf(one)]));
  return (one, i, j) => {
    const {used, t0} = windows.get(one), time = one.waiting_times[i];
    return used.has(time) && time + t0 > 0 ? scaledLag(time + t0, one.lags[i][j], values.get(one), state.x) : null;
  };
}

// The quality S of the collapse as it is shown, between the exponents at which it was computed.
export function qualityOf(one) {
  const {x} = model.state, scan = fitOf(one)?.scan, value = muOf(one);
  if (!scan || x === "lag") return null;
  const {mus, [x]: s} = scan, i = mus.findIndex((each) => each >= value);
  if (i < 0 || mus[i] === value) return s[i] ?? null;
  if (i === 0 || s[i] === null || s[i - 1] === null) return null;
  return s[i - 1] + ((s[i] - s[i - 1]) * (value - mus[i - 1])) / (mus[i] - mus[i - 1]);
}

// The waiting time, the first lag that reaches a threshold (or "early", or "late"), and the time of the clock.
export function crossingsOf(one, aim) {
  const {used, t0} = windowOf(one), {lags, values} = one.relaxing ?? {lags: one.lags, values: one.values.map((row) => row.map(relaxing))};
  return one.waiting_times.flatMap((time, i) => (
    used.has(time) ? [{waitingTime: time, time: time + t0, lag: lagTo(aim, lags[i], values[i])}] : []));
}

// Until a threshold is chosen, the middle threshold of the fits.
export function threshold() {
  if (!relaxes()) return null;
  if (model.state.threshold !== null) return model.state.threshold;
  const middles = [...model.fits.values()].map((fit) => fit.aging_exponent?.thresholds ?? []).filter((all) => all.length)
    .map((all) => Math.log(all[Math.floor(all.length / 2)].crossings.threshold));
  if (!middles.length) return null;
  return Number(Math.exp(middles.reduce((a, b) => a + b) / middles.length).toPrecision(3));
}

// The smallest and the largest possible value of a threshold.
export function thresholdRange() {
  const values = model.series.flatMap((one) => one.values.flat()).map(relaxing).filter((value) => value > 0);
  return values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : [1e-3, 1];
}
