// The computations behind the sliders: the scaled lag, and the lag to a threshold. The formulas are those of
// lightning_glassy.analysis. A test compares the numbers.

const MIN_CROSSINGS = 4; // waiting times that a slope needs

// Compute the abscissa of a collapse, as analysis.scaled_lag. The time counts from the origin of the clock.
export function scaledLag(time, lag, mu, variable) {
  if (variable === "plain") return lag / time ** mu;
  const power = 1 - mu;
  if (Math.abs(power) < 1e-9) return Math.log1p(lag / time);
  return (time ** power * Math.expm1(power * Math.log1p(lag / time))) / power;
}

// Return the lag at which a curve first reaches a threshold, as analysis.lag_to_threshold. The lag is "early" if the
// curve starts above the threshold, "late" if the curve never reaches it, and null for a curve without points.
export function lagTo(threshold, lags, values) {
  if (!values.length) return null;
  if (values[0] >= threshold) return "early";
  const next = values.findIndex((value) => value >= threshold);
  return next < 0 ? "late" : interpolated(lags, values, next - 1, threshold);
}

// Interpolate between points a and a + 1, by the monotonic cubic of Fritsch and Carlson (1980) in the logarithms.
function interpolated(lags, values, a, threshold) {
  const x = lags.map(Math.log), [from, to] = [x[a], x[a + 1]], aim = Math.log(threshold);
  if (!(values[a] > 0)) { // zero has no logarithm, so interpolate the value itself
    return Math.exp(from + ((threshold - values[a]) / (values[a + 1] - values[a])) * (to - from));
  }
  const y = values.map((value) => Math.log(Math.max(value, 1e-300)));
  const width = (i) => x[i + 1] - x[i], secant = (i) => (y[i + 1] - y[i]) / width(i);
  const slope = (i) => { // at one end, from the neighbour on its far side too
    if (i === a ? !(a > 0 && values[a - 1] > 0) : i + 1 >= x.length) return secant(a);
    const parabola = (width(i) * secant(i - 1) + width(i - 1) * secant(i)) / (width(i - 1) + width(i));
    return Math.min(Math.max(parabola, 0), 3 * secant(a));
  };
  const left = slope(a) * width(a), right = slope(a + 1) * width(a);
  let bottom = 0, top = 1;
  for (let i = 0; i < 40; i += 1) {
    const u = (bottom + top) / 2, v = 1 - u;
    const value = v * v * (1 + 2 * u) * y[a] + u * u * (3 - 2 * u) * y[a + 1] + u * v * (v * left - u * right);
    if (value < aim) bottom = u;
    else top = u;
  }
  return Math.exp(from + bottom * width(a));
}

// Fit a power law to points [time, lag], by least squares. Return its slope and its line, or null for too few points.
export function powerLaw(points) {
  if (points.length < MIN_CROSSINGS) return null;
  const logs = points.map(([time, lag]) => [Math.log(time), Math.log(lag)]);
  const mean = (k) => logs.reduce((sum, one) => sum + one[k], 0) / logs.length, [x, y] = [mean(0), mean(1)];
  const slope = logs.reduce((sum, one) => sum + (one[0] - x) * (one[1] - y), 0)
    / logs.reduce((sum, one) => sum + (one[0] - x) ** 2, 0);
  return {slope, line: (time) => Math.exp(y + slope * (Math.log(time) - x))};
}
