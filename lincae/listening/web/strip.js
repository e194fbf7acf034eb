// A channel strip: fader and meter, and for a stem pan, mute, solo and polarity.
const HIGHEST_DB = 12;
const STEP_DB = 0.5, DETENT_DB = 0.8;
const TRAVEL = 1000; // positions of the fader
const KNEE_DB = -24, KNEE = 0.25; // below the knee a quarter of the travel
const SCALE_DB = [12, 6, 0, -6, -12, -24, OFF_DB];
const FLOOR_DB = -60, TOP_DB = 6; // of the meter
const READ_MS = 100; // between two numbers of the meter, which nobody reads faster

function positionOf(db) {
  const share = db >= KNEE_DB
    ? KNEE + (1 - KNEE) * (db - KNEE_DB) / (HIGHEST_DB - KNEE_DB)
    : KNEE * (db - OFF_DB) / (KNEE_DB - OFF_DB);
  return Math.round(TRAVEL * share);
}

function levelAt(position) {
  const share = position / TRAVEL;
  const db = share >= KNEE
    ? KNEE_DB + (HIGHEST_DB - KNEE_DB) * (share - KNEE) / (1 - KNEE)
    : OFF_DB + (KNEE_DB - OFF_DB) * share / KNEE;
  return Math.abs(db) < DETENT_DB ? 0 : Math.round(db / STEP_DB) * STEP_DB;
}

function meterShare(db) {
  return Math.max(0, Math.min(1, (db - FLOOR_DB) / (TOP_DB - FLOOR_DB)));
}

