// The exponents that were found: a table, and in words.

import {big, fixed, h, integer, math, swatch} from "./dom.js";
import {runColour} from "./look.js";
import {fitOf, keyOf, label, model, qualityOf} from "./model.js";

const METHODS = ["collapse, effective time", "collapse, plain", "threshold"];

// One row per series. A click on an exponent calls `use` with the exponent and its scaling variable.
export function fitTable(use) {
  const {series} = model, scaled = model.state.x !== "lag";
  const head = [
    series.length > 1 ? "run" : "", math("μ"), ["collapse in ", ...math("λ")], ["in ", ...math("t / t_w^μ")], "threshold",
    ...(scaled ? [[...math("S"), " here"]] : []), "verdict",
  ];
  return h("table", {}, h("thead", {}, h("tr", {}, head.map((title) => h("th", {}, title)))),
    h("tbody", {}, series.map((one) => row(one, scaled, head.length, use))));
}

function row(one, scaled, columns, use) {
  const fit = fitOf(one), exponent = fit?.aging_exponent;
  const colour = model.series.length > 1 ? runColour(one.index) : "var(--accent)";
  const name = h("th", {scope: "row"}, h("span", {}, swatch(colour), h("span", {className: "name"}, label(one))));
  if (!exponent) {
    const why = fit ? fit.why_no_exponent ?? fit.error : "fitting …";
    return h("tr", {}, name, h("td", {colSpan: columns - 1, className: "quiet"}, why));
  }
  const estimate = (method) => {
    const error = exponent.standard_errors[method];
    return h("td", {}, fixed(exponent.estimates[method]), error === undefined ? null : h("small", {}, ` ± ${fixed(error)}`));
  };
  const {kind, stops_at: stops} = fit.verdict;
  return h("tr", {}, name,
    h("td", {},
      h("button", {
        type: "button", className: "use", title: "Collapse the curves with this exponent",
        onclick: () => use(Number(exponent.mu.toFixed(3)), fit.variable),
      }, fixed(exponent.mu)),
      exponent.interval ? h("small", {}, ` ${fixed(exponent.interval[0])} … ${fixed(exponent.interval[1])}`) : null),
    ...METHODS.map(estimate), scaled ? h("td", {}, big(qualityOf(one))) : null,
    h("td", {className: "verdict"}, kind + (stops === null ? "" : ` at step ${integer(stops)}`)));
}

// The short answers about a series.
export const headline = (one) => (fitOf(one)?.headline ?? []).map(([value, name]) => (
  h("div", {className: "answer"}, h("b", {}, value), h("span", {}, name))));

// The report of each series, as `lightning-glassy report` prints it. The map `open` tells which reports are unfolded, by
// key. The report of a single series is unfolded at first.
export function inWords(open) {
  return model.series.filter((one) => fitOf(one)?.text).map((one) => {
    const title = "in words, and what to doubt";
    const named = model.series.length > 1 ? `${label(one)}: ${title}` : title[0].toUpperCase() + title.slice(1);
    return h("details", {className: "words", open: open.get(keyOf(one)) ?? model.series.length === 1, "data-key": keyOf(one)},
      h("summary", {}, named), h("pre", {}, fitOf(one).text));
  });
}
