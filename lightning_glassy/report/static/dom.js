// Elements and numbers. A name always becomes text, and never markup.

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

// Radio buttons in a row: `options` are pairs of a value and its label.
export function segments(name, options, value, pick, title) {
  return h("div", {className: "segments", role: "radiogroup", ariaLabel: title}, options.map(([key, text]) => h("label", {},
    h("input", {type: "radio", name, value: key, checked: key === value, "data-key": `${name} ${key}`, onchange: () => pick(key)}),
    h("span", {}, text))));
}

// Symbols such as "Q_ε(t_w, t_w+t)": letters are in italics. The part after an underscore or a caret is lower or
// higher. The parts are pairs of a tag, or null, and a text.
function symbols(text) {
  const parts = [];
  for (const [, sign, raised, letters, rest] of text.matchAll(/([_^])([A-Za-zα-ωΑ-Ω0-9]+)|([A-Za-zα-ωΑ-Ω*]+)|([^A-Za-zα-ωΑ-Ω*_^]+)/g)) {
    if (sign) parts.push([sign === "_" ? "sub" : "sup", raised]);
    else parts.push(letters && letters !== "ln" ? ["i", letters] : [null, letters ?? rest]);
  }
  return parts;
}

// Meaning of each symbol, from the server.
let meanings = {};
export const explain = (symbolsOfServer) => { meanings = symbolsOfServer; };

// <var>t</var><sub>w</sub> from "t_w": only for the symbols of this page, never for names of users. The tooltip
// explains a symbol.
export function math(text) {
  const parts = symbols(text);
  let title = "";
  return parts.map(([tag, part], i) => {
    if (!tag) return part;
    if (tag === "i") {
      const [next, index] = parts[i + 1] ?? [];
      const name = next === "sub" && Object.hasOwn(meanings, `${part}_${index}`) ? `${part}_${index}` : part.replace("*", "");
      title = Object.hasOwn(meanings, name) ? meanings[name] : "";
    }
    return h(tag === "i" ? "var" : tag, title ? {title} : {}, part);
  });
}

// All symbols with their meanings, in a list that can be unfolded.
export const glossary = () => h("details", {className: "glossary"}, h("summary", {}, "What the symbols mean"),
  h("dl", {}, Object.entries(meanings).flatMap(([symbol, meaning]) => [h("dt", {}, ...math(symbol)), h("dd", {}, meaning)])));

// Escape a text for plotly, which has its own markup.
export const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// Symbols in plotly's markup.
export const markup = (text) => symbols(text).map(([tag, part]) => (tag ? `<${tag}>${part}</${tag}>` : escaped(part))).join("");

const told = (number, text) => (number === null || number === undefined ? "–" : text(number).replace("-", "−"));
const GROUPED = new Intl.NumberFormat("en-US"); // many times faster than toLocaleString
export const integer = (number) => GROUPED.format(Math.round(number));
export const short = (number, digits = 3) => told(number, (x) => String(Number(x.toPrecision(digits))));
export const big = (number) => told(number, (x) => Number(x.toPrecision(3)).toLocaleString("en-US"));
export const fixed = (number, digits = 3) => told(number, (x) => (Number(x.toFixed(digits)) || 0).toFixed(digits)); // no -0

export function debounced(run, wait) {
  let timer = null;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), wait);
  };
}
