// Elements and numbers. Whatever a name holds, it becomes text and never markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "style") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

export const swatch = (colour) => h("i", {className: "swatch", style: `background:${colour}`});

// Radio buttons in a row: `options` are pairs of a value and what is written.
export function segments(name, options, value, pick, title) {
  return h("div", {className: "segments", role: "radiogroup", ariaLabel: title}, options.map(([key, text]) => h("label", {},
    h("input", {type: "radio", name, value: key, checked: key === value, "data-key": `${name} ${key}`, onchange: () => pick(key)}),
    h("span", {}, text))));
}

// <var>t</var><sub>w</sub> from "t_w": the mathematics of this page, nobody's names.
export function math(text) {
  const parts = [];
  for (const [, sign, letters, rest] of text.matchAll(/([_^]?)(?:([A-Za-zα-ωΑ-Ω*ε]+)|([^A-Za-zα-ωΑ-Ω*ε_^]+))/g)) {
    const tag = sign === "_" ? "sub" : sign === "^" ? "sup" : "var";
    parts.push(letters ? h(tag, {}, letters) : rest);
  }
  return parts;
}

// For plotly, which has a markup of its own: what is not meant as such is spelled out.
export const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const told = (number, text) => (number === null || number === undefined ? "–" : text(number).replace("-", "−"));
export const integer = (number) => Math.round(number).toLocaleString("en-US");
export const short = (number, digits = 3) => told(number, (x) => String(Number(x.toPrecision(digits))));
export const big = (number) => told(number, (x) => Number(x.toPrecision(3)).toLocaleString("en-US"));
export const fixed = (number, digits = 3) => told(number, (x) => x.toFixed(digits));

export function debounced(run, wait) {
  let timer = null;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), wait);
  };
}
