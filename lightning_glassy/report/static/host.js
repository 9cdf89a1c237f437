// The surroundings of the page: TensorBoard's theme, its address bar and its Reload button.

// The page is a frame of the same origin. If it is opened alone, it is its own host.
function host() {
  try {
    return window.parent.document ? window.parent : window;
  } catch {
    return window;
  }
}

export function watchTheme(tell) {
  const outer = host(), system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (outer === window ? system.matches : outer.document.body.classList.contains("dark-mode"));
  const apply = () => {
    const theme = dark() ? "dark" : "light";
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    tell();
  };
  document.documentElement.dataset.theme = dark() ? "dark" : "light";
  if (outer === window) system.addEventListener("change", apply);
  else new MutationObserver(apply).observe(outer.document.body, {attributes: true, attributeFilter: ["class"]});
}

// TensorBoard keeps unknown entries in its hash: #glassy&p.glassy.x=lag. The prefix is its convention for plugins.
const PREFIX = "p.glassy.";

function parts() {
  const [tab, ...rest] = host().location.hash.replace(/^#/, "").split("&");
  return {tab, rest: rest.filter((part) => part.includes("="))};
}

export function readAddress() {
  const found = {};
  for (const part of parts().rest) {
    const [key, value] = [part.slice(0, part.indexOf("=")), part.slice(part.indexOf("=") + 1)];
    try {
      const name = decodeURIComponent(key);
      if (name.startsWith(PREFIX)) found[name.slice(PREFIX.length)] = decodeURIComponent(value);
    } catch {
      // Not well-formed: written by another plugin, or mistyped.
    }
  }
  return found;
}

export function writeAddress(values) {
  const {tab, rest} = parts(), outer = host();
  // Another tab is visible, so the address belongs to it.
  if (outer !== window && tab !== "glassy") return;
  const others = rest.filter((part) => !part.startsWith(PREFIX));
  const own = Object.entries(values).map(([key, value]) => `${PREFIX}${key}=${encodeURIComponent(value)}`);
  const address = new URL(outer.location.href);
  address.hash = [tab, ...others, ...own].join("&");
  outer.history.replaceState(outer.history.state, "", address);
}

export function watchAddress(tell) {
  host().addEventListener("hashchange", tell);
}

// TensorBoard's message channel to dynamic plugins. It waits for an answer to each message.
export function watchReload(tell) {
  if (window.parent === window) return;
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    let message;
    try {
      message = JSON.parse(event.data);
    } catch {
      return;
    }
    if (message.isReply) return;
    if (message.type === "experimental.DataReloaded") tell();
    const answer = {type: message.type, id: message.id, payload: null, error: null, isReply: true};
    channel.port1.postMessage(JSON.stringify(answer));
  };
  window.parent.postMessage("experimental.bootstrap", window.location.origin, [channel.port2]);
}
