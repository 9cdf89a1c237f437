// Charts and numbers as files.

const nameOf = (title) => `glassy_${title.toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_|_$/g, "")}`;

function save(name, content, type) {
  const address = URL.createObjectURL(new Blob([content], {type}));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export async function savePicture(element, title, format) {
  const {width, height} = element.getBoundingClientRect();
  const scale = format === "png" ? 2 : 1;
  const address = await window.Plotly.toImage(element, {format, width: Math.round(width), height: Math.round(height), scale});
  const [head, body] = [address.slice(0, address.indexOf(",")), address.slice(address.indexOf(",") + 1)];
  // As a file and not as an address: those have a largest length.
  const content = head.endsWith(";base64") ? Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0)) : decodeURIComponent(body);
  save(`${nameOf(title)}.${format}`, content, format === "png" ? "image/png" : "image/svg+xml");
}

// A cell that begins like a formula would be one to a spreadsheet.
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

export function saveTable(title, columns, rows) {
  const text = [columns, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
  save(`${nameOf(title)}.csv`, text, "text/csv");
}
