// The sidebar of the page: observable, runs, groups, and their comparison.

import {glossary, h, integer, segments, swatch} from "./dom.js";
import {runColour} from "./look.js";
import {chosenGroups, chosenRuns, epsText, groupsOf, hasEps, layoutShown, model, runIndex} from "./model.js";

const MANY_RUNS = 8, MANY_GROUPS = 8; // from this number on, there is a search field
const NO_WEIGHTS = /(^|[._/])(bias|biases|b|bn\d*|norm\d*|batch_?norm\d*|layer_?norm\d*|ln_?\w*)($|[._/])/i;

export class Choice {
  constructor(choose) {
    this.choose = choose;
    this.element = h("div", {className: "choices"});
    this.filter = h("input", {
      type: "search", placeholder: "Filter runs", ariaLabel: "Filter runs", "data-key": "filter",
      oninput: () => this.applyFilter(),
    });
    this.groupFilter = h("input", {
      type: "search", placeholder: "Filter groups", ariaLabel: "Filter groups", "data-key": "group filter",
      oninput: () => this.applyFilter(),
    });
  }

  // Draw everything again, and keep the focus and the scroll position of the list.
  draw() {
    const key = document.activeElement?.dataset?.key, scroll = this.element.querySelector(".runs")?.scrollTop ?? 0;
    const parts = [this.observable(), this.runs(), this.groups(), this.compare(), this.symbols ??= glossary()];
    this.element.replaceChildren(...parts.filter((part) => part !== null));
    this.applyFilter();
    const list = this.element.querySelector(".runs");
    if (list) list.scrollTop = scroll;
    if (key) [...this.element.querySelectorAll("[data-key]")].find((element) => element.dataset.key === key)?.focus();
  }

  part(title, ...children) {
    return h("section", {}, h("h3", {}, title), ...children.filter((child) => child !== null));
  }

  observable() {
    const runs = chosenRuns(), {state} = model;
    const there = Object.keys(model.observables).filter((key) => runs.some((run) => run.observables.includes(key)));
    if (there.length && !there.includes(state.observable)) [state.observable] = there;
    const eps = [...new Set(runs.flatMap((run) => run.eps))].sort((a, b) => a - b);
    const options = there.map((key) => h("option", {value: key, selected: key === state.observable}, model.observables[key].title));
    return this.part("Observable",
      h("select", {
        ariaLabel: "Observable", "data-key": "observable",
        onchange: (event) => this.choose({observable: event.target.value, threshold: null}),
      }, options),
      !hasEps() ? null : h("select", {
        ariaLabel: "Threshold of the overlap", "data-key": "eps",
        onchange: (event) => this.choose({eps: Number(event.target.value), threshold: null}),
      }, eps.map((value) => h("option", {value, selected: value === state.eps}, epsText(runs.find((run) => run.eps.includes(value)), value)))));
  }

  runs() {
    const {runs} = model, names = new Set(chosenRuns().map((run) => run.name)), coloured = chosenGroups().length === 1;
    if (!runs.length) return null;
    const without = (name) => [...names].filter((one) => one !== name);
    const toggle = (name) => this.choose({runs: names.has(name) ? without(name) : [...names, name]});
    const items = runs.map((run) => {
      const n = run.error ? 0 : run.groups.find((group) => group.name === "all").n_parameters;
      const told = `N = ${integer(n)} · step ${integer(run.last_step)}${run.n_replica ? ` · ${run.n_replica} replicas` : ""}`;
      const box = h("input", {
        type: "checkbox", "data-key": `run ${run.name}`, checked: names.has(run.name), disabled: Boolean(run.error),
        onchange: () => toggle(run.name),
      });
      return h("li", {"data-name": run.name}, h("label", {title: run.error ?? run.name}, box,
        swatch(coloured ? runColour(runIndex(run.name)) : "transparent"), h("span", {className: "name"}, run.name),
        h("small", {className: run.error ? "bad" : ""}, run.error ?? told)));
    });
    const found = () => runs.filter((run) => !run.error && this.matches(run.name)).map((run) => run.name);
    const all = () => this.choose({runs: found()});
    return this.part(h("span", {}, "Runs ", h("small", {}, `${names.size} of ${runs.length}`)),
      runs.length > MANY_RUNS ? this.filter : null,
      runs.length > 2 ? h("div", {className: "links"},
        h("button", {type: "button", "data-key": "all", onclick: all}, "all"),
        h("button", {type: "button", "data-key": "none", onclick: () => this.choose({runs: []})}, "none")) : null,
      h("ul", {className: "runs"}, items));
  }

  matches(name) {
    return name.toLowerCase().includes(this.filter.value.toLowerCase());
  }

  applyFilter() {
    for (const item of this.element.querySelectorAll(".runs li")) item.hidden = !this.matches(item.dataset.name);
    for (const item of this.element.querySelectorAll(".groups li")) item.hidden = !this.matchesGroup(item.dataset.name);
  }

  matchesGroup(name) {
    return name.toLowerCase().includes(this.groupFilter.value.toLowerCase());
  }

  groups() {
    const groups = groupsOf(chosenRuns()), chosen = model.state.groups;
    if (groups.length < 2) return null;
    const toggle = (group) => {
      const next = chosen.includes(group) ? chosen.filter((one) => one !== group) : [...chosen, group];
      this.choose({groups: next.length ? next : ["all"]});
    };
    const box = (group) => h("input", {
      type: "checkbox", "data-key": `group ${group}`, checked: chosen.includes(group), onchange: () => toggle(group)});
    const leftOut = chosenRuns().reduce((sum, run) => sum + (run.left_out ?? 0), 0);
    const many = groups.length > MANY_GROUPS, pick = (wanted) => this.choose({groups: wanted.length ? wanted : ["all"]});
    const found = () => groups.filter((group) => group !== "all" && this.matchesGroup(group));
    const button = (text, tip, wanted) => h("button", {
      type: "button", "data-key": `groups ${text}`, title: tip, onclick: () => pick(wanted())}, text);
    const links = groups.length < 3 ? null : h("div", {className: "links"},
      button("all", "All groups that match the filter", found),
      button("none", "All parameters together", () => ["all"]),
      groups.some((group) => NO_WEIGHTS.test(group))
        ? button("weights only", "Without biases and normalisations", () => found().filter((group) => !NO_WEIGHTS.test(group))) : null);
    const title = h("span", {}, "Groups ", h("small", {}, `${chosenGroups().length} of ${groups.length}`));
    return this.part(title, many ? this.groupFilter : null, links, h("ul", {className: "groups"}, groups.map((group) => (
      h("li", {"data-name": group}, h("label", {title: group}, box(group), h("span", {className: "name"}, group)))))),
    leftOut ? h("small", {className: "quiet"}, `${leftOut} more are not in this file: lightning-glassy report --group NAME`) : null);
  }

  compare() {
    const {state} = model, several = chosenRuns().length > 1;
    if (!several && chosenGroups().length < 2) return null;
    const layouts = [["side", "side by side"], ["over", "overlaid"], ...(several ? [["together", "as replicas"]] : [])];
    const shown = state.layout === "together" ? "together" : layoutShown();
    return this.part("Compare",
      segments("layout", layouts, shown, (layout) => this.choose({layout}), "How runs are compared"),
      shown !== "over" ? null : segments("colour", [["run", "colour by run"], ["time", "by waiting time"]],
        state.colour === "time" ? "time" : "run", (colour) => this.choose({colour}), "What the colour tells"));
  }
}
