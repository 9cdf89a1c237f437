// What the page knows, and what follows from it.

import {initial} from "./state.js";

const SHOWN_AT_FIRST = 20; // runs; more are there to be chosen
const SIDE_BY_SIDE = 6; // series up to which they are drawn so, unless something else is chosen

// A series is the answer to one question about one run and one group; a fit is found by the key of its series. The server
// says which observables there are, and how each is shown.
export const model = {state: initial(), observables: {}, runs: [], series: [], fits: new Map(), charts: true};

export const observable = () => model.observables[model.state.observable];
export const hasEps = () => observable().has_threshold;
export const relaxes = () => observable().relaxing !== null;
// What reaches a threshold, from what is drawn and back: one minus it, or the same.
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

export function chosenGroups() {
  const there = groupsOf(chosenRuns()), groups = model.state.groups.filter((group) => there.includes(group));
  return groups.length ? groups : ["all"];
}

export const together = () => model.state.layout === "together" && chosenRuns().length > 1;

// What every question to the plugin begins with.
export function choice(more = {}) {
  return {run: chosenRuns().map((run) => run.name), group: chosenGroups(), together: together() ? "1" : null, ...more};
}
export function ofObservable(more = {}) {
  const {observable, eps} = model.state;
  return choice({observable, eps: hasEps() ? eps : null, ...more});
}

export function layoutShown() {
  const {layout} = model.state, groups = chosenGroups();
  if (layout === "side" || layout === "over") return layout;
  const count = together() ? groups.length
    : chosenRuns().reduce((sum, run) => sum + run.groups.filter((group) => groups.includes(group.name)).length, 0);
  return count > 1 && count <= SIDE_BY_SIDE ? "side" : "over";
}

// The threshold of the overlap that most runs have, of those the smallest.
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
    points: series.reduce((sum, one) => sum + one.waiting_times.length * one.lags.length, 0),
    last: series.flatMap((one) => one.waiting_times).reduce((a, b) => Math.max(a, b), 1),
  };
}

// ------------------------------------------------------------------ exponents

// What the fits are of: when this changes they say nothing of what is shown any more.
export const ofWhat = () => JSON.stringify(ofObservable({group: null, ...(together() ? {} : {run: null})}));

export function versionOf(one) {
  return chosenRuns().filter((run) => together() || run.name === one.run).map((run) => run.version).join();
}

export const fitOf = (one) => model.fits.get(keyOf(one));
const firstFit = () => [...model.fits.values()].find((fit) => fit.aging_exponent);
export const mu = () => model.state.mu ?? firstFit()?.aging_exponent.mu ?? 0.5;
export const fittedVariable = () => firstFit()?.variable ?? "effective";

// Until one is chosen, the threshold amid those that the fits have looked at.
export function threshold() {
  if (!relaxes()) return null;
  if (model.state.threshold !== null) return model.state.threshold;
  const middles = [...model.fits.values()].map((fit) => fit.aging_exponent?.thresholds ?? []).filter((all) => all.length)
    .map((all) => Math.log(all[Math.floor(all.length / 2)].crossings.threshold));
  if (!middles.length) return null;
  return Number(Math.exp(middles.reduce((a, b) => a + b) / middles.length).toPrecision(3));
}

// From the smallest to the largest value that a threshold can have.
export function thresholdRange() {
  const values = model.series.flatMap((one) => one.values.flat()).filter((value) => value !== null)
    .map(relaxing).filter((value) => value > 0);
  return values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : [1e-3, 1];
}
