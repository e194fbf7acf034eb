"use strict";
// One sound plays at a time. All of a track have one length and one clock, so that a switch keeps the position.
const { tracks, columns: COLUMNS, truth: TRUTH, loud_lu: LOUD_LU, files: FILES } = JSON.parse(document.getElementById("data").textContent);
const FADE_S = 0.01, PATIENCE_MS = 4000;
const $ = (id) => document.getElementById(id);

const buffers = new Map(); // tile -> Promise of its AudioBuffer
let context = null, output = null, analyser = null;
let track = tracks[0], rowIndex = 0, column = TRUTH;
let voice = null; // what sounds: {source, gain}
let startedAt = 0, offset = 0, playing = false, looping = true, wanted = 0;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function decibels(value) {
  return value === null || value === undefined ? "–" : `${value.toFixed(1).replace(/^-0\.0$/, "0.0").replace("-", "−")} dB`;
}

// ---------------------------------------------------------------- what rows are

const TITLES = {
  mix: ["Autoencoded mix", "Dec(Enc(mix))"],
  sum: ["Latent addition", (stems) => `Dec(${stems.map((name) => `Enc(${name})`).join(" + ")})`],
  "gain -1": ["Polarity inverted", "Dec(−1 · Enc(mix))"],
  mono: ["Mono", "Dec(Enc(mono)), mono the mean of left and right"],
  stereo: ["Left and right", "Dec(Enc(left)) and Dec(Enc(right))"],
  "oracle c": ["Re-Encoder, the true c", "Dec(M(Enc(mono), c)), c of the true left and right"],
  "random c": ["Re-Encoder, a random c", "Dec(M(Enc(mono), c)), c drawn from the prior"],
};
const STEREO = "A Re-Encoder module M turns the latent of a mono sound into latents of left and right; between encoder and decoder no "
  + "waveform is touched. A condition c of a few numbers tells it where to put the sounds: the true c is computed from the latents of the "
  + "true left and right, a random one knows nothing of them. How far that works, and how far not, notebook 10 measures. Pictures: left "
  + "above, right below.";

// Title, formula and block of the row of a track; names are those of demo.csv.
function described(row, rows) {
  const stems = rows.map(({ name }) => name.match(/^separated (.*)/s)?.[1]).filter((stem) => stem !== undefined);
  const [, kind, of] = row.name.match(/^(gain|separated) (.*)/s) ?? [];
  const number = of?.replace("-", "−");
  const [title, formula] = TITLES[row.name] ?? (kind === "gain"
    ? [`Scaled by ${number}`, `Dec(${number} · Enc(mix))`]
    : [`Separated ${of}`, `Dec(Enc(mix) − Enc(mix without ${of}))`]);
  const block = "balance_db" in row.tiles[TRUTH].numbers ? "Mono to stereo" : kind === "separated" ? "Stems by subtraction" : "The mixture, scaled and summed";
  return { title, formula: formula instanceof Function ? formula(stems) : formula, block };
}

// Rows as on the paper's page come first: the mix, a sum, a multiple, the stems; other multiples are behind a fold.
for (const each of tracks) {
  each.columns = Object.keys(each.rows[0].tiles);
  each.about = "balance_db" in each.rows[0].tiles[TRUTH].numbers ? STEREO : "";
  for (const row of each.rows) Object.assign(row, described(row, each.rows));
  const multiples = each.rows.filter(({ name }) => name.startsWith("gain ")).slice(1);
  for (const row of multiples) row.folded = true;
  each.rows = [...each.rows.filter((row) => !row.folded), ...multiples];
}

function current() {
  return track.rows[rowIndex].tiles[column];
}

// ---------------------------------------------------------------- sound

// Sound starts here: a browser may have none, or refuse it.
async function listen() {
  if (!context) {
    try {
      context = new AudioContext();
    } catch (error) {
      throw new Error(`This browser gives no sound output (${error.message}). Try another browser, or another device.`);
    }
    output = context.createGain();
    analyser = context.createAnalyser();
    output.connect(analyser).connect(context.destination);
    volume();
  }
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE_MS, "late"));
  if (context.state !== "running" && await Promise.race([context.resume(), late]) === "late" && context.state !== "running") {
    throw new Error("The browser does not start its sound output. Is a loudspeaker or headphone connected, and sound allowed for this page? Then press play again.");
  }
}

async function fetched(tile, kind) {
  if (!FILES) return Uint8Array.from(atob(tile.audio), (c) => c.charCodeAt(0)).buffer;
  let answer;
  try {
    answer = await fetch(`${tile.audio}.${kind}`);
  } catch {
    answer = { ok: false, status: "no answer" };
  }
  if (answer.ok) return answer.arrayBuffer();
  const disk = location.protocol === "file:" ? " This page has its sounds in files, which browsers do not load from disk: open demo.html beside it, or serve the folder." : " Reload the page, or try again later.";
  throw new Error(`${tile.audio}.${kind} could not be loaded (${answer.status}).${disk}`);
}

