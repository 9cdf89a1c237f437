// Charts and numbers as files.

import {abscissa, model} from "./model.js";

const nameOf = (title) => `glassy_${title.toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_|_$/g, "")}`;

function save(name, content, type) {
  const address = URL.createObjectURL(new Blob([content], {type}));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export async function savePicture(plot, title, format) {
  const {width, height} = plot.getBoundingClientRect();
  const size = {width: Math.round(width), height: Math.round(height), scale: format === "png" ? 2 : 1};
  const address = await window.Plotly.toImage(plot, {format, ...size});
  const [head, body] = [address.slice(0, address.indexOf(",")), address.slice(address.indexOf(",") + 1)];
  // Use a file object instead of an address, because addresses have a largest length.
  const bytes = () => Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
  const content = head.endsWith(";base64") ? bytes() : decodeURIComponent(body);
  save(`${nameOf(title)}.${format}`, content, format === "png" ? "image/png" : "image/svg+xml");
}

// A spreadsheet would run a cell that begins like a formula.
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

function saveTable(title, columns, rows) {
  const text = [columns, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
  save(`${nameOf(title)}.csv`, text, "text/csv");
}

// A row for each pair of times with a value, for each series.
const pairs = (series, row) => series.flatMap((one) => one.waiting_times.flatMap((time, i) => (
  one.lags[i].map((lag, j) => [one.run, one.group, time, lag, ...row(one, i, j)]))));

export function saveCurves(title) {
  const {state} = model, scaled = state.x !== "lag", xOf = abscissa();
  const places = scaled ? [state.x === "plain" ? "t_over_tw_mu" : "effective_time"] : [];
  const columns = [...places, state.observable, "low", "high"];
  const shown = pairs(model.series, (one, i, j) => [
    ...(scaled ? [xOf(one, i, j)] : []), one.values[i][j], one.band?.low[i][j], one.band?.high[i][j]]);
  const rows = shown.filter(([, , time]) => !state.hidden.includes(time));
  saveTable(title, ["run", "group", "waiting_time", "lag", ...columns], rows);
}

export function saveExponents(series) {
  const columns = ["run", "group", "waiting_time", "lag", "local_exponent"];
  saveTable("local exponent", columns, pairs(series, (one, i, j) => [one.values[i][j]]));
}

export function saveResponse(series) {
  const columns = ["half_msd", "correlation", "response", "low", "high"];
  saveTable("response", ["run", "group", "waiting_time", "lag", ...columns], pairs(series, (one, i, j) => (
    [one.x[i][j], one.correlation[i][j], one.values[i][j], one.band?.low[i][j], one.band?.high[i][j]])));
}

export function saveCrossings(series) {
  const rows = series.flatMap((one) => one.crossings.map(({waitingTime, lag}) => (
    [one.run, one.group, one.threshold, waitingTime, typeof lag === "number" ? lag : null])));
  saveTable("threshold lags", ["run", "group", "threshold", "waiting_time", "lag"], rows);
}

export function saveProfiles(runs) {
  const rows = runs.flatMap((one) => Object.entries(one.profiles).flatMap(([name, {waiting_times: times, lags, grid, values}]) => (
    times.flatMap((time, i) => grid.map((x, j) => [one.run, name, time, lags[i], x, values[i][j]])))));
  saveTable("profiles", ["run", "profile", "waiting_time", "lag", "x", "value"], rows);
}

export function saveAlong(runs) {
  const rows = runs.flatMap((one) => Object.entries(one.one_time).flatMap(([name, {steps, values}]) => (
    steps.map((step, i) => [one.run, name, step, values[i]]))));
  saveTable("along the run", ["run", "series", "step", "value"], rows);
}
