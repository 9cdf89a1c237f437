// The page: what is chosen at the side, what is drawn beside it, and the way between the two.

import {ask, latest} from "./api.js";
import {drawCrossings, drawCurves, drawExponents, drawSeries, label, OBSERVABLES} from "./charts.js";
import {big, debounced, fixed, h, integer, math, short} from "./dom.js";
import {savePicture, saveTable} from "./export.js";
import {readAddress, watchAddress, watchReload, watchTheme, writeAddress} from "./host.js";
import {runColour, timeColour} from "./look.js";
import {fromAddress, toAddress} from "./state.js";

const MU = {min: -0.5, max: 2, step: 0.005};
const REFRESH = 5000;
const SHOWN_AT_FIRST = 20; // runs; more are there to be chosen
const SIDE_BY_SIDE = 6; // series up to which they are drawn so unless it is chosen

let state, runs = [], series = [], fits = new Map(), charts = true, lost = "", missing = "";
const $ = {}; // the elements that change

// ------------------------------------------------------------------ what is shown

const chosenRuns = () => {
  const good = runs.filter((run) => !run.error);
  return state.runs === null ? good.slice(0, SHOWN_AT_FIRST) : good.filter((run) => state.runs.includes(run.name));
};
const indexOf = (name) => Math.max(runs.findIndex((run) => run.name === name), 0);
const groupsOf = (list) => [...new Map(list.flatMap((run) => run.groups.map((group) => [group.name, group]))).keys()];

function question(more = {}) {
  const list = chosenRuns(), groups = state.groups.filter((group) => groupsOf(list).includes(group));
  return {
    run: list.map((run) => run.name), group: groups.length ? groups : ["all"],
    together: state.layout === "together" && list.length > 1 ? "1" : null, ...more,
  };
}
const ofObservable = () => ({observable: state.observable, eps: state.observable === "overlap" ? state.eps : null});

// How many series will be drawn, known before they have arrived.
function countSeries() {
  const list = chosenRuns();
  if (state.layout === "together" && list.length > 1) return question().group.length;
  return list.reduce((sum, run) => sum + run.groups.filter((group) => question().group.includes(group.name)).length, 0);
}
function layoutShown() {
  if (state.layout === "side" || state.layout === "over") return state.layout;
  return countSeries() > 1 && countSeries() <= SIDE_BY_SIDE ? "side" : "over";
}

function view() {
  const side = layoutShown() === "side" && series.length > 1;
  const times = series.flatMap((one) => one.waiting_times);
  return {
    side, x: state.x, observable: state.observable, log: OBSERVABLES[state.observable].log,
    byRun: !side && series.length > 1 && state.colour !== "time", hidden: new Set(state.hidden),
    points: series.reduce((sum, one) => sum + one.waiting_times.length * one.lags.length, 0),
    last: times.reduce((a, b) => Math.max(a, b), 1), threshold: currentThreshold(),
  };
}

// ------------------------------------------------------------------ getting and drawing

function say(text, kind = "") {
  $.message.textContent = text;
  $.message.className = `message ${kind}`;
  $.message.hidden = !text;
}

// Whether a colour is a run's and a group's; otherwise it is a run's, as in the list at the side.
const byGroup = () => question().group.length > 1;

// Errors of single runs are said beside the others; the same errors are not said twice.
function split(answers) {
  const bad = answers.filter((one) => one.error);
  say([missing, ...new Set(bad.map((one) => `${label(one)}: ${one.error}`))].filter(Boolean).join("\n"), "error");
  const good = answers.filter((one) => !one.error);
  return good.map((one, i) => ({...one, index: byGroup() ? i : indexOf(one.run)}));
}

const refreshRuns = latest(async (force) => {
  try {
    const found = (await ask("runs")).runs;
    const before = JSON.stringify(chosenRuns().map((run) => [run.name, run.version]));
    const changed = JSON.stringify(runs) !== JSON.stringify(found), again = force || lost;
    runs = found;
    lost = "";
    if (changed) drawChoice();
    if (again || before !== JSON.stringify(chosenRuns().map((run) => [run.name, run.version]))) await load();
  } catch (error) {
    lost = `TensorBoard cannot be reached, or did not understand: ${error.message}`;
    say(lost, "error");
  }
});

