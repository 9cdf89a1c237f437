// The address holds the view, and no address can break the page.

import assert from "node:assert/strict";
import test from "node:test";

import {fromAddress, initial, setUsual, toAddress} from "./state.js";

const OBSERVABLES = ["msd", "overlap"];

test("the first view needs no address", () => {
  assert.deepEqual(toAddress(initial()), {});
});

test("a view comes back from its address", () => {
  const state = {...initial(), observable: "overlap", x: "plain", mu: 0, eps: 1e-3, runs: ["a", "b/c"], groups: ["all", "net.0"], hidden: [3]};
  const address = new URLSearchParams(toAddress(state)).toString();
  assert.deepEqual(fromAddress(Object.fromEntries(new URLSearchParams(address)), OBSERVABLES), state);
});

test("unknown parts of an address are left out", () => {
  const odd = {observable: "<script>", x: "constructor", mu: "NaN", threshold: "-1", eps: "0", runs: "[1]", groups: "{", hidden: "[0.5]", extra: "x"};
  assert.deepEqual(fromAddress(odd, OBSERVABLES), initial());
});

test("a report can start with another view", () => {
  setUsual({observable: "overlap"});
  assert.equal(initial().observable, "overlap");
  assert.deepEqual(toAddress(initial()), {});
  setUsual({});
});
