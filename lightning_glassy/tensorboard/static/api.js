// Questions to the plugin. Addresses are relative, so that any prefix of TensorBoard's path will do.

export async function ask(path, parameters = {}) {
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

// Of questions that follow each other faster than they are answered only the last one counts; one is under way at a time.
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