// Browsers mind an address that changes with every move of a slider.
const remember = debounced(() => writeAddress(toAddress(state)), 200);

const load = latest(async () => {
  remember();
  const list = chosenRuns();
  $.page.classList.toggle("empty", !list.length);
  drawEmpty(list);
  if (!list.length) return;
  if (state.observable === "overlap" && state.eps === null) state.eps = list.find((run) => run.eps.length)?.eps[0] ?? null;
  try {
    series = split((await ask("curves", question(ofObservable()))).series);
  } catch (error) {
    series = [];
    say(error.message, "error");
  }
  // An exponent of what the run was a moment ago stays until the next one is found.
  const kept = new Set(series.map(label));
  fits = new Map([...fits].filter(([key, fit]) => kept.has(key) && fit.of === ofWhat()));
  drawLegend();
  await shielded(state.x === "lag" ? show() : collapse());
  // The rest follows, the exponents one by one: they take longest. Another choice need not wait for them.
  if (series.length) [along(), local(), exponents()].map(shielded);
});

// What goes wrong is said, and the rest of the page goes on.
const shielded = (promise) => promise.catch((error) => say(error.message, "error"));

// What an exponent is of: it has to be found anew when this changes.
const ofWhat = () => JSON.stringify([ofObservable(), state.layout === "together" && chosenRuns().map((run) => run.name)]);
const versionOf = (one) => chosenRuns().filter((run) => state.layout === "together" || run.name === one.run).map((run) => run.version).join();

async function show() {
  const now = view();
  drawTitle();
  drawMu();
  // The places along this axis are on their way; they will be drawn when they come.
  if (state.x !== "lag" && series.some((one) => one.placed !== state.x)) return;
  $.curves.dataset.drawn = "";
  if (charts) drawCurves($.curves, series, now, (value) => {
    if (value > 0) choose({threshold: Number(value.toPrecision(3))}, threshold);
    else show();
  });
  // When the picture is on the screen: for whoever measures.
  requestAnimationFrame(() => setTimeout(() => performance.mark("glassy-drawn")));
  $.curves.dataset.drawn = [state.x, state.observable, series.length, now.side ? "side" : "over"].join();
}

const collapse = latest(async () => {
  const variable = state.x;
  if (variable === "lag" || !series.length) return show();
  const answers = (await ask("collapse", question({...ofObservable(), mu: currentMu(), variable}))).series;
  const found = new Map(answers.map((one) => [label(one), one]));
  for (const one of series) {
    const answer = found.get(label(one));
    // A run that has grown in between is drawn when its curves have been asked for again.
    const fitting = answer?.scaled_lags?.length === one.waiting_times.length && answer.scaled_lags[0]?.length === one.lags.length;
    one.places = fitting ? answer.scaled_lags : null;
    one.placed = variable;
    one.quality = answer?.quality ?? null;
  }
  await show();
  drawFits();
});

async function along() {
  const shown = series;
  const answers = (await ask("series", {run: question().run, together: question().together})).series.filter((one) => !one.error);
  if (series !== shown) return; // something else is, by now
  const list = answers.map((one) => ({...one, index: indexOf(one.run)}));
  const names = [...new Set(list.flatMap((one) => Object.keys(one.one_time)))];
  $.along.hidden = !names.length;
  $.along.data = list;
  const have = new Map([...$.seriesGrid.children].map((child) => [child.dataset.name, child]));
  for (const [name, child] of have) if (!names.includes(name)) child.remove();
  for (const name of names) {
    const runsWithIt = list.filter((one) => name in one.one_time);
    let child = have.get(name);
    if (!child) {
      child = h("figure", {className: "small"}, h("figcaption", {}, h("b", {}, name.replace(/_/g, " ")), h("span", {})), h("div", {className: "plot"}));
      child.dataset.name = name;
      $.seriesGrid.append(child);
    }
    const start = runsWithIt.map((one) => one.one_time[name].values[one.one_time[name].steps.indexOf(0)]).filter((value) => value !== undefined && value !== null);
    child.querySelector("span").textContent = start.length ? `at step 0: ${start.slice(0, 3).map((value) => short(value)).join(", ")}${start.length > 3 ? " …" : ""}` : "";
    if (charts) drawSeries(child.querySelector(".plot"), name, runsWithIt);
  }
}

