// The entry of the page: TensorBoard imports it in a frame of its own and calls render().

import {start} from "./page.js";

const plotly = () => new Promise((resolve) => {
  const script = document.createElement("script");
  script.src = new URL("./plotly.min.js", import.meta.url).href;
  script.onload = () => resolve(true);
  script.onerror = () => resolve(false);
  document.head.append(script);
});

const stylesheet = () => new Promise((resolve) => {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./style.css", import.meta.url).href;
  link.onload = link.onerror = resolve;
  document.head.append(link);
});

export async function render() {
  document.documentElement.lang = "en";
  document.title = "Glassy";
  const viewport = document.createElement("meta");
  viewport.name = "viewport";
  viewport.content = "width=device-width, initial-scale=1";
  document.head.append(viewport);
  const [, charts] = await Promise.all([stylesheet(), plotly()]);
  await start(document.body, charts);
}
