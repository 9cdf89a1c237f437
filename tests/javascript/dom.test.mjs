// Texts and numbers. A small document takes the place of a browser.

import assert from "node:assert/strict";
import test from "node:test";

import {big, escaped, explain, fixed, h, integer, markup, math, short} from "./dom.js";

class Element {
  constructor(tag) { Object.assign(this, {tag, className: "", title: "", children: [], listeners: {}, attributes: {}}); }
  append(...children) { this.children.push(...children); }
  setAttribute(key, value) { this.attributes[key] = value; }
  addEventListener(key, value) { this.listeners[key] = value; }
}
globalThis.document = {createElement: (tag) => new Element(tag)};

test("a name becomes text, and never markup", () => {
  const name = "<img src=x onerror=alert(1)>", element = h("b", {className: "name", "data-key": name, onclick: () => 1}, name, null);
  assert.deepEqual(element.children, [name]);
  assert.equal(element.className, "name");
  assert.equal(element.attributes["data-key"], name);
  assert.equal(element.listeners.click(), 1);
  assert.equal(escaped(name), "&lt;img src=x onerror=alert(1)&gt;");
});

test("symbols have indices, powers and meanings", () => {
  explain({t_w: "waiting time"});
  const [letter, index] = math("t_w");
  assert.deepEqual([letter.tag, letter.children, letter.title, index.tag, index.children], ["var", ["t"], "waiting time", "sub", ["w"]]);
  assert.equal(markup("t / t_w^μ"), "<i>t</i> / <i>t</i><sub>w</sub><sup>μ</sup>");
});

test("numbers have a true minus, and a missing number is a dash", () => {
  assert.deepEqual([fixed(-0.1234), fixed(-0.0001), fixed(null)], ["−0.123", "0.000", "–"]);
  assert.deepEqual([short(12345.6), integer(12345.6), big(123456)], ["12300", "12,346", "123,000"]);
});