async function local() {
  const shown = series;
  const answers = (await ask("exponents", question())).series.filter((one) => !one.error);
  if (series !== shown) return;
  const list = answers.map((one) => ({...one, index: series.find((other) => label(other) === label(one))?.index ?? indexOf(one.run)}));
  $.local.data = list;
  $.local.hidden = !list.length;
  drawLocal();
}

function drawLocal() {
  const list = $.local.data ?? [], now = view();
  if (charts && list.length) drawExponents($.exponents, list, {...now, side: now.side && list.length > 1});
}

async function exponents() {
  drawFits();
  for (const one of [...series]) {
    const key = label(one), of = ofWhat(), version = versionOf(one);
    if (fits.get(key)?.version === version) continue;
    const asked = question({...ofObservable(), group: [one.group]});
    if (asked.together === null) asked.run = [one.run];
    const [answer] = (await ask("fits", asked)).series;
    if (!series.includes(one)) return;
    fits.set(key, {...answer, of, version});
    drawFits();
    drawMu();
    if (state.x !== "lag" && state.mu === null && fits.size === 1) await collapse();
  }
  await threshold();
}

// Until one is chosen, the threshold amid those that the fits have looked at.
function currentThreshold() {
  if (!OBSERVABLES[state.observable].relaxes) return null;
  if (state.threshold !== null) return state.threshold;
  const middles = [...fits.values()].map((fit) => fit.aging_exponent?.thresholds ?? []).filter((list) => list.length)
    .map((list) => Math.log(list[Math.floor(list.length / 2)].crossings.threshold));
  return middles.length ? Number(Math.exp(middles.reduce((a, b) => a + b) / middles.length).toPrecision(3)) : null;
}

const threshold = latest(async () => {
  const relaxes = OBSERVABLES[state.observable].relaxes;
  $.crossing.hidden = !relaxes || !series.length;
  if (!relaxes || !series.length) return;
  drawThreshold();
  const aim = currentThreshold();
  if (aim === null) return show();
  const answers = (await ask("crossings", question({...ofObservable(), threshold: aim}))).series.filter((one) => !one.error);
  const list = answers.map((one) => ({...one, index: series.find((other) => label(other) === label(one))?.index ?? indexOf(one.run)}));
  $.crossing.data = list;
  if (charts) drawCrossings($.crossings, list);
  $.slopes.replaceChildren(...list.map((one) => h("li", {}, swatch(list.length > 1 ? runColour(one.index) : "var(--accent)"), list.length > 1 ? h("span", {className: "name"}, label(one)) : null,
    one.slope === null ? "too few waiting times reach it" : h("span", {}, "slope ", h("b", {}, fixed(one.slope, 2))),
    one.late || one.early ? h("span", {className: "quiet"}, [one.late ? `${one.late} not reached` : "", one.early ? `${one.early} passed before the first lag` : ""].filter(Boolean).join(", ")) : null)));
  await show();
});

// ------------------------------------------------------------------ choosing

function choose(change, then = load) {
  Object.assign(state, change);
  remember();
  drawChoice();
  return shielded(then());
}

const currentMu = () => state.mu ?? [...fits.values()].find((fit) => fit.aging_exponent)?.aging_exponent.mu ?? 0.5;
const fittedVariable = () => [...fits.values()].find((fit) => fit.aging_exponent)?.variable ?? "effective";

function moveMu(mu, x = state.x === "lag" ? fittedVariable() : state.x) {
  return choose({mu, x}, collapse);
}

// ------------------------------------------------------------------ the parts of the page

const swatch = (colour) => h("i", {className: "swatch", style: `background:${colour}`});

function segments(name, options, value, pick, title) {
  return h("div", {className: "segments", role: "radiogroup", ariaLabel: title}, options.map(([key, text]) => h("label", {},
    h("input", {type: "radio", name, value: key, checked: key === value, onchange: () => pick(key)}), h("span", {}, text))));
}

