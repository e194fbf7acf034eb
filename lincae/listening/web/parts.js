// The mixing desk is one anywidget module: parts.js, strip.js, player.js and desk.js, joined in this order.
// Here is what the other three share.
const OFF_DB = -60; // the lowest position of a fader
const SILENT_DB = -200; // what is below is silence

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A text that is as it was is not laid out again: while sound plays, each picture would cost what decoding needs.
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
}

function decibels(db) {
  return db === null || db <= SILENT_DB ? "−∞" : db.toFixed(1).replace(/^-0\.0$/, "0.0").replace("-", "−");
}
