// Elements and numbers. Whatever a name holds, it becomes text and never markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "list" && key !== "style") element[key] = value;
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// <var>t</var><sub>w</sub> and the like from "t_w", "t_w^μ": the mathematics of this page, nobody's names.
export function math(text) {
  const parts = [];
  for (const [, sign, letters, rest] of text.matchAll(/([_^]?)(?:([A-Za-zα-ωΑ-Ω*ε]+)|([^A-Za-zα-ωΑ-Ω*ε_^]+))/g)) {
    const tag = sign === "_" ? "sub" : sign === "^" ? "sup" : "var";
    parts.push(letters ? h(tag, {}, letters) : rest);
  }
  return parts;
}

// The same for plotly, which has a markup of its own: what is not meant as such is spelled out.
export const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

export const integer = (number) => Math.round(number).toLocaleString("en-US");
export const short = (number, digits = 3) => (number === null || number === undefined ? "–" : Number(number.toPrecision(digits)).toString());
export const big = (number) => (number === null || number === undefined ? "–" : Number(number.toPrecision(3)).toLocaleString("en-US"));
export const fixed = (number, digits = 3) => (number === null || number === undefined ? "–" : number.toFixed(digits).replace("-", "−"));

export function debounced(run, wait) {
  let timer = null;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), wait);
  };
}