async function decode(tile) {
  const opus = await fetched(tile, "ogg");
  try {
    return await context.decodeAudioData(opus);
  } catch { // Safari before 18.4 has no Ogg Opus
    if (!FILES) throw new Error("This browser cannot decode the sound (Ogg Opus). Use a current Firefox, Chrome or Edge, or Safari 18.4 and later; a page in a folder of its own also has FLAC.");
  }
  const flac = await fetched(tile, "flac");
  try {
    return await context.decodeAudioData(flac);
  } catch (error) {
    throw new Error(`This browser can decode the sound neither as Opus nor as FLAC (${error.message}). Try another browser.`);
  }
}

function buffer(tile) {
  if (!buffers.has(tile)) {
    const decoding = decode(tile);
    decoding.catch(() => buffers.delete(tile)); // it is tried again
    buffers.set(tile, decoding);
  }
  return buffers.get(tile);
}

function position(now = context?.currentTime) {
  if (!playing) return offset;
  const ran = offset + Math.max(0, now - startedAt);
  return looping ? ran % track.seconds : Math.min(ran, track.seconds);
}

function fadeOut(old) {
  if (!old) return;
  const now = context.currentTime;
  old.source.onended = null;
  old.gain.gain.cancelScheduledValues(now);
  old.gain.gain.setTargetAtTime(0, now, FADE_S / 3);
  old.source.stop(now + 4 * FADE_S);
}

// Start what is chosen at `at` seconds (default: where the last one is), and fade out what sounded.
async function begin(at = null) {
  const request = ++wanted;
  let decoded;
  try {
    await listen();
    decoded = await buffer(current());
  } catch (error) {
    if (request === wanted) {
      pause();
      $("said").textContent = error.message;
    }
    return;
  }
  $("said").textContent = "";
  if (request !== wanted) return;
  let source, gain, when, from;
  // A sound that starts late lags behind the clock: on a busy machine it is started again, with more time to do so.
  for (let lead = 0.005; lead < 1; lead *= 2) {
    source = context.createBufferSource();
    gain = context.createGain();
    source.buffer = decoded;
    source.loop = $("loop").checked;
    source.loopEnd = track.seconds; // the same for all, whatever a decoder adds
    when = context.currentTime + lead;
    from = (at ?? position(when)) % track.seconds;
    gain.gain.setValueAtTime(0, when);
    gain.gain.linearRampToValueAtTime(1, when + FADE_S);
    source.connect(gain).connect(output);
    source.start(when, from);
    if (context.currentTime < when) break;
    gain.disconnect();
    source.stop();
  }
  source.onended = () => { if (voice?.source === source) stop(); };
  fadeOut(voice);
  voice = { source, gain };
  offset = from;
  startedAt = when;
  looping = source.loop;
  playing = true;
  show();
  requestAnimationFrame(follow);
}

function pause() {
  wanted++;
  offset = position();
  playing = false;
  fadeOut(voice);
  voice = null;
  show();
}

function stop() {
  pause();
  offset = 0;
  show();
}

function toggle() {
  if (playing) pause(); else begin(offset);
}

function seek(seconds) {
  const target = Math.max(0, Math.min(seconds, track.seconds - 0.01));
  if (playing) begin(target); else { offset = target; show(); }
}

function choose(row, source, andPlay = false) {
  rowIndex = (row + track.rows.length) % track.rows.length;
  column = source;
  if (track.rows[rowIndex].folded) $("board").querySelector(".fold").open = true;
  if (playing || andPlay) begin(playing ? null : offset);
  show();
}

function chooseTrack(next) {
  const played = playing;
  stop();
  track = next;
  rowIndex = Math.min(rowIndex, track.rows.length - 1);
  if (!track.columns.includes(column)) column = TRUTH;
  board();
  show();
  if (played) begin(0);
}

function volume() {
  const db = Number($("volume").value);
  output?.gain.setTargetAtTime(10 ** (db / 20), context.currentTime, 0.01);
  $("level").textContent = `${String(db).replace("-", "−")} dB`;
  $("volume").setAttribute("aria-valuetext", `${db} dB`);
}

// ---------------------------------------------------------------- sight

function tabs() {
  $("tracks").replaceChildren(...tracks.map((each, k) => {
    const tab = make("button", { role: "tab", type: "button", id: `tab-${k}`, "aria-controls": "board", "data-track": k }, each.title);
    tab.onclick = () => chooseTrack(each);
    return tab;
  }));
  $("columns").querySelector("dl").replaceChildren(...Object.values(COLUMNS).flatMap(({ title, about }) => [make("dt", {}, title), make("dd", {}, about)]));
}

