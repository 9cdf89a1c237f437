// The questions of the page. The plugin of TensorBoard answers them. A report has the answers inside.

const MISSING = "not in this file: lightning-glassy report with this --observable and --group computes it";

let inside = null;

// Take the answers from a report, and ask no server.
export const answerFrom = (report) => { inside = report; };

export const isReport = () => inside !== null;

function answerInside(path, {run, group, observable = null, eps = null}) {
  if (path === "observables") return {observables: inside.observables, symbols: inside.symbols};
  if (Object.hasOwn(inside, path)) return {[path]: inside[path]};
  const isAsked = (one, name) => (
    one.path === path && (one.group ?? null) === name && (one.observable ?? null) === observable && (one.eps ?? null) === eps);
  const answer = (name) => [...inside.answers, ...inside.more].find((one) => isAsked(one, name))?.answer ?? {error: MISSING};
  return {series: [run].flat().flatMap((one) => [group ?? null].flat().map((name) => ({run: one, group: name, ...answer(name)})))};
}

// Addresses are relative, so that they work with any prefix of TensorBoard's path.
export async function ask(path, parameters = {}) {
  if (inside) return answerInside(path, parameters);
  const address = new URL(`./${path}`, import.meta.url);
  for (const [key, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined) address.searchParams.append(key, one);
    }
  }
  const response = await fetch(address, {headers: {accept: "application/json"}});
  let content;
  try {
    content = await response.json();
  } catch {
    throw new Error(`TensorBoard answered ${response.status} without an explanation`);
  }
  if (!response.ok) throw new Error(content.error || `TensorBoard answered ${response.status}`);
  return content;
}

// Run an asynchronous function once at a time. If several calls come during a run, only the last call is made.
export function latest(run) {
  let busy = false, next = null;
  return async function go(...values) {
    next = values;
    if (busy) return;
    busy = true;
    try {
      while (next) {
        const now = next;
        next = null;
        await run(...now);
      }
    } finally {
      busy = false;
    }
  };
}
