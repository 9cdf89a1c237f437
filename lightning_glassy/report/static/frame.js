// The permanent elements of the page: cards, sliders, and their actions.

import {saveAlong, saveCrossings, saveCurves, saveExponents, savePicture, saveProfiles, saveResponse} from "./export.js";
import {h, math, segments} from "./dom.js";
import {model, mu, observable, threshold, thresholdRange} from "./model.js";

export const MU = {min: -0.5, max: 2, step: 0.005};
const STEPS = 1000; // of the slider of the threshold, which is logarithmic

const number = (label, more) => h("input", {className: "number", type: "text", inputMode: "decimal", ariaLabel: label, ...more});

function card(title, name, actions, ...children) {
  const buttons = actions.map(([text, tip, act]) => h("button", {type: "button", title: tip, onclick: act}, text));
  return h("section", {className: `card ${name}`, "aria-label": name},
    h("header", {}, h("h2", {}, title), h("div", {className: "actions"}, buttons)), ...children);
}

const pictures = (plot, title) => ["png", "svg"].map((format) => [
  format.toUpperCase(), `Save the picture as ${format.toUpperCase()}`, () => savePicture(plot, title(), format)]);
const numbers = (save) => ["CSV", "Save the numbers as CSV", save];

// `act` has the actions: choose, moveMu, moveThreshold.
export function frame(sidebar, act) {
  const $ = {
    message: h("p", {className: "message", role: "status", hidden: true}),
    empty: h("div", {className: "nothing", hidden: true}),
    title: h("span"), formula: h("p", {className: "formula"}), curves: h("div", {className: "plot curves-plot"}),
    legend: h("div", {className: "legend", role: "group", ariaLabel: "Waiting times"}),
    marks: h("div", {className: "marks", ariaHidden: "true"}),
    quality: h("output", {className: "quality", htmlFor: "mu"}),
    name: h("h1"), sentences: h("p", {className: "sentences", ariaLabel: "In plain words"}),
    headline: h("div", {className: "headline"}), doubts: h("div", {className: "doubts", ariaLabel: "Doubts"}),
    groupMap: h("div", {className: "plot"}), groupTable: h("div", {className: "table"}), noise: h("div", {className: "plot"}),
    response: h("div", {className: "plot"}), sectors: h("div", {className: "table"}),
    responseDoubts: h("div", {className: "doubts", ariaLabel: "Doubts about the response"}),
    overlaps: h("div", {className: "plot"}), overlapDistribution: h("div", {className: "plot"}),
    fits: h("div", {className: "table"}), scan: h("div", {className: "plot scan-plot"}), words: h("div", {className: "all-words"}),
    crossings: h("div", {className: "plot"}), slopes: h("ul", {className: "slopes"}),
    thresholdOf: h("span", {className: "quiet"}),
    exponents: h("div", {className: "plot"}), series: h("div", {className: "small-multiples"}),
    profiles: h("div", {className: "small-multiples"}), atLag: h("div", {className: "small-multiples wide"}),
    lagText: h("output", {className: "quality", htmlFor: "lag"}),
  };
  $.lag = h("input", {type: "range", id: "lag", min: 0, max: 1, step: 1, value: 0, oninput: (event) => act.moveLag(Number(event.target.value))});
  $.fitGroups = h("button", {type: "button", className: "fitted", onclick: () => act.fitGroups()}, "fit ", ...math("μ"), " of each");
  $.axes = segments("x", [["lag", h("span", {}, "lag ", ...math("t"))], ["plain", h("span", {}, ...math("t / t_w^μ"))],
    ["effective", h("span", {}, "effective time ", ...math("h"))]], model.state.x, act.chooseAxis, "Abscissa");
  $.mu = h("input", {type: "range", id: "mu", ...MU, value: 0.5, oninput: (event) => act.moveMu(Number(event.target.value))});
  $.muNumber = number("μ", {onchange: (event) => {
    const value = Number(event.target.value);
    if (event.target.value.trim() && value >= MU.min && value <= MU.max) act.moveMu(value);
    else event.target.value = mu().toFixed(3);
  }});
  $.fitted = h("button", {type: "button", className: "fitted", onclick: () => act.moveMu(null)}, "fitted ", ...math("μ"));
  $.threshold = h("input", {type: "range", id: "threshold", min: 0, max: STEPS, step: 1, oninput: (event) => {
    const [low, high] = thresholdRange();
    act.moveThreshold(Number((low * (high / low) ** (Number(event.target.value) / STEPS)).toPrecision(3)));
  }});
  $.thresholdNumber = number("Δ*", {onchange: (event) => {
    const value = Number(event.target.value);
    if (value > 0 && Number.isFinite(value)) act.moveThreshold(value);
    else event.target.value = threshold() ?? "";
  }});

  const curvesTitle = () => `${observable().title}${model.state.x === "lag" ? "" : " collapse"}`;
  const curves = card($.title, "curves", [...pictures($.curves, curvesTitle), numbers(() => saveCurves(curvesTitle()))],
    $.formula,
    h("div", {className: "bar"}, h("span", {className: "against"}, "against"), $.axes,
      h("div", {className: "mu"}, h("label", {htmlFor: "mu"}, ...math("μ")),
        h("div", {className: "slider"}, $.marks, $.mu), $.muNumber, $.fitted, $.quality)),
    $.curves, $.legend);
  $.fitCard = card("Aging exponent", "fit", pictures($.scan, () => "collapse quality"),
    h("p", {className: "formula"}, "The lag to relax grows as ", ...math("t_w^μ"),
      ": 0 is no aging, between 0 and 1 subaging, 1 full aging."),
    $.fits, $.scan, $.words);
  $.crossingCard = card("Lag to reach Δ*", "threshold",
    [...pictures($.crossings, () => "threshold lags"), numbers(() => saveCrossings($.crossingCard.shown ?? []))],
    h("div", {className: "bar"},
      h("label", {htmlFor: "threshold"}, ...math("Δ*")), $.threshold, $.thresholdNumber, $.thresholdOf),
    $.crossings, $.slopes);
  $.localCard = card("Local exponent", "local",
    [...pictures($.exponents, () => "local exponent"), numbers(() => saveExponents($.localCard.shown ?? []))],
    h("p", {className: "formula"}, ...math("γ"), " = ∂ ln Δ / ∂ ln ", ...math("t"),
      ": 1 is diffusion, 2 ballistic motion, near 0 a plateau."),
    $.exponents);
  $.groupCard = card("Groups of parameters", "by-group", pictures($.groupMap, () => "groups"),
    h("p", {className: "formula"}, "Red slows down as ", ...math("t_w"), " grows, white does not age, blue becomes faster. Grey is not known."),
    $.groupMap, h("div", {className: "bar"}, $.fitGroups, $.groupText = h("span", {className: "quiet"})), $.groupTable);
  $.noiseCard = card("Against the noise that has acted", "noise", pictures($.noise, () => "noise clock"),
    h("p", {className: "formula"}, "If only the gradient noise fades, all curves fall on one straight line."), $.noise);
  $.responseCard = card("Response to a field", "response",
    [...pictures($.response, () => "response"), numbers(() => saveResponse($.responseCard.shown ?? []))],
    h("p", {className: "formula"}, "In equilibrium all points lie on one line, Δ over 2", ...math("T"),
      ". A glass leaves it at late lags, and so does a drift. The dashed line has the temperature of the early lags."),
    $.response, $.sectors, $.responseDoubts);
  $.replicaCard = card("Between replicas", "replicas",
    [...pictures($.overlaps, () => "overlap between replicas"), ...pictures($.overlapDistribution, () => "distribution of the overlap")],
    h("p", {className: "formula"}, "The overlap ", ...math("q"), " of the weights of two replicas: mean and range along the run, and its distribution at the end."),
    h("div", {className: "pair"}, $.overlaps, $.overlapDistribution));
  $.alongCard = card("Along the run", "along", [numbers(() => saveAlong($.alongCard.shown ?? []))], $.series);
  $.lagBar = h("div", {className: "bar lag"}, h("label", {htmlFor: "lag"}, "lag ", ...math("t")), $.lag, $.lagText);
  $.profileCard = card("Distributions and paths", "profiles", [numbers(() => saveProfiles($.profileCard.shown ?? []))],
    h("p", {className: "formula"}, "One line per waiting time, at the lag nearest to the slider. The dashed line is a Gaussian."),
    $.lagBar, $.atLag, $.profiles);

  // On a phone the choices are folded.
  const narrow = window.matchMedia("(max-width: 760px)");
  const side = h("details", {className: "side", open: !narrow.matches},
    h("summary", {}, "Choose runs, groups and observable"), sidebar);
  narrow.addEventListener("change", () => { side.open = !narrow.matches; });
  $.page = h("div", {className: "page"}, side, h("main", {}, $.message, $.empty, $.name, $.sentences, $.headline, $.doubts, curves, $.fitCard,
    h("div", {className: "pair"}, $.crossingCard, $.localCard), $.groupCard, $.alongCard, $.noiseCard, $.responseCard, $.replicaCard, $.profileCard));
  return $;
}

export function placeThreshold($, value) {
  const [low, high] = thresholdRange();
  if (value !== null && document.activeElement !== $.threshold) {
    $.threshold.value = high > low ? (STEPS * Math.log(value / low)) / Math.log(high / low) : STEPS / 2;
  }
  if (document.activeElement !== $.thresholdNumber) $.thresholdNumber.value = value ?? "";
  $.thresholdOf.replaceChildren("of ", ...math(observable().relaxing));
}

export function nothing(hasRuns) {
  if (hasRuns) return [h("h2", {}, "No run is chosen"), h("p", {}, "Choose one or several at the side.")];
  const code = 'trainer = Trainer(callbacks=[AgingMonitor()], logger=TensorBoardLogger("runs"))\ntrainer.fit(model)';
  return [
    h("h2", {}, "No aging curves here yet"),
    h("p", {}, "They come from an ", h("code", {}, "AgingMonitor"), " beside a ", h("code", {}, "TensorBoardLogger"), ":"),
    h("pre", {}, code),
    h("p", {}, "They appear here a few seconds after training has begun, and grow with it. If there has been such a "
      + "training, look at the directory that ", h("code", {}, "--logdir"), " names."),
  ];
}