// `moved` is called with what changes of the strip's settings. To be shown: `settings`, whether it can be panned, `levels`
// (null: none yet), and where in time the player is.
function strip(name, colour, isStem, moved) {
  let settings = {}, levels = null, at = { share: 0, playing: false };
  const shownFader = () => settings.gain_db ?? OFF_DB;
  const moveTo = (db) => moved({ gain_db: db <= OFF_DB ? null : Math.min(HIGHEST_DB, db) });

  // ------------------------------------------------------------ fader
  const fader = element("input", { type: "range", class: "lc-slider", min: 0, max: TRAVEL, "aria-label": `${name}: gain`, "aria-orientation": "vertical" });
  const text = element("input", { type: "text", class: "lc-db", "aria-label": `${name}: gain in dB, -inf for off` });
  const scale = element("div", { class: "lc-scale", "aria-hidden": "true" }, ...SCALE_DB.map((db) => {
    const mark = element("span", { class: db === 0 ? "lc-unity" : "" }, db === OFF_DB ? "−∞" : `${db > 0 ? "+" : ""}${db}`.replace("-", "−"));
    mark.style.setProperty("--at", positionOf(db) / TRAVEL);
    return mark;
  }));
  fader.title = "Double click: 0 dB. Wheel and arrow keys: half a dB, with Shift or Page keys 3 dB.";
  fader.oninput = () => moveTo(levelAt(Number(fader.value)));
  fader.ondblclick = () => moveTo(0);
  fader.onkeydown = (event) => {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 6, PageDown: -6 };
    const end = { Home: OFF_DB, End: HIGHEST_DB }[event.key];
    if (!(event.key in steps) && end === undefined) return;
    event.preventDefault();
    moveTo(end ?? shownFader() + steps[event.key] * STEP_DB * (event.shiftKey ? 6 : 1));
  };
  fader.addEventListener("wheel", (event) => {
    event.preventDefault();
    moveTo(shownFader() - Math.sign(event.deltaY || event.deltaX) * STEP_DB);
  }, { passive: false });
  text.onchange = () => {
    const typed = text.value.trim().replace("−", "-").replace(/ *dB$/i, "");
    const db = /^-(inf|∞)$/i.test(typed) ? OFF_DB : typed === "" ? NaN : Number(typed);
    if (Number.isFinite(db)) moveTo(db);
    showFader();
  };
  function showFader() {
    const db = shownFader();
    fader.value = positionOf(db);
    text.value = db <= OFF_DB ? "−∞" : decibels(db);
    fader.setAttribute("aria-valuetext", db <= OFF_DB ? "off" : `${text.value} dB`);
  }

  // ------------------------------------------------------------ meter
  const canvas = element("canvas", { class: "lincae-meter", width: 20, height: 320, "aria-hidden": "true" });
  const level = element("dd", { class: "lc-level" }), peak = element("dd", { class: "lc-peak" });
  const pen = canvas.getContext("2d"), { width, height } = canvas;
  const gradient = pen.createLinearGradient(0, height, 0, 0);
  for (const [db, colour] of [[FLOOR_DB, "#0a6f55"], [-12, "#22b38a"], [-6, "#e6b422"], [0, "#e6632a"], [TOP_DB, "#d11f1f"]]) {
    gradient.addColorStop(meterShare(db), colour);
  }
  let drawn = "", readAt = 0;
  function draw() {
    const { envelope_db = [], level_db = -300, peak_db = -300 } = levels ?? {};
    const index = Math.min(envelope_db.length - 1, Math.floor(at.share * envelope_db.length));
    const now = at.playing && envelope_db.length ? envelope_db[index] : level_db;
    if (drawn !== `${now} ${peak_db}`) paint(now, peak_db);
    drawn = `${now} ${peak_db}`;
    if (at.playing && performance.now() < readAt + READ_MS) return;
    readAt = performance.now();
    write(level, decibels(now));
    write(peak, decibels(peak_db));
    peak.classList.toggle("lc-over", peak_db > 0);
  }
  function paint(now, peak_db) {
    pen.fillStyle = "#1b1f27";
    pen.fillRect(0, 0, width, height);
    pen.fillStyle = gradient;
    pen.fillRect(0, height * (1 - meterShare(now)), width, height * meterShare(now));
    pen.fillStyle = "#1b1f27";
    for (let db = FLOOR_DB; db < TOP_DB; db += 6) pen.fillRect(0, height * (1 - meterShare(db)) - 1, width, 2);
    pen.fillStyle = peak_db > 0 ? "#ff4d4d" : "#ffffff";
    pen.fillRect(0, height * (1 - meterShare(peak_db)), width, 3);
  }

  // ------------------------------------------------------------ pan and switches
  const above = element("div", { class: "lc-above" }), buttons = {};
  const pan = element("input", { type: "range", class: "lc-pan", min: -1, max: 1, step: 0.05, "aria-label": `${name}: pan` });
  if (isStem) {
    pan.title = "Pan, left to right. Double click: centre.";
    pan.oninput = () => moved({ pan: Math.round(100 * Number(pan.value)) / 100 });
    pan.ondblclick = () => moved({ pan: 0 });
    const toggles = element("div", { class: "lc-toggles" });
    for (const [setting, letter, does] of [["mute", "M", "mute"], ["solo", "S", "solo"], ["inverted", "ø", "invert the polarity"]]) {
      const button = element("button", { type: "button", class: `lc-${setting}`, "aria-label": `${name}: ${does}`, title: does }, letter);
      button.onclick = () => moved({ [setting]: !settings[setting] });
      buttons[setting] = button;
      toggles.append(button);
    }
    above.append(pan, toggles);
  }

  const node = element("div", { class: isStem ? "lc-strip" : "lc-strip lc-master", role: "group", "aria-label": name },
    element("div", { class: "lc-name", title: name }, name), above,
    element("div", { class: "lc-fader" }, scale, fader, canvas),
    element("div", { class: "lc-gain" }, text, element("span", { "aria-hidden": "true" }, " dB")),
    element("dl", { class: "lc-read", title: "dB re full scale" }, element("dt", {}, "RMS"), level, element("dt", {}, "peak"), peak));
  node.style.setProperty("--stem", colour);
  return {
    node,
    show(now, canPan) {
      settings = now;
      showFader();
      const place = settings.pan ?? 0;
      pan.value = place;
      pan.disabled = !canPan;
      pan.setAttribute("aria-valuetext", place ? `${Math.round(100 * Math.abs(place))} % ${place < 0 ? "left" : "right"}` : "centre");
      for (const [setting, button] of Object.entries(buttons)) button.setAttribute("aria-pressed", settings[setting]);
    },
    meter(now) {
      levels = now;
      node.classList.toggle("lc-off", levels !== null && levels.peak_db <= SILENT_DB);
      draw();
    },
    follow(now) {
      at = now;
      draw();
    },
  };
}
