// The desk: what is chosen, the strips, the player, and what the kernel says. (Joined with parts.js, strip.js and player.js.)
const PIECE_BYTES = 2 ** 20; // of an upload: a whole file in one message would be cut off by a server's limit
const MOST_FILES = 8, MOST_BYTES = 2 ** 30;
const PATIENCE_MS = { moved: 10000, piece: 20000, files: 20000 };
const LOST = "No answer from the kernel: the connection may be lost. Moves have no effect; try again, or reload the page.";
const PAN = "pan";

function render({ model, el }) {
  const change = (settings) => {
    for (const [name, value] of Object.entries(settings)) model.set(name, value);
    model.save_changes();
  };

  // ------------------------------------------------------------ what is chosen
  const labelled = (name, control, css = "") => element("label", { class: `lc-field ${css}` }, element("span", {}, name), control);
  const models = element("select", { class: "lc-models" }), tracks = element("select", { class: "lc-tracks" });
  const from = element("input", { type: "number", class: "lc-from", min: 0, step: 0.5 });
  const to = element("input", { type: "number", class: "lc-to", min: 0.5, step: 0.5 });
  const stereo = element("select", { class: "lc-stereo" }), image = element("input", { type: "number", class: "lc-image-number", min: 0, max: 9999 });
  image.title = "Every number is another draw from the prior";
  const equal = element("input", { type: "checkbox", class: "lc-equal" });
  const reset = element("button", { type: "button", class: "lc-reset", title: "All faders to 0 dB, nothing muted, pan" }, "Reset faders");
  const stereoFields = element("div", { class: "lc-stereo-fields" }, labelled("Stereo", stereo), labelled("Image", image, "lc-image-field"));
  const top = element("div", { class: "lc-top" }, labelled("Model", models), labelled("Track", tracks),
    labelled("From, s", from), labelled("To, s", to), stereoFields, element("label", { class: "lc-check" }, equal, " A/B at equal loudness"), reset);

  const options = (select, names, chosen) => {
    select.replaceChildren(...names.map(([value, name]) => element("option", { value }, name)));
    select.value = chosen;
  };
  models.onchange = () => change({ model: models.value });
  tracks.onchange = () => change({ track: Number(tracks.value) });
  from.onchange = to.onchange = () => {
    const end = model.get("tracks")[model.get("track")][1];
    const first = Math.max(0, Math.min(from.valueAsNumber || 0, end - 0.5));
    change({ range_s: [first, Math.max(first + 0.5, Math.min(to.valueAsNumber || end, end))] });
    showRange();
  };
  stereo.onchange = () => change({ module: stereo.value === PAN ? "" : stereo.value });
  image.onchange = () => change({ image: Math.max(0, Math.round(image.valueAsNumber) || 0) });
  equal.onchange = () => change({ equal_loudness: equal.checked });
  reset.onclick = () => change({
    strips: model.get("strips").map(() => ({ gain_db: 0, pan: 0, mute: false, solo: false, inverted: false })), master_db: 0, module: "", image: 0,
  });
  function showRange() {
    [from.value, to.value] = model.get("range_s").map((s) => Math.round(100 * s) / 100);
  }
  function showChoices() {
    options(models, model.get("models").map((name) => [name, name]), model.get("model"));
    options(tracks, model.get("tracks").map(([name], k) => [k, name]), model.get("track"));
    options(stereo, [[PAN, PAN], ...model.get("modules").map((name) => [name, `Re-Encoder ${name}`])], model.get("module") || PAN);
    stereoFields.hidden = model.get("modules").length === 0;
    image.closest("label").hidden = model.get("module") === "";
    image.value = model.get("image");
    equal.checked = model.get("equal_loudness");
    showRange();
  }

  // ------------------------------------------------------------ strips and player
  let strips = [];
  const slug = (name) => name.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  const fileName = () => slug(`${model.get("model")} ${model.get("tracks")[model.get("track")][0]}`);
  const sound = player(fileName, (at) => { for (const each of strips) each.follow(at); });
  const stripBox = element("div", { class: "lc-strips", role: "group", "aria-label": "Strips" });
  function build() {
    const names = model.get("names"), colours = model.get("colours");
    strips = names.map((name, k) => strip(name, colours[k % colours.length], true, (settings) => {
      change({ strips: model.get("strips").map((each, i) => (i === k ? { ...each, ...settings } : each)) });
      showStrips();
    }));
    strips.push(strip("master", "#1d2430", false, ({ gain_db }) => { change({ master_db: gain_db }); showStrips(); }));
    stripBox.replaceChildren(...strips.map(({ node }) => node));
    showStrips();
    showLevels();
  }
  function showStrips() {
    const all = [...model.get("strips"), { gain_db: model.get("master_db") }];
    if (all.length !== strips.length) return; // the names of another track are on their way
    strips.forEach((each, k) => each.show(all[k], model.get("module") === ""));
  }
  function showLevels() {
    const levels = model.get("levels");
    strips.forEach((each, k) => each.meter(levels.length === strips.length ? levels[k] : null));
  }

  // ------------------------------------------------------------ what the kernel says
  const lost = element("div", { class: "lc-lost", role: "alert" });
  const progress = element("progress", { class: "lc-progress", max: 1, "aria-label": "What the desk is doing" });
  const said = element("div", { class: "lc-status", role: "status" });
  const wrong = element("div", { class: "lc-error", role: "alert" });
  function showStatus() {
    const { message = "", share = 0, notes = [], error = "" } = model.get("status");
    progress.value = share;
    progress.style.visibility = message ? "visible" : "hidden";
    said.replaceChildren(...(message ? [`${message} …`] : notes).map((note) => element("p", {}, note)));
    if (!message) wrong.textContent = error;
  }

  // A move that the kernel does not answer has no effect: faders would move, and nothing would say so.
  const waiting = {};
  function ask(content, ...buffers) {
    const { kind } = content;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(LOST)), PATIENCE_MS[kind]);
      waiting[kind] = (error) => {
        clearTimeout(timer);
        delete waiting[kind];
        error ? reject(new Error(error)) : resolve();
      };
      try { model.send(content, undefined, buffers); } catch { reject(new Error(LOST)); }
    });
  }
  function hear({ kind, error }) {
    lost.textContent = "";
    waiting[kind]?.(error);
  }
  function moved({ target }) {
    if (waiting.moved || !el.contains(target)) return;
    ask({ kind: "moved" }).catch((error) => { lost.textContent = error.message; delete waiting.moved; });
  }

  // ------------------------------------------------------------ stems of one's own
  const files = element("input", { type: "file", accept: "audio/*", multiple: "" });
  const sent = element("output", { class: "lc-said" });
  const path = element("input", { type: "text", class: "lc-path" });
  const open = element("button", { type: "button" }, "Open");
  const own = element("details", { class: "lc-own" }, element("summary", {}, "Stems of your own"),
    element("p", { class: "lc-caption" }, "Stems are mono here, the mean of their channels: pan or a Re-Encoder gives them a place."),
    labelled("Upload stems", files), sent, labelled("or a folder of stems, or a file, on the kernel's machine", path), open);
  async function send(chosen) {
    const total = chosen.reduce((sum, file) => sum + file.size, 0);
    const mb = (bytes) => `${Math.ceil(bytes / 1e6)} MB`;
    if (chosen.length > MOST_FILES) throw new Error(`a desk takes 1 to ${MOST_FILES} stems, got ${chosen.length}: nothing was sent`);
    if (total > MOST_BYTES) throw new Error(`${mb(total)} are more than the ${mb(MOST_BYTES)} that a desk takes: nothing was sent`);
    let bytes = 0;
    for (const [index, file] of chosen.entries()) {
      for (let at = 0; at === 0 || at < file.size; at += PIECE_BYTES) { // an empty file is a piece too
        const piece = await file.slice(at, at + PIECE_BYTES).arrayBuffer();
        await ask({ kind: "piece", file: index, name: file.name, at }, piece);
        bytes += piece.byteLength;
        sent.textContent = `${Math.floor((100 * bytes) / Math.max(1, total))}% of ${mb(total)}`;
      }
    }
    await ask({ kind: "files" });
  }
  files.onchange = async () => {
    files.disabled = true;
    sent.textContent = "";
    sent.classList.remove("lc-error");
    try {
      await send([...files.files]);
      sent.textContent = "";
    } catch (error) {
      sent.classList.add("lc-error");
      sent.textContent = error.message;
    }
    files.value = "";
    files.disabled = false;
  };
  open.onclick = () => model.send({ kind: "open", path: path.value });

  // ------------------------------------------------------------ all of it
  const body = element("div", { class: "lc-body" }, stripBox,
    element("div", { class: "lc-right" }, sound.pictures, element("div", { class: "lc-table" }, sound.numbers)));
  const root = element("div", { class: "lincae-desk" },
    element("div", { class: "lc-all" }, top, wrong, progress, sound.transport, body, said, own));
  sound.transport.append(lost); // in sight wherever the page is scrolled to
  el.append(root);
  root.player = sound; // for tests and other scripts of the page

  // Space plays, but where it presses or writes.
  function pressed(event) {
    const here = event.target === document.body || el.contains(event.target);
    const own = event.target.closest?.("button, select, summary, textarea, input:not([type=range])");
    if (event.key !== " " || !here || own || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    sound.toggle();
  }
  const shows = {
    "msg:custom": hear,
    "change:models change:model change:tracks change:track change:modules change:module change:image change:range_s change:equal_loudness": showChoices,
    "change:names": build,
    "change:strips change:master_db change:module": showStrips,
    "change:levels": showLevels,
    "change:status": showStatus,
    "change:sounds": () => { sound.take(model.get("sounds"), model.get("sample_rate")); },
    "change:pictures": () => sound.paint(model.get("pictures")),
  };
  for (const [names, show] of Object.entries(shows)) for (const name of names.split(" ")) model.on(name, show);
  const listened = { keydown: pressed, pointerup: moved, keyup: moved, change: moved };
  for (const [name, listen] of Object.entries(listened)) document.addEventListener(name, listen);
  showChoices();
  build();
  showStatus();
  sound.take(model.get("sounds"), model.get("sample_rate"));
  sound.paint(model.get("pictures"));
  model.send({ kind: "ready" });
  return () => {
    for (const [names, show] of Object.entries(shows)) for (const name of names.split(" ")) model.off(name, show);
    for (const [name, listen] of Object.entries(listened)) document.removeEventListener(name, listen);
    sound.close();
  };
}

export default { render };
