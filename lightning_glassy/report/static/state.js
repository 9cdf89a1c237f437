// The choices of the user, and their form in the address.

const TEXT = {observable: "msd", x: "lag", layout: "auto", colour: "auto"};
const ALLOWED = {
  x: ["lag", "plain", "effective"], layout: ["auto", "side", "over", "together"], colour: ["auto", "time", "run"],
};
const NUMBERS = ["mu", "threshold", "eps"];

let usual = {};

// Set the choice that a report shows first.
export const setUsual = (choice) => { usual = choice; };

export const initial = () => (
  {...TEXT, mu: null, threshold: null, eps: null, runs: null, groups: ["all"], hidden: [], ...usual});

// The state can always be shown, for any address: unknown parts of the address are left out.
export function fromAddress(values, observables) {
  const state = initial(), allowed = {...ALLOWED, observable: observables};
  for (const key of Object.keys(TEXT)) if (allowed[key].includes(values[key])) state[key] = values[key];
  for (const key of NUMBERS) {
    const number = Number(values[key]);
    if (values[key] && Number.isFinite(number) && (key === "mu" || number > 0)) state[key] = number;
  }
  const list = (key, good) => {
    try {
      const found = JSON.parse(values[key] ?? "null");
      return Array.isArray(found) && found.every(good) ? found : null;
    } catch {
      return null;
    }
  };
  state.runs = list("runs", (one) => typeof one === "string");
  state.groups = list("groups", (one) => typeof one === "string") ?? state.groups;
  state.hidden = list("hidden", Number.isInteger) ?? state.hidden;
  return state;
}

export function toAddress(state) {
  const values = {}, first = initial();
  for (const [key, value] of Object.entries(state)) {
    const text = Array.isArray(value) ? JSON.stringify(value) : value;
    const usually = Array.isArray(first[key]) ? JSON.stringify(first[key]) : first[key];
    if (text !== null && text !== usually) values[key] = text;
  }
  return values;
}
