// A level meter of the mixing desk (an anywidget module): the level at the player's position, or of all when it rests.
const FLOOR_DB = -60, TOP_DB = 6;

function share(db) {
  return Math.max(0, Math.min(1, (db - FLOOR_DB) / (TOP_DB - FLOOR_DB)));
}

function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.className = "lincae-meter";
  canvas.width = 20;
  canvas.height = 320;
  canvas.setAttribute("role", "img");
  el.append(canvas);
  let at = { share: 0, playing: false };

  function draw() {
    const envelope = model.get("envelope_db"), pen = canvas.getContext("2d");
    const { width, height } = canvas;
    const rest = model.get("level_db"), peak = model.get("peak_db");
    const index = Math.min(envelope.length - 1, Math.floor(at.share * envelope.length));
    const level = at.playing && envelope.length ? envelope[index] : rest;
    pen.fillStyle = "#1b1f27";
    pen.fillRect(0, 0, width, height);
    const gradient = pen.createLinearGradient(0, height, 0, 0);
    gradient.addColorStop(0, "#0a6f55");
    gradient.addColorStop(share(-12), "#22b38a");
    gradient.addColorStop(share(-6), "#e6b422");
    gradient.addColorStop(share(0), "#e6632a");
    gradient.addColorStop(1, "#d11f1f");
    pen.fillStyle = gradient;
    const top = height * (1 - share(level));
    pen.fillRect(0, top, width, height - top);
    pen.fillStyle = "#1b1f27";
    for (let db = FLOOR_DB; db < TOP_DB; db += 6) pen.fillRect(0, height * (1 - share(db)) - 1, width, 2);
    pen.fillStyle = peak > 0 ? "#ff4d4d" : "#ffffff";
    pen.fillRect(0, height * (1 - share(peak)), width, 3);
    pen.fillStyle = "#8a93a3";
    pen.fillRect(0, height * (1 - share(0)), width, 1);
    const text = Number.isFinite(rest) && rest > -200 ? `${rest.toFixed(1)} dBFS RMS, peak ${peak.toFixed(1)}` : "silent";
    canvas.setAttribute("aria-label", `${model.get("label")}: ${text}`);
    canvas.title = canvas.getAttribute("aria-label");
  }

  function follow({ detail }) {
    if (detail.desk !== model.get("desk")) return;
    at = detail;
    draw();
  }

  document.addEventListener("lincae-time", follow);
  model.on("change", draw);
  draw();
  return () => {
    document.removeEventListener("lincae-time", follow);
    model.off("change", draw);
  };
}

export default { render };
