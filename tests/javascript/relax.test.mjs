// The computations behind the sliders, against formulas that are known exactly.

import assert from "node:assert/strict";
import test from "node:test";

import {lagTo, powerLaw, scaledLag} from "./relax.js";

const close = (a, b, tolerance = 1e-9) => assert.ok(Math.abs(a - b) <= tolerance * Math.abs(b), `${a} is not ${b}`);
const lags = Array.from({length: 40}, (_, i) => Math.round(1.3 ** i)).filter((lag, i, all) => lag !== all[i - 1]);

test("the plain scaled lag is t / t_w^mu", () => {
  close(scaledLag(100, 40, 0.5, "plain"), 4);
});

test("the effective time is the integral of s^-mu over the lag", () => {
  for (const mu of [0, 0.3, 0.7, 1, 1.4]) {
    const [time, lag, parts] = [50, 200, 20000];
    let sum = 0;
    for (let i = 0; i < parts; i += 1) sum += (time + ((i + 0.5) * lag) / parts) ** -mu * (lag / parts);
    close(scaledLag(time, lag, mu, "effective"), sum, 1e-6);
  }
});

test("the effective time is continuous at mu = 1", () => {
  close(scaledLag(50, 200, 1 - 1e-8, "effective"), scaledLag(50, 200, 1, "effective"), 1e-6);
});

test("the lag to a threshold of a power law is exact", () => {
  const values = lags.map((lag) => 1e-4 * lag ** 0.6);
  for (const threshold of [3e-4, 1e-3, 5e-3]) close(lagTo(threshold, lags, values), (threshold / 1e-4) ** (1 / 0.6), 1e-6);
});

test("a threshold outside of a curve is early or late, and a curve without points has none", () => {
  const values = lags.map((lag) => lag);
  assert.equal(lagTo(0.5, lags, values), "early");
  assert.equal(lagTo(1e9, lags, values), "late");
  assert.equal(lagTo(1, [], []), null);
});

test("a curve that starts at zero is interpolated without a logarithm", () => {
  close(lagTo(0.5, [1, 4], [0, 1]), 2);
});

test("the slope of a power law is its exponent, and three points are not enough", () => {
  const points = [1, 10, 100, 1000].map((time) => [time, 3 * time ** 0.8]);
  const fit = powerLaw(points);
  close(fit.slope, 0.8);
  close(fit.line(50), 3 * 50 ** 0.8);
  assert.equal(powerLaw(points.slice(1)), null);
});