function card(title, name, more = {}) {
  const actions = h("div", {className: "actions"});
  const head = h("header", {}, h("h2", {}, title), actions);
  const section = h("section", {className: `card ${name}`, ariaLabel: typeof title === "string" ? title : name}, head, ...(more.children ?? []));
  for (const [text, tip, act] of more.actions ?? []) actions.append(h("button", {type: "button", title: tip, onclick: act}, text));
  return section;
}

function build(root) {
  $.curves = h("div", {className: "plot curves-plot"});
  $.exponents = h("div", {className: "plot"});
  $.crossings = h("div", {className: "plot"});
  $.seriesGrid = h("div", {className: "small-multiples"});
  $.message = h("p", {className: "message", role: "status", hidden: true});
  $.legend = h("div", {className: "legend", role: "group", ariaLabel: "Waiting times"});
  $.formula = h("p", {className: "formula"});
  $.title = h("span", {});
  $.xAxis = h("div", {});
  $.muSlider = h("input", {type: "range", id: "mu", ...MU, value: 0.5, oninput: (event) => moveMu(Number(event.target.value))});
  $.muNumber = h("input", {type: "number", className: "number", ariaLabel: "μ", ...MU, step: 0.001, onchange: (event) => {
    const value = Number(event.target.value);
    if (event.target.value !== "" && value >= MU.min && value <= MU.max) moveMu(value);
    else drawMu();
  }});
  $.muMarks = h("div", {className: "marks", ariaHidden: "true"});
  $.muFitted = h("button", {type: "button", className: "fitted", onclick: () => moveMu(null, fittedVariable())}, "fitted ", h("var", {}, "μ"));
  $.quality = h("output", {className: "quality", htmlFor: "mu"});
  $.slopes = h("ul", {className: "slopes"});
  $.thresholdSlider = h("input", {type: "range", id: "threshold", min: 0, max: 1000, step: 1, oninput: (event) => choose({threshold: fromSlider(Number(event.target.value))}, threshold)});
  $.thresholdNumber = h("input", {type: "text", inputMode: "decimal", className: "number", ariaLabel: "Δ*", onchange: (event) => {
    const value = Number(event.target.value);
    if (value > 0 && Number.isFinite(value)) choose({threshold: value}, threshold);
    else drawThreshold();
  }});
  $.thresholdOf = h("span", {className: "quiet"});
  $.fits = h("div", {className: "table"});
  $.words = h("div", {});
  const pictures = (element, title) => [
    ["PNG", "Save the picture as PNG", () => savePicture($[element], title(), "png")],
    ["SVG", "Save the picture as SVG", () => savePicture($[element], title(), "svg")],
  ];
  const curveTitle = () => `${OBSERVABLES[state.observable].name} ${state.x === "lag" ? "" : "collapse"}`;
  const curveCard = card($.title, "curves", {
    actions: [...pictures("curves", curveTitle), ["CSV", "Save the numbers as CSV", saveCurves]],
    children: [
      $.formula,
      h("div", {className: "bar"},
        h("span", {className: "against"}, "against"), $.xAxis,
        h("div", {className: "mu"}, h("label", {htmlFor: "mu"}, h("var", {}, "μ")), h("div", {className: "slider"}, $.muMarks, $.muSlider), $.muNumber, $.muFitted, $.quality)),
      $.curves, $.legend,
    ],
  });
  $.exponentCard = card("Aging exponent", "fit", {children: [
    h("p", {className: "formula"}, "The lag to relax grows as ", ...math("t_w^μ"), ": 0 is no aging, between 0 and 1 subaging, 1 full aging."), $.fits, $.words]});
  $.crossing = card([..."Lag to reach Δ*"].join(""), "threshold", {
    actions: [...pictures("crossings", () => "threshold lags"), ["CSV", "Save the numbers as CSV", () => saveTable("threshold lags", ["run", "group", "threshold", "waiting_time", "lag"],
      ($.crossing.data ?? []).flatMap((one) => one.waiting_times.map((time, i) => [one.run, one.group, currentThreshold(), time, one.lags[i]])))]],
    children: [h("div", {className: "bar"}, h("label", {htmlFor: "threshold"}, math("Δ*")), $.thresholdSlider, $.thresholdNumber, $.thresholdOf), $.crossings, $.slopes],
  });
  $.local = card("Local exponent", "local", {
    actions: [...pictures("exponents", () => "local exponent"), ["CSV", "Save the numbers as CSV", () => saveTable("local exponent", ["run", "group", "waiting_time", "lag", "local_exponent"],
      ($.local.data ?? []).flatMap((one) => one.waiting_times.flatMap((time, i) => one.lags.map((lag, j) => [one.run, one.group, time, lag, one.values[i][j]]).filter((row) => row[4] !== null))))]],
    children: [h("p", {className: "formula"}, ...math("γ"), " = ∂ ln Δ / ∂ ln ", h("var", {}, "t"), ": 1 is diffusion, 2 ballistic motion, near 0 a plateau."), $.exponents],
  });
  $.along = card("Along the run", "along", {
    actions: [["CSV", "Save the numbers as CSV", () => saveTable("along the run", ["run", "series", "step", "value"],
      ($.along.data ?? []).flatMap((one) => Object.entries(one.one_time).flatMap(([name, {steps, values}]) => steps.map((step, i) => [one.run, name, step, values[i]]))))]],
    children: [$.seriesGrid],
  });
  $.sideContent = h("div", {className: "choices"});
  $.empty = h("div", {className: "nothing"});
  const narrow = window.matchMedia("(max-width: 760px)");
  const sidebar = h("details", {className: "side", open: !narrow.matches}, h("summary", {}, "Choose runs, groups and observable"), $.sideContent);
  narrow.addEventListener("change", () => { sidebar.open = !narrow.matches; });
  $.page = h("div", {className: "page"}, sidebar,
    h("main", {}, $.message, $.empty, curveCard, $.exponentCard, h("div", {className: "pair"}, $.crossing, $.local), $.along));
  root.replaceChildren($.page);
}

