// Charts and numbers as files.

const nameOf = (title) => `glassy_${title.toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_|_$/g, "")}`;

function save(name, address) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}

export async function savePicture(element, title, format) {
  const {width, height} = element.getBoundingClientRect();
  const scale = format === "png" ? 2 : 1;
  save(`${nameOf(title)}.${format}`, await window.Plotly.toImage(element, {format, width: Math.round(width), height: Math.round(height), scale}));
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
  const address = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  save(`${nameOf(title)}.csv`, address);
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
