// Tables. A small document takes the place of a browser.

import assert from "node:assert/strict";
import test from "node:test";

import {sectorTable} from "./fits.js";

class Element {
  constructor(tag) { Object.assign(this, {tag, className: "", title: "", children: [], attributes: {}, style: ""}); }
  append(...children) { this.children.push(...children); }
  setAttribute(key, value) { this.attributes[key] = value; }
  get text() { return this.children.map((child) => child.text ?? child).join(""); }
}
globalThis.document = {createElement: (tag) => new Element(tag), documentElement: {dataset: {}}};

const sector = (name, more) => (
  {name, waiting_time: 1000, first_lag: 1, last_lag: 100, temperature: 0.01, temperature_error: 0.002, ratio: 1, ratio_error: 0, ...more});
const one = (run, sectors) => ({run, group: "all", index: 0, sectors});
const cells = (list) => sectorTable(list).children[1].children.map((row) => row.children.map((cell) => cell.text));

test("early lags define T, and late lags have their ratio", () => {
  const late = sector("late", {first_lag: 1000, last_lag: 20000, temperature: 2.5e-5, temperature_error: 1e-6, ratio: 0.4, ratio_error: 0.03});
  assert.deepEqual(cells([one("a", [sector("early"), late])]), [
    ["1,000", "1 … 100 early", "0.01 ± 0.002", "1"], ["1,000", "1,000 … 20,000 late", "2.50e−5 ± 1e−6", "0.4 ± 0.03"]]);
});

test("a temperature that is not resolved is a dash, and so is its ratio", () => {
  const late = sector("late", {temperature: null, temperature_error: null, ratio: 0.1});
  const table = sectorTable([one("a", [late])]), [row] = table.children[1].children;
  assert.deepEqual(row.children.slice(2).map((cell) => cell.text), ["–", "–"]);
  assert.match(row.children[2].title, /not resolved/);
});

test("several runs have their names, and one run has none", () => {
  const list = ["a", "b"].map((run) => one(run, [sector("early")]));
  assert.deepEqual(cells(list).map(([name]) => name), ["a", "b"]);
});