function drawChoice() {
  const focused = document.activeElement?.dataset?.key;
  const chosen = chosenRuns(), names = new Set(chosen.map((run) => run.name)), groups = groupsOf(chosen);
  const toggleRun = (name) => choose({runs: names.has(name) ? [...names].filter((one) => one !== name) : [...names, name]});
  const observables = Object.keys(OBSERVABLES).filter((key) => {
    if (key === "normalised_msd") return chosen.some((run) => run.groups_with_noise.length);
    if (key === "overlap") return chosen.some((run) => run.eps.length);
    return key === "msd" || chosen.some((run) => run.observables.includes(key));
  });
  if (chosen.length && !observables.includes(state.observable)) state.observable = "msd";
  const eps = [...new Set(chosen.flatMap((run) => run.eps))].sort((a, b) => a - b);
  const several = chosen.length * state.groups.length > 1;
  const filter = (element) => {
    const wanted = (element.dataset.filter ?? "").toLowerCase();
    for (const item of element.querySelectorAll("li")) item.hidden = !item.dataset.name.toLowerCase().includes(wanted);
  };
  const list = h("ul", {className: "runs"}, runs.map((run) => {
    const item = h("li", {}, h("label", {title: run.error ?? run.name},
      h("input", {type: "checkbox", checked: names.has(run.name), disabled: Boolean(run.error), onchange: () => toggleRun(run.name)}),
      swatch(byGroup() ? "transparent" : runColour(indexOf(run.name))), h("span", {className: "name"}, run.name),
      h("small", {className: run.error ? "bad" : ""}, run.error ?? `N = ${integer(run.groups.find((group) => group.name === "all").n_parameters)} · step ${integer(run.last_step)}${run.n_replica ? ` · ${run.n_replica} replicas` : ""}`)));
    item.dataset.name = run.name;
    item.querySelector("input").dataset.key = `run ${run.name}`;
    return item;
  }));
  list.dataset.filter = $.runFilter?.value ?? "";
  filter(list);
  if (!$.runFilter) $.runFilter = h("input", {type: "search", placeholder: "Filter runs", ariaLabel: "Filter runs", oninput: () => {
    const now = $.sideContent.querySelector(".runs");
    now.dataset.filter = $.runFilter.value;
    filter(now);
  }});
  const scroll = $.sideContent.querySelector(".runs")?.scrollTop ?? 0;
  const part = (title, ...children) => h("section", {}, h("h3", {}, title), ...children);
  $.sideContent.replaceChildren(...[
    part("Observable", h("select", {ariaLabel: "Observable", "data-key": "observable", onchange: (event) => choose({observable: event.target.value, threshold: null})},
      observables.map((key) => h("option", {value: key, selected: key === state.observable}, OBSERVABLES[key].name))),
    state.observable === "overlap" ? h("select", {ariaLabel: "Threshold of the overlap", "data-key": "eps", onchange: (event) => choose({eps: Number(event.target.value), threshold: null})},
      eps.map((value) => h("option", {value, selected: value === state.eps}, `ε = ${short(value)}`))) : null),
    runs.length ? part(h("span", {}, "Runs ", h("small", {}, `${chosen.length} of ${runs.length}`)),
      runs.length > 8 ? $.runFilter : null,
      runs.length > 2 ? h("div", {className: "links"},
        h("button", {type: "button", onclick: () => choose({runs: runs.filter((run) => !run.error && run.name.toLowerCase().includes($.runFilter.value.toLowerCase())).map((run) => run.name)})}, "all"),
        h("button", {type: "button", onclick: () => choose({runs: []})}, "none")) : null, list) : null,
    groups.length > 1 ? part("Groups", h("ul", {className: "groups"}, groups.map((group) => h("li", {}, h("label", {title: group},
      h("input", {type: "checkbox", "data-key": `group ${group}`, checked: state.groups.includes(group), onchange: () => {
        const next = state.groups.includes(group) ? state.groups.filter((one) => one !== group) : [...state.groups, group];
        choose({groups: next.length ? next : ["all"]});
      }}), h("span", {className: "name"}, group)))))) : null,
    several ? part("Compare", segments("layout", [["side", "side by side"], ["over", "overlaid"], ...(chosen.length > 1 ? [["together", "as replicas"]] : [])],
      state.layout === "auto" ? layoutShown() : state.layout, (layout) => choose({layout}), "Compare"),
    layoutShown() === "over" && state.layout !== "together" ? segments("colour", [["run", "colour by run"], ["time", "by waiting time"]], state.colour === "time" ? "time" : "run", (colour) => choose({colour}), "Colour") : null) : null,
  ].filter(Boolean));
  const now = $.sideContent.querySelector(".runs");
  if (now) now.scrollTop = scroll;
  if (focused) [...$.sideContent.querySelectorAll("[data-key]")].find((element) => element.dataset.key === focused)?.focus();
}

