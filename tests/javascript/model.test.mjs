// Conclusions from runs and series, without a page.

import assert from "node:assert/strict";
import {beforeEach, test} from "node:test";

import {
  abscissa, chosenGroups, chosenRuns, commonEps, crossingsOf, doubtsOf, epsOf, inEpochs, layoutShown, model, mu, muOf, qualityOf, questions,
  relativeMsd, together,
} from "./model.js";
import {initial} from "./state.js";

const run = (name, more = {}) => ({
  name, groups: [{name: "all"}, {name: "net"}], eps: [1e-3, 1e-2], doubts: [], rms_weight: {all: 1}, steps_per_epoch: 50, version: 1, ...more});
const OBSERVABLES = {
  msd: {has_threshold: false, falls: false, relaxing: "MSD", log: true}, overlap: {has_threshold: true, falls: true, relaxing: "1 - Q", log: false}};
const power = (name, exponent) => {
  const waiting_times = [1, 10, 100, 1000], lags = waiting_times.map(() => [1, 10, 100, 1000, 10000]);
  return {run: name, group: "all", waiting_times, used: waiting_times, lags, index: 0,
    values: waiting_times.map((time, i) => lags[i].map((lag) => lag / time ** exponent))};
};

beforeEach(() => Object.assign(model, {
  state: initial(), observables: OBSERVABLES, runs: [run("a"), run("b"), run("broken", {error: "damaged"})], series: [], fits: new Map()}));

test("damaged runs are not shown, and a choice of runs is kept", () => {
  assert.deepEqual(chosenRuns().map((one) => one.name), ["a", "b"]);
  model.state.runs = ["b", "broken", "gone"];
  assert.deepEqual(chosenRuns().map((one) => one.name), ["b"]);
});

test("groups that no run has fall back to all", () => {
  model.state.groups = ["gone"];
  assert.deepEqual(chosenGroups(), ["all"]);
});

test("a doubt that only some runs have names them, and a common doubt does not", () => {
  const runs = [run("a", {doubts: ["common", "own"]}), run("b", {doubts: ["common"]})];
  assert.deepEqual(doubtsOf(runs), ["common", "a: own"]);
});

test("a single run is never taken together", () => {
  model.state.layout = "together";
  assert.equal(together(), true);
  model.state.runs = ["a"];
  assert.equal(together(), false);
});

test("a few series are side by side, and many are overlaid", () => {
  assert.equal(layoutShown(), "side");
  model.runs = Array.from({length: 9}, (_, i) => run(`run ${i}`));
  assert.equal(layoutShown(), "over");
});

test("the threshold that most runs have is the common one, and the smallest of several", () => {
  assert.equal(commonEps([run("a"), run("b", {eps: [1e-2, 1]})]), 1e-2);
  assert.equal(commonEps([run("a")]), 1e-3);
  assert.equal(commonEps([]), null);
});

test("a run without the threshold shows the nearest one in units of its rms weight", () => {
  model.runs = [run("a"), run("b", {eps: [1e-1, 1], rms_weight: {all: 100}})];
  Object.assign(model.state, {observable: "overlap", eps: 1e-2});
  assert.equal(epsOf(model.runs[0]), 1e-2);
  assert.equal(epsOf(model.runs[1]), 1); // both are one hundredth of the rms weight
  assert.deepEqual(questions().map((one) => [one.eps, one.run]), [[1e-2, ["a"]], [1, ["b"]]]);
});

test("sizes and epochs are said only if the run knows them", () => {
  assert.equal(relativeMsd({run: "a", group: "all"}, 0.01), "10 % of the rms weight");
  assert.equal(relativeMsd({run: "a", group: "net"}, 0.01), "");
  assert.equal(inEpochs("a", 100), " (2 epochs)");
  assert.equal(inEpochs("gone", 100), "");
});

test("each series collapses with its own exponent until the slider is moved", () => {
  const [one, other] = [power("a", 0.5), power("b", 1)];
  model.series = [one, other];
  const fit = (estimate) => ({aging_exponent: {estimate, thresholds: [], waiting_times: [1, 10, 100, 1000], t0: 0}});
  model.fits = new Map([[JSON.stringify(["a", "all"]), fit(0.5)], [JSON.stringify(["b", "all"]), fit(1)]]);
  assert.deepEqual([muOf(one), muOf(other), mu()], [0.5, 1, 0.5]);
  model.state.x = "plain";
  const x = abscissa();
  for (const series of model.series) { // equal values at equal abscissae: a collapse
    series.values.forEach((row, i) => row.forEach((value, j) => assert.ok(Math.abs(x(series, i, j) / value - 1) < 1e-12)));
  }
  model.state.mu = 0.8;
  assert.deepEqual([muOf(one), muOf(other)], [0.8, 0.8]);
});

test("the lag to a threshold grows as the waiting time to the exponent", () => {
  const one = power("a", 0.5);
  model.series = [one];
  const found = crossingsOf(one, 5);
  found.forEach(({time, lag}) => assert.ok(Math.abs(lag / (5 * time ** 0.5) - 1) < 1e-6));
  assert.equal(found.length, 4);
});

test("the quality of a collapse is interpolated between the scanned exponents", () => {
  const one = power("a", 0.5);
  model.series = [one];
  model.fits = new Map([[JSON.stringify(["a", "all"]), {scan: {mus: [0, 1], plain: [4, 2]}}]]);
  Object.assign(model.state, {x: "plain", mu: 0.25});
  assert.equal(qualityOf(one), 3.5);
  model.state.mu = 7;
  assert.equal(qualityOf(one), null);
});