function tileOf(row, r, name) {
  const { image, numbers } = row.tiles[name];
  const linear = "linearity_snr_db" in numbers, stereo = "balance_db" in numbers;
  const number = linear ? `linearity ${decibels(numbers.linearity_snr_db)}` : `SNR ${decibels(numbers.snr_db)}`;
  const note = stereo ? `left − right ${decibels(numbers.balance_db)}` : name === TRUTH ? "" : number;
  const loud = numbers.louder_lu > LOUD_LU ? `loud: +${numbers.louder_lu.toFixed(0)} LU` : "";
  const label = [row.title, COLUMNS[name].title, note, loud].filter(Boolean).join(", ");
  const tile = make("button", { class: "tile", type: "button", "aria-pressed": "false", "data-row": r, "data-source": name, "aria-label": label },
    make("img", { src: `data:image/jpeg;base64,${image}`, alt: "" }), make("i", { class: "cursor" }), make("span", { class: "sign", "aria-hidden": "true" }, "▶"));
  if (note) tile.append(make("span", { class: "note" }, note));
  if (loud) tile.append(make("span", { class: "loud" }, loud));
  tile.onclick = () => {
    if (playing && rowIndex === r && column === name) pause(); else choose(r, name, true);
  };
  return tile;
}

function board() {
  const heads = make("div", { class: "heads", "aria-hidden": "true" }, make("span"), ...track.columns.map((name) => make("span", {}, COLUMNS[name].title)));
  const lines = track.rows.map((row, r) => {
    const about = make("div", { class: "about" }, make("h2", {}, row.title), make("div", { class: "formula" }, row.formula));
    const line = make("div", { class: "row", role: "group", "aria-label": row.title }, about, ...track.columns.map((name) => tileOf(row, r, name)));
    const before = track.rows[r - 1];
    if (before && row.block === before.block && !row.folded === !before.folded) return [line];
    const safety = `safety gain ${decibels(Object.values(row.tiles)[0].gain_db)}, the same for all of them`;
    return [make("p", { class: "block" }, make("strong", {}, row.block), `: ${safety}`), line];
  });
  const shown = lines.filter((_, r) => !track.rows[r].folded).flat(), folded = lines.filter((_, r) => track.rows[r].folded).flat();
  const fold = folded.length ? [make("details", { class: "fold" }, make("summary", {}, `More: other multiples of the mixture (${track.rows.filter((row) => row.folded).length})`), ...folded)] : [];
  $("board").style.setProperty("--columns", track.columns.length);
  $("board").replaceChildren(...(track.about ? [make("p", { class: "block" }, track.about)] : []), heads, ...shown, ...fold);
  const chosen = tracks.indexOf(track);
  for (const [k, tab] of [...$("tracks").children].entries()) {
    tab.setAttribute("aria-selected", k === chosen);
    tab.tabIndex = k === chosen ? 0 : -1;
  }
  $("board").setAttribute("aria-labelledby", `tab-${chosen}`);
  $("sources").replaceChildren(...track.columns.map((name) => {
    const button = make("button", { type: "button", role: "radio", "data-source": name }, COLUMNS[name].title);
    button.onclick = () => choose(rowIndex, name);
    return button;
  }));
}

function show() {
  const row = track.rows[rowIndex], tile = current(), { numbers } = tile;
  $("play").textContent = playing ? "❚❚ Pause" : "▶ Play";
  for (const button of document.querySelectorAll(".tile")) {
    const chosen = Number(button.dataset.row) === rowIndex && button.dataset.source === column;
    button.setAttribute("aria-pressed", chosen);
    button.querySelector(".sign").textContent = chosen && playing ? "❚❚" : "▶";
  }
  for (const button of $("sources").children) {
    const chosen = button.dataset.source === column;
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
  const title = `${row.title} · ${COLUMNS[column].title}`, shown = `${track.name}: ${rowIndex} ${column}`;
  if ($("title").dataset.text !== shown) {
    $("title").dataset.text = shown;
    $("title").replaceChildren(title, make("small", {}, column === TRUTH ? "" : row.formula));
    $("picture").querySelector("img").src = `data:image/jpeg;base64,${tile.image}`;
    $("picture").querySelector(".axis").replaceChildren(...tile.ticks.map(([share, label]) => {
      const mark = make("span", {}, label);
      mark.style.setProperty("--at", `${100 * share}%`);
      return mark;
    }));
    const lines = [
      ["SNR against the waveform", decibels(numbers.snr_db)], ["SI-SDR", decibels(numbers.si_sdr_db)],
      ["MSS (0 is equal)", numbers.mss?.toFixed(2) ?? "–"],
      ...("balance_db" in numbers
        ? [["Left − right", decibels(numbers.balance_db)], ["Side − mid", decibels(numbers.side_db)]]
        : [["Linearity", decibels(numbers.linearity_snr_db)]]),
      ["Loudness", numbers.lufs === null ? "silent" : `${numbers.lufs.toFixed(1).replace("-", "−")} LUFS`],
      ["True peak", decibels(numbers.true_peak_dbtp)], ["Safety gain", decibels(tile.gain_db)],
    ];
    $("numbers").tBodies[0].replaceChildren(...lines.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value))));
  }
  move();
}