function drawTitle() {
  const what = OBSERVABLES[state.observable];
  $.title.replaceChildren(what.name);
  $.formula.replaceChildren(...math(what.formula), state.observable === "overlap" && state.eps !== null ? `, ε = ${short(state.eps)}` : "", ", one curve per waiting time ", ...math("t_w"),
    ...(state.x === "lag" ? [] : scaledTimes()), series.some((one) => one.band) ? "; the bands are one standard error of the mean over replicas" : "");
  $.xAxis.replaceChildren(segments("x", [["lag", h("span", {}, "lag ", ...math("t"))], ["plain", h("span", {}, ...math("t / t_w^μ"))], ["effective", h("span", {}, "effective time ", ...math("λ"))]],
    state.x, (x) => choose({x}, collapse), "Axis"));
}

// The first and the last waiting time that are scaled: those an exponent is fitted to.
function scaledTimes() {
  const times = series.flatMap((one) => (one.places ? one.waiting_times.filter((_, i) => one.places[i].some((x) => x !== null)) : []));
  return times.length ? [" = ", integer(times.reduce((a, b) => Math.min(a, b))), " … ", integer(times.reduce((a, b) => Math.max(a, b)))] : [];
}

// A chip per waiting time: it shows the colour, and hides and shows the curve.
function drawLegend() {
  const now = view(), times = [...new Set(series.flatMap((one) => one.waiting_times))].sort((a, b) => a - b);
  const hide = async (hidden) => {
    const focused = document.activeElement?.dataset?.time;
    state.hidden = hidden;
    remember();
    drawLegend();
    [...$.legend.children].find((chip) => chip.dataset.time === focused)?.focus();
    await show();
    drawLocal();
  };
  const pick = (time, alone) => hide(alone ? times.filter((other) => other !== time)
    : state.hidden.includes(time) ? state.hidden.filter((other) => other !== time) : [...state.hidden, time]);
  $.legend.replaceChildren(h("span", {className: "quiet"}, ...math("t_w"), " ="), ...times.map((time) => {
    const chip = h("button", {type: "button", className: "chip", ariaPressed: String(!state.hidden.includes(time)), title: "Hide or show; with Shift, or by a double click, show this one alone",
      onclick: (event) => pick(time, event.shiftKey), ondblclick: () => pick(time, true)},
    swatch(now.byRun ? "var(--muted)" : timeColour(time, now.last)), integer(time));
    chip.dataset.time = String(time);
    return chip;
  }), state.hidden.length ? h("button", {type: "button", className: "link", onclick: () => hide([])}, "show all") : "");
}

