// Colours and axes.

const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137],
                 [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];
const RUNS = {
  light: ["#2f6db3", "#d3731c", "#2b8f71", "#ab4a95", "#8b6a2b", "#3c9bb8", "#bb4540", "#6c59ad", "#6f7d24", "#5d6570"],
  dark: ["#6ea8e8", "#f0a357", "#5cc5a4", "#d98ac6", "#cdaa66", "#74cbe6", "#ea8580", "#a897e6", "#b3c259", "#a8b0ba"],
};

export const theme = () => document.documentElement.dataset.theme || "light";

// The waiting time on viridis, as in the figures of the package. The end that is invisible on the background is cut
// off.
export function timeColour(waitingTime, last) {
  const place = Math.log(Math.max(waitingTime, 1)) / Math.max(Math.log(Math.max(last, 2)), 1e-9);
  const [low, high] = theme() === "dark" ? [0.22, 1] : [0, 0.86];
  const at = (low + (high - low) * Math.min(place, 1)) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(at), VIRIDIS.length - 2), part = at - i;
  return `rgb(${VIRIDIS[i].map((c, k) => Math.round(c + (VIRIDIS[i + 1][k] - c) * part)).join(",")})`;
}

export function runColour(index) {
  const list = RUNS[theme()];
  if (index < list.length) return list[index];
  return `hsl(${Math.round((index * 137.5) % 360)}, 45%, ${theme() === "dark" ? 68 : 42}%)`;
}

// The same colour, but transparent.
export function faint(colour) {
  const parts = colour.match(/^#(..)(..)(..)$/)?.slice(1).map((part) => parseInt(part, 16));
  return (parts ? `rgb(${parts.join(",")})` : colour).replace(/^(rgb|hsl)\((.*)\)$/, "$1a($2,0.16)");
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function axis(title, log, more = {}) {
  const line = css("--axis"), minor = {minor: {ticks: "outside", ticklen: 2, tickcolor: line}, minorloglabels: "none"};
  return {
    title: {text: title, standoff: 8}, type: log ? "log" : "linear", showline: true, ticks: "outside", ticklen: 4,
    exponentformat: "power", automargin: true, gridcolor: css("--grid"), linecolor: line, tickcolor: line,
    zerolinecolor: line, ...(log ? minor : {zeroline: true, nticks: 6}), ...more,
  };
}

// More labels for a logarithmic axis of less than two decades: 1, 2 and 5 times a power of ten. Below a third of a
// decade, a few round numbers.
export function labelled(figure, traces) {
  for (const [name, one] of Object.entries(figure)) {
    if (!/^[xy]axis/.test(name) || one.type !== "log") continue;
    const id = name.replace("axis", ""), key = id[0];
    let low = Infinity, high = 0;
    for (const trace of traces) {
      if (!one.matches && (trace[`${key}axis`] ?? key) !== id) continue;
      for (const value of trace[key] ?? []) if (value > 0) { low = Math.min(low, value); high = Math.max(high, value); }
    }
    const decades = Math.log10(high / low);
    if (!(decades < 2)) continue;
    if (!(decades > 0)) Object.assign(one, {tickmode: "array", tickvals: [low], ticktext: [String(Number(low.toPrecision(4)))]});
    else if (decades > 0.35) one.dtick = "D2";
    else {
      one.tickmode = "array";
      one.tickvals = few(low, high);
      one.ticktext = one.tickvals.map((value) => String(Number(value.toPrecision(3))));
    }
  }
}

// A few round numbers around a narrow range.
function few(low, high) {
  const width = high - low || low, power = 10 ** Math.floor(Math.log10(width / 3));
  const step = [1, 2, 5, 10].map((k) => k * power).find((size) => width / size <= 5) ?? width;
  const first = Math.floor(low / step), values = [];
  for (let k = first; k * step <= high + step; k += 1) if (k > 0) values.push(k * step);
  return values;
}

export function layout(more) {
  return {
    paper_bgcolor: css("--card"), plot_bgcolor: css("--card"),
    font: {family: "Roboto, system-ui, -apple-system, 'Segoe UI', sans-serif", size: 12, color: css("--text")},
    margin: {l: 64, r: 16, t: 12, b: 48}, hovermode: "closest", hoverdistance: 24, showlegend: false, dragmode: "zoom",
    hoverlabel: {bgcolor: css("--raised"), bordercolor: css("--border"), font: {color: css("--text"), size: 12}, align: "left"},
    ...more,
  };
}

export const accent = () => css("--accent");
export const muted = () => css("--muted");
