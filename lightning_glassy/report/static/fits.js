// The fitted exponents: a table, and words.

import {big, fixed, h, integer, math, short, swatch} from "./dom.js";
import {runColour} from "./look.js";
import {fitOf, keyOf, label, model, qualityOf} from "./model.js";

const METHODS = ["collapse, effective time", "collapse, plain", "threshold"];

const small = (error) => fixed(Math.max(error, 0.001));
const percent = (part) => (part === null ? "–" : `${(100 * part).toFixed(1)} %`);

// A row for each series. A single series also has a row for each other observable. The reason why an exponent is no
// headline is below its row. A click on an exponent calls `use` with the exponent and its scaling variable. A click on
// another observable calls `choose`.
export function fitTable(use, choose) {
  const {series} = model, scaled = model.state.x !== "lag";
  const head = [
    series.length > 1 ? "run" : "observable", math("μ"), "missed by", ["collapse in ", ...math("h")],
    ["in ", ...math("t / t_w^μ")], "threshold", ...(scaled ? [[...math("S"), " here"]] : []), "verdict",
  ];
  const tips = {"missed by": "Rms distance of the curves from a common curve, beyond the errors of the replicas"};
  return h("table", {}, h("thead", {}, h("tr", {}, head.map((title) => h("th", {title: tips[title] ?? ""}, title)))),
    h("tbody", {}, series.flatMap((one) => rows(one, scaled, head.length, use, choose))));
}

function rows(one, scaled, columns, use, choose) {
  const several = model.series.length > 1, fit = fitOf(one), exponent = fit?.aging_exponent;
  const title = several || !exponent ? label(one) : exponent.label;
  const name = named(title, several ? runColour(one.index) : "var(--accent)");
  if (!exponent || exponent.too_short) {
    const why = exponent?.why_not ?? (fit ? fit.why_no_exponent ?? fit.error : "fitting …");
    return [h("tr", {}, name, h("td", {colSpan: columns - 1, className: "quiet"}, why))];
  }
  const {kind, stops_at: stops} = fit.verdict;
  const button = exponent.estimate === null ? null : h("button", {
    type: "button", className: "use", title: "Collapse the curves with this exponent",
    onclick: () => use(Number(exponent.estimate.toFixed(3)), fit.variable),
  }, fixed(exponent.estimate));
  const listed = row(exponent, columns, name, ...numbers(exponent, button), scaled ? h("td", {}, big(qualityOf(one))) : null,
    h("td", {className: "verdict"}, kind + (stops === null ? "" : ` at step ${integer(stops)}`)));
  if (several) return listed;
  const others = exponent.others.flatMap((other) => {
    const pick = () => choose({observable: other.observable, ...(other.eps === null ? {} : {eps: other.eps}), threshold: null});
    const link = h("button", {type: "button", className: "link", title: "Show this observable", onclick: pick}, other.label);
    const [start, end] = other.window, same = start === exponent.window[0] && end === exponent.window[1];
    const window = same ? null : h("small", {}, ...math("t_w"), ` = ${integer(start)} … ${integer(end)}`);
    return row(other, columns, named([link, window], "transparent"),
      ...numbers(other, other.estimate === null ? null : fixed(other.estimate)), h("td", {colSpan: scaled ? 2 : 1}));
  });
  const unfitted = Object.entries(exponent.unfitted).map(([what, reason]) => h("tr", {},
    named(what, "transparent"), h("td", {colSpan: columns - 1, className: "quiet"}, `not fitted: ${reason}`)));
  return [...listed, ...others, ...unfitted];
}

const named = (name, colour) => (
  h("th", {scope: "row"}, h("span", {}, swatch(colour), h("span", {className: "name"}, ...[name].flat().filter((part) => part !== null)))));

// A row, and below it the reason why its exponent is no headline.
function row(exponent, columns, ...cells) {
  const why = exponent.why_not;
  if (why === null) return [h("tr", {}, cells)];
  return [h("tr", {className: "doubtful"}, cells),
    h("tr", {}, h("td", {colSpan: columns, className: "why"}, `no headline: ${why}`))];
}

// The cells of the exponent, of the distance of the curves from a common curve, and of the methods.
function numbers(exponent, shown) {
  const {interval, estimates, standard_errors: errors} = exponent;
  const range = interval === null || shown === null ? null : h("small", {}, ` ${fixed(interval[0])} … ${fixed(interval[1])}`);
  const estimate = (method) => h("td", {}, fixed(estimates[method]),
    errors[method] === undefined ? null : h("small", {}, ` ± ${small(errors[method])}`));
  return [h("td", {}, shown ?? "–", range), h("td", {}, percent(exponent.miss)), ...METHODS.map(estimate)];
}