function drawMu() {
  const mu = currentMu(), place = (value) => `calc(8px + (100% - 16px) * ${(Math.min(Math.max(value, MU.min), MU.max) - MU.min) / (MU.max - MU.min)})`;
  if (document.activeElement !== $.muSlider || state.mu === null) $.muSlider.value = mu;
  if (document.activeElement !== $.muNumber) $.muNumber.value = mu.toFixed(3);
  const found = series.map((one) => [one, fits.get(label(one))?.aging_exponent]).filter(([, exponent]) => exponent);
  $.muMarks.replaceChildren(...found.flatMap(([one, exponent]) => {
    const colour = series.length > 1 ? runColour(one.index) : "var(--accent)";
    const mark = h("i", {className: "mark", style: `left:${place(exponent.mu)};background:${colour}`});
    if (!exponent.interval) return [mark];
    const [low, high] = exponent.interval;
    return [h("i", {className: "interval", style: `left:${place(low)};right:calc(100% - ${place(high)});background:${colour}`}), mark];
  }));
  $.muFitted.disabled = !found.length;
  $.quality.replaceChildren(...(state.x !== "lag" && series.length === 1 && series[0].quality ? [h("var", {}, "S"), ` = ${big(series[0].quality)}`] : []));
}

function drawFits() {
  const relaxes = OBSERVABLES[state.observable].relaxes;
  $.exponentCard.hidden = !relaxes || !series.length;
  if ($.exponentCard.hidden) return;
  const scaled = state.x !== "lag";
  const estimate = (exponent, name) => h("td", {}, exponent?.estimates[name] === undefined ? "" : fixed(exponent.estimates[name]),
    exponent?.standard_errors[name] !== undefined ? h("small", {}, ` ± ${fixed(exponent.standard_errors[name])}`) : "");
  const rows = series.map((one) => {
    const fit = fits.get(label(one)), exponent = fit?.aging_exponent;
    const name = h("th", {scope: "row"}, h("span", {}, swatch(series.length > 1 ? runColour(one.index) : "var(--accent)"), h("span", {className: "name"}, label(one))));
    if (!exponent) return h("tr", {}, name, h("td", {colSpan: scaled ? 6 : 5, className: "quiet"}, fit ? fit.why_no_exponent ?? fit.error : "fitting …"));
    return h("tr", {}, name,
      h("td", {}, h("button", {type: "button", className: "use", title: "Collapse the curves with this exponent", onclick: () => moveMu(Number(exponent.mu.toFixed(3)), fit.variable)}, fixed(exponent.mu)),
        h("small", {}, exponent.interval ? ` ${fixed(exponent.interval[0])} … ${fixed(exponent.interval[1])}` : "")),
      ...["collapse, effective time", "collapse, plain", "threshold"].map((key) => estimate(exponent, key)),
      scaled ? h("td", {}, big(one.quality)) : null,
      h("td", {className: "verdict"}, fit.verdict.kind + (fit.verdict.stops_at !== null ? ` at step ${integer(fit.verdict.stops_at)}` : "")));
  });
  $.fits.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, series.length > 1 ? "run" : ""), h("th", {}, h("var", {}, "μ")), h("th", {}, "collapse in ", ...math("λ")),
    h("th", {}, "in ", ...math("t / t_w^μ")), h("th", {}, "threshold"), scaled ? h("th", {title: "Quality of the collapse at the μ of the slider; smaller is better"}, h("var", {}, "S"), " here") : null, h("th", {}, "verdict"))), h("tbody", {}, rows)));
  const open = new Set([...$.words.querySelectorAll("details[open]")].map((element) => element.dataset.name));
  $.words.replaceChildren(...series.filter((one) => fits.get(label(one))?.text).map((one) => {
    const element = h("details", {className: "words", open: open.has(label(one))}, h("summary", {}, series.length > 1 ? `${label(one)}: in words, and what to doubt` : "In words, and what to doubt"), h("pre", {}, fits.get(label(one)).text));
    element.dataset.name = label(one);
    return element;
  }));
}