function move() {
  const at = position(), share = `${(100 * at) / track.seconds}%`;
  $("time").textContent = `0:${at.toFixed(1).padStart(4, "0")} / 0:${track.seconds.toFixed(1).padStart(4, "0")}`;
  for (const cursor of document.querySelectorAll('#picture .cursor, .tile[aria-pressed="true"] .cursor')) cursor.style.left = share;
  $("picture").setAttribute("aria-valuemax", track.seconds.toFixed(1));
  $("picture").setAttribute("aria-valuenow", at.toFixed(1));
  $("picture").setAttribute("aria-valuetext", `${at.toFixed(1)} seconds`);
}

function follow() {
  move();
  if (playing) requestAnimationFrame(follow);
}

// ---------------------------------------------------------------- controls

function beside(step) {
  const names = track.columns;
  choose(rowIndex, names[(names.indexOf(column) + step + names.length) % names.length]);
}

function louder(step) {
  $("volume").value = Number($("volume").value) + step;
  volume();
}

const keys = {
  " ": toggle, Escape: stop, a: () => beside(-1), d: () => beside(1), w: () => choose(rowIndex - 1, column), s: () => choose(rowIndex + 1, column),
  ",": () => seek(position() - 1), ".": () => seek(position() + 1), "+": () => louder(3), "=": () => louder(3), "-": () => louder(-3),
  l: () => { $("loop").checked = !$("loop").checked; if (playing) begin(); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const source = track.columns[Number(event.key) - 1];
  const action = source ? () => choose(rowIndex, source) : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const pressesItself = event.key === " " && event.target.matches("button, input, summary") && event.target !== $("volume");
  if (!action || pressesItself) return;
  event.preventDefault();
  action();
});
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
$("sources").addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  beside(step);
  $("sources").querySelector('[aria-checked="true"]').focus();
});
$("tracks").addEventListener("keydown", (event) => {
  const ends = { Home: 0, End: tracks.length - 1 };
  if (!(event.key in STEPS) && !(event.key in ends)) return;
  event.preventDefault();
  const next = ends[event.key] ?? (tracks.indexOf(track) + STEPS[event.key] + tracks.length) % tracks.length;
  chooseTrack(tracks[next]);
  $("tracks").children[next].focus();
});
$("picture").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  seek(position() + step);
});
$("picture").addEventListener("click", (event) => {
  const box = $("picture").getBoundingClientRect();
  seek(((event.clientX - box.left) / box.width) * track.seconds);
});
for (const id of ["details", "columns"]) $(id).open = window.matchMedia("(min-width: 701px)").matches; // on a phone the board needs the room

// What is scrolled to, or has the focus, is not covered by the player below or by the heads above.
new ResizeObserver(() => {
  const { style } = document.documentElement;
  style.scrollPaddingBottom = `${$("player").offsetHeight + 6}px`;
  style.scrollPaddingTop = `${$("board").querySelector(".heads").offsetHeight + 6}px`;
}).observe($("player"));
function uncover(node) {
  if (!node.closest("#board, #live") || node.closest(".heads")) return;
  const { top, bottom } = node.getBoundingClientRect();
  const floor = $("player").getBoundingClientRect().top - 6, ceiling = $("board").querySelector(".heads").offsetHeight + 6;
  if (bottom > floor) window.scrollBy({ top: bottom - floor, behavior: "instant" });
  else if (top < ceiling) window.scrollBy({ top: top - ceiling, behavior: "instant" });
}
document.addEventListener("focusin", ({ target }) => { uncover(target); requestAnimationFrame(() => uncover(target)); });

$("play").onclick = toggle;
$("stop").onclick = stop;
$("loop").onchange = () => { if (playing) begin(); };
$("volume").oninput = volume;
volume();
tabs();
board();
show();
// for tests and other scripts of the page
window.demo = {
  position, buffer, current, tracks, listen,
  get context() { return context; },
  get analyser() { return analyser; },
  get playing() { return playing; },
  get voice() { return voice; },
};