// The short answers about a series.
export const headline = (one) => (fitOf(one)?.headline ?? []).map(([value, name]) => {
  const sure = name === "verdict" ? ` ${fitOf(one).confidence ?? ""}` : "", told = {
    " sure": "no doubt is known", " doubtful": "there are doubts, see below", " unknown": "the record does not decide"}[sure] ?? "";
  return h("div", {className: `answer${name.length > 60 ? " long" : ""}${sure}`, title: told}, h("b", {}, value), h("span", {}, name));
});

// The answer in plain words, a line for each sentence.
export const sentences = (one) => (fitOf(one)?.words ?? []).flatMap((words, i) => (i ? [" ", h("span", {}, words)] : [h("span", {}, words)]));

const VISIBLE = 2; // doubts. The others are folded

// The doubts, the most serious first. The set `open` records whether the folded doubts are shown.
export function doubtList(all, open) {
  const visible = h("ul", {}, all.slice(0, VISIBLE).map((doubt) => h("li", {}, doubt))), more = all.slice(VISIBLE);
  if (!all.length) return [];
  const title = h("summary", {}, `${more.length} more doubt${more.length > 1 ? "s" : ""}`);
  return more.length ? [visible, h("details", {open}, title, more.map((doubt) => h("p", {}, doubt)))] : [visible];
}

// The groups side by side: their rates, and the exponents that were fitted. `sort` changes the order.
export function groupTable(rows, fits, sort, by) {
  const columns = [["group", "group"], ["n_parameters", "N"], ["rate", "aging rate"], ["mu", math("μ")]];
  const mu = (row) => row.mu ?? fits.get(row.group)?.aging_exponent?.mu ?? null;
  const value = {group: (row) => row.group, n_parameters: (row) => row.n_parameters, rate: (row) => row.rate?.[0] ?? -Infinity, mu: (row) => mu(row) ?? -Infinity}[by];
  const order = rows.slice().sort((a, b) => (by === "group" ? value(a).localeCompare(value(b)) : value(b) - value(a)));
  const head = columns.map(([key, title]) => h("th", {ariaSort: key === by ? "descending" : "none"},
    h("button", {type: "button", className: "link", title: "Sort by this", onclick: () => sort(key)}, ...[title].flat())));
  const why = (row) => fits.get(row.group)?.aging_exponent?.why_not ?? fits.get(row.group)?.why_no_exponent ?? "";
  return h("table", {}, h("thead", {}, h("tr", {}, head, h("th", {}, "verdict"))), h("tbody", {}, order.map((row) => h("tr", {},
    h("th", {scope: "row", title: row.group}, h("span", {}, h("span", {className: "name"}, row.group))), h("td", {}, integer(row.n_parameters)),
    h("td", {}, row.rate ? fixed(row.rate[0], 2) : "–", row.rate ? h("small", {}, ` ${fixed(row.rate[1], 2)} … ${fixed(row.rate[2], 2)}`) : null),
    h("td", {title: why(row)}, mu(row) === null ? (fits.has(row.group) ? "none" : "–") : fixed(mu(row), 2)), h("td", {}, row.kind)))));
}

// A number as text, with a power of ten if it is small.
const tiny = (number, digits) => (
  number !== null && Math.abs(number) < 1e-3 && number !== 0 ? number.toExponential(digits - 1).replace(/-/g, "−") : short(number, digits));

// The effective temperatures of the time sectors of each run.
export function sectorTable(list) {
  const several = list.length > 1;
  const head = [...(several ? ["run"] : []), math("t_w"), "lags", math("T_eff"), math("X")].map((title) => h("th", {}, ...[title].flat()));
  const value = (number, error) => (number === null ? ["–"] : [tiny(number, 3), h("small", {}, ` ± ${tiny(error, 1)}`)]);
  // X of the early lags is 1 by its definition.
  const ratio = (one) => (one.name === "early" ? ["1"] : value(one.ratio, one.ratio_error));
  const unresolved = "not resolved: 1/T_eff is not larger than two of its errors";
  return h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, list.flatMap((one) => one.sectors.map((sector) => h("tr", {},
    several ? named(label(one), runColour(one.index)) : null, h("td", {}, integer(sector.waiting_time)),
    h("td", {}, `${integer(sector.first_lag)} … ${integer(sector.last_lag)}`, h("small", {className: "sector"}, ` ${sector.name}`)),
    h("td", {title: sector.temperature === null ? unresolved : ""}, ...value(sector.temperature, sector.temperature_error)),
    h("td", {}, ...(sector.temperature === null ? ["–"] : ratio(sector))))))));
}

// The report of each series, as `lightning-glassy report` prints it. The map `open` records which reports are unfolded,
// by key. The report of a single series is unfolded at first.
export function inWords(open) {
  return model.series.filter((one) => fitOf(one)?.text).map((one) => {
    const title = "in words, and what to doubt";
    const named = model.series.length > 1 ? `${label(one)}: ${title}` : title[0].toUpperCase() + title.slice(1);
    return h("details", {className: "words", open: open.get(keyOf(one)) ?? model.series.length === 1, "data-key": keyOf(one)},
      h("summary", {}, named), h("pre", {}, fitOf(one).text));
  });
}