// The slider of the threshold runs over the values of the curves, logarithmically.
function thresholdRange() {
  const values = series.flatMap((one) => one.values.flat()).filter((value) => value !== null).map((value) => (state.observable === "overlap" ? 1 - value : value)).filter((value) => value > 0);
  return values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : [1e-3, 1];
}
function fromSlider(position) {
  const [low, high] = thresholdRange();
  return Number((low * (high / low) ** (position / 1000)).toPrecision(3));
}
function drawThreshold() {
  const [low, high] = thresholdRange(), aim = currentThreshold();
  $.thresholdOf.replaceChildren(...math(OBSERVABLES[state.observable].relaxing));
  if (aim !== null && document.activeElement !== $.thresholdSlider) $.thresholdSlider.value = high > low ? 1000 * Math.log(aim / low) / Math.log(high / low) : 500;
  if (document.activeElement !== $.thresholdNumber) $.thresholdNumber.value = aim === null ? "" : short(aim);
}

function drawEmpty(list) {
  $.empty.hidden = list.length > 0;
  if (list.length) return;
  const code = "trainer = Trainer(callbacks=[AgingMonitor()], logger=TensorBoardLogger(\"runs\"))\ntrainer.fit(model)";
  $.empty.replaceChildren(...(runs.some((run) => !run.error)
    ? [h("h2", {}, "No run is chosen"), h("p", {}, "Choose one or several at the side.")]
    : [h("h2", {}, "No aging curves here yet"), h("p", {}, "They come from an ", h("code", {}, "AgingMonitor"), " beside a ", h("code", {}, "TensorBoardLogger"), ":"), h("pre", {}, code),
       h("p", {}, "They appear here a few seconds after training has begun, and grow with it. If there has been such a training, look at the directory that ", h("code", {}, "--logdir"), " names.")]));
}

function saveCurves() {
  const scaled = state.x !== "lag";
  saveTable(`${OBSERVABLES[state.observable].name}`, ["run", "group", "waiting_time", "lag", ...(scaled ? [state.x === "plain" ? "t_over_tw_mu" : "effective_time"] : []), state.observable, "low", "high"],
    series.flatMap((one) => one.waiting_times.flatMap((time, i) => one.lags.map((lag, j) => [one.run, one.group, time, lag, ...(scaled ? [one.places?.[i][j] ?? null] : []), one.values[i][j],
      one.band?.low[i][j] ?? null, one.band?.high[i][j] ?? null]).filter((row) => row.at(-3) !== null && !state.hidden.includes(time)))));
}

// ------------------------------------------------------------------ beginning

export async function start(root, plotly) {
  performance.mark("glassy-loaded");
  charts = plotly;
  state = fromAddress(readAddress());
  const redraw = async () => {
    if (!series.length) return;
    drawChoice();
    drawLegend();
    await show();
    drawFits();
    await Promise.all([along(), local(), threshold()].map(shielded));
  };
  watchTheme(redraw);
  build(root);
  if (!charts) missing = "The charts need plotly: pip install 'lightning-glassy[tensorboard]'";
  watchAddress(() => {
    const next = fromAddress(readAddress());
    if (JSON.stringify(toAddress(next)) === JSON.stringify(toAddress(state))) return;
    state = next;
    drawChoice();
    load();
  });
  watchReload(() => refreshRuns(false));
  await refreshRuns(true);
  const again = async () => {
    // Not while nobody looks: behind another window, or another tab of TensorBoard.
    if (!document.hidden && window.innerHeight > 0) await refreshRuns(false);
    setTimeout(again, REFRESH);
  };
  setTimeout(again, REFRESH);
  let width = window.innerWidth;
  window.addEventListener("resize", debounced(() => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    redraw();
  }, 150));
  document.body.dataset.ready = "yes";
}
