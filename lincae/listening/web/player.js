// The player: several sounds of one length, all running, one heard. Samples arrive as float32 and are played as they are,
// but for the monitor volume and the gains of equal loudness.
const SWITCH_S = 0.01; // crossfade between two sounds
const FRAME_MS = 50; // between two pictures of meters and cursors: what they take is missing where the model decodes
const START_MS = 4000; // a browser that has not started its sound output by then has refused it
const NAMES = { latent: "latent mix", waveform: "waveform mix", decoded: "mix of decoded stems" };
const PANELS = { latent: "latent mix", waveform: "waveform mix", difference: "their difference" };

function floats(view) {
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

// WAV with 32-bit float samples: levels beyond full scale survive.
function wav(channels, rate) {
  const frames = channels[0].length, bytes = 4 * frames * channels.length;
  const view = new DataView(new ArrayBuffer(58 + bytes));
  const text = (at, letters) => [...letters].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 50 + bytes, true); text(8, "WAVEfmt ");
  view.setUint32(16, 18, true); view.setUint16(20, 3, true); view.setUint16(22, channels.length, true);
  view.setUint32(24, rate, true); view.setUint32(28, 4 * rate * channels.length, true);
  view.setUint16(32, 4 * channels.length, true); view.setUint16(34, 32, true);
  text(38, "fact"); view.setUint32(42, 4, true); view.setUint32(46, frames, true);
  text(50, "data"); view.setUint32(54, bytes, true);
  let at = 58;
  for (let i = 0; i < frames; i++) for (const c of channels) { view.setFloat32(at, c[i], true); at += 4; }
  return new Blob([view], { type: "audio/wav" });
}

// `fileName()` names what is downloaded; `followed` is called with where in time the player is.
function player(fileName, followed) {
  let context = null, monitor = null, analyser = null, heard = "latent";
  let voices = {}; // the sounds that run: key -> {source, gain}
  let loaded = {}; // key -> {channels, gain}
  let rate = 1, duration = 0, offset = 0, startedAt = 0, playing = false, looping = true, swaps = 0, frame = 0, drawnAt = 0;

  // ------------------------------------------------------------ what is seen
  const play = element("button", { class: "lc-play", type: "button", "aria-keyshortcuts": "Space" }, "▶ Play");
  const loop = element("input", { type: "checkbox", class: "lc-loop" });
  loop.checked = true;
  const time = element("span", { class: "lc-time" }, "0:00.0");
  const volume = element("input", { type: "range", min: -60, max: 0, step: 1, value: -6, class: "lc-volume", "aria-label": "Monitor volume" });
  const level = element("output", { class: "lc-volume-db" });
  const lamp = element("output", { class: "lc-lamp" });
  const refused = element("span", { class: "lc-error", role: "alert" });
  const download = element("button", { class: "lc-download", type: "button" }, "↓ WAV");
  download.title = "Download what is heard, unscaled, as 32-bit float WAV";
  const choices = element("div", { class: "lc-choices", role: "radiogroup", "aria-label": "What is heard" });
  const buttons = {};
  for (const [key, name] of Object.entries(NAMES)) {
    const button = element("button", { type: "button", role: "radio", "data-sound": key }, name);
    button.onclick = () => choose(key);
    buttons[key] = button;
    choices.append(button);
  }
  const images = {}, heads = {}, cursors = [];
  const pictures = element("div", { class: "lc-pictures" });
  for (const key of Object.keys(PANELS)) {
    images[key] = element("img", { alt: "", draggable: "false" });
    heads[key] = element("figcaption");
    const cursor = element("i", { class: "lc-cursor" });
    cursors.push(cursor);
    const axis = element("div", { class: "lc-axis", "aria-hidden": "true" });
    const frameBox = element("div", { class: "lc-image" }, images[key], cursor, axis);
    frameBox.onclick = (event) => {
      const box = frameBox.getBoundingClientRect();
      seek(((event.clientX - box.left) / box.width) * duration);
    };
    pictures.append(element("figure", { "data-panel": key }, heads[key], frameBox));
  }
  const lines = element("tbody");
  const head = element("tr", {}, ...["", "LUFS", "true peak, dBTP", "SNR of the latent mix, dB"].map((name) => element(name ? "th" : "td", name ? { scope: "col" } : {}, name)));
  const numbers = element("table", { class: "lc-numbers" }, element("thead", {}, head), lines);
  const transport = element("div", { class: "lc-transport" }, play, time,
    element("label", {}, loop, " loop"),
    element("label", { class: "lc-monitor" }, "monitor ", volume, level), download, lamp, refused, choices);

  // ------------------------------------------------------------ what is heard
  function position(now = context?.currentTime) {
    if (!playing) return offset;
    const ran = offset + Math.max(0, now - startedAt);
    return looping ? ran % duration : Math.min(ran, duration);
  }

  // What is chosen, or while that is not there yet, what is.
  function audible() {
    return loaded[heard] ? heard : Object.keys(loaded)[0];
  }

  function gainOf(key) {
    return key === audible() ? loaded[key].gain : 0;
  }

  // Start all sounds at `at` seconds (default: where the running ones are), and fade those out.
  function start(at = null, lead = 0.005) {
    const next = {};
    for (const [key, { channels }] of Object.entries(loaded)) {
      const buffer = context.createBuffer(channels.length, channels[0].length, rate);
      channels.forEach((samples, i) => buffer.copyToChannel(samples, i));
      const source = context.createBufferSource(), gain = context.createGain();
      source.buffer = buffer;
      source.loop = loop.checked;
      source.connect(gain).connect(monitor);
      next[key] = { source, gain };
    }
    // Sounds that start late lag behind the clock: a busy machine gets more time, and starts them again.
    const begin = context.currentTime + lead, from = (at ?? position(begin)) % duration;
    for (const [key, { source, gain }] of Object.entries(next)) {
      gain.gain.setValueAtTime(0, begin);
      gain.gain.linearRampToValueAtTime(gainOf(key), begin + SWITCH_S);
      source.start(begin, from);
    }
    if (context.currentTime >= begin && lead < 1) {
      for (const { source, gain } of Object.values(next)) { gain.disconnect(); source.stop(); }
      start(at, 2 * lead);
      return;
    }
    const first = Object.values(next)[0];
    if (first) first.source.onended = () => { if (voices === next && playing) { halt(); offset = 0; draw(); } };
    const old = voices;
    voices = next; offset = from; startedAt = begin; looping = loop.checked;
    silence(old);
  }

  function silence(old) {
    for (const { source, gain } of Object.values(old)) {
      source.onended = null;
      gain.gain.cancelScheduledValues(context.currentTime);
      gain.gain.setTargetAtTime(0, context.currentTime, SWITCH_S / 3);
      source.stop(context.currentTime + 4 * SWITCH_S);
    }
  }

  function halt() {
    offset = position();
    playing = false;
    silence(voices);
    voices = {};
  }

  async function awake() {
    if (!context) {
      context = new AudioContext();
      monitor = context.createGain();
      analyser = context.createAnalyser();
      analyser.fftSize = 2048;
      monitor.connect(analyser).connect(context.destination);
      setVolume();
    }
    const late = new Promise((resolve) => setTimeout(resolve, START_MS));
    if (context.state !== "running") await Promise.race([context.resume(), late]);
    if (context.state !== "running") throw new Error("it does not start");
  }

  async function toggle() {
    if (playing) { halt(); draw(); return; }
    if (!Object.keys(loaded).length) return;
    refused.textContent = "";
    try {
      await awake();
    } catch (error) {
      refused.textContent = `The browser gives no sound output (${error.message}). Is a loudspeaker connected, and sound allowed for this page? Then press Play again.`;
      return;
    }
    start(offset >= duration ? 0 : offset);
    playing = true;
    tick();
  }

  function seek(at) {
    const target = Math.max(0, Math.min(at, duration - 1e-3));
    if (playing) start(target); else offset = target;
    draw();
  }

  function setVolume() {
    const db = Number(volume.value);
    level.textContent = db <= -60 ? "off" : `${db} dB`;
    volume.setAttribute("aria-valuetext", level.textContent);
    if (monitor) monitor.gain.value = db <= -60 ? 0 : 10 ** (db / 20);
    light();
  }

  // What leaves for the loudspeaker beyond full scale is clipped there: said, not hidden.
  function light() {
    const { peak, gain } = loaded[audible()] ?? { peak: 0, gain: 0 };
    const db = 20 * Math.log10(peak * gain) + Number(volume.value);
    lamp.textContent = db > 0 ? `clips by ${db.toFixed(1)} dB: lower the monitor` : "";
  }

  // ------------------------------------------------------------ what the kernel sends
  function take(sounds, sampleRate) {
    // A latent mix comes first, without numbers: those of before, and the other sounds, stay until theirs follow.
    const before = sounds.waveform || sampleRate !== rate ? {} : loaded;
    rate = sampleRate;
    loaded = { ...before };
    for (const [key, { samples, channels, ...rest }] of Object.entries(sounds)) {
      const all = floats(samples), size = all.length / channels;
      const peak = all.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
      const parts = Array.from({ length: channels }, (_, i) => all.slice(i * size, (i + 1) * size));
      loaded[key] = { ...before[key], ...rest, peak, channels: parts };
    }
    const first = loaded.latent ?? Object.values(loaded)[0], was = duration;
    duration = first ? first.channels[0].length / rate : 0;
    for (const key of Object.keys(loaded)) if (loaded[key].channels[0].length !== first.channels[0].length) delete loaded[key];
    if (duration !== was && !playing) offset = 0;
    if (playing) { if (duration) start(); else { halt(); offset = 0; } }
    swaps++;
    lines.replaceChildren(...Object.keys(NAMES).filter((key) => loaded[key]).map((key) => element("tr", {},
      element("th", { scope: "row" }, NAMES[key]),
      element("td", {}, measured(loaded[key].lufs)),
      element("td", loaded[key].peak_dbtp > 0 ? { class: "lc-over" } : {}, measured(loaded[key].peak_dbtp)),
      element("td", {}, key === "latent" ? "" : agreement(key)))));
    choose(heard);
    draw();
  }

  function measured(db) {
    return db === undefined ? "…" : decibels(db); // on its way
  }

  function agreement(key) {
    if (!loaded.latent) return "…";
    const db = loaded[key].snr_db;
    return db === undefined || db === null ? "undefined, it is silent" : decibels(db);
  }

  function choose(key) {
    heard = key;
    for (const [name, button] of Object.entries(buttons)) {
      button.setAttribute("aria-checked", name === audible());
      button.tabIndex = name === audible() ? 0 : -1;
      button.disabled = !loaded[name];
      const db = loaded[name] ? 20 * Math.log10(loaded[name].gain) : 0;
      button.textContent = NAMES[name] + (Math.abs(db) >= 0.05 ? ` (${db > 0 ? "+" : "−"}${Math.abs(db).toFixed(1)} dB)` : "");
    }
    light();
    for (const [name, { gain }] of Object.entries(voices)) {
      gain.gain.cancelScheduledValues(context.currentTime);
      gain.gain.setValueAtTime(gain.gain.value, context.currentTime);
      gain.gain.linearRampToValueAtTime(gainOf(name), context.currentTime + SWITCH_S);
    }
  }

  function paint(shown) {
    for (const [key, name] of Object.entries(PANELS)) {
      const { png, ticks } = shown[key] ?? { ticks: [] };
      heads[key].textContent = key === "difference" && png ? `${name}: ${agreement("waveform")} dB SNR` : name;
      if (images[key].src) URL.revokeObjectURL(images[key].src);
      if (png) images[key].src = URL.createObjectURL(new Blob([png], { type: "image/png" }));
      images[key].alt = `Spectrogram: ${heads[key].textContent}`;
      const axis = images[key].parentElement.querySelector(".lc-axis");
      axis.replaceChildren(...ticks.map(([share, label]) => {
        const mark = element("span", {}, label);
        mark.style.setProperty("--at", `${100 * share}%`);
        return mark;
      }));
    }
  }

  function draw() {
    const at = position();
    write(play, playing ? "❚❚ Pause" : "▶ Play");
    play.disabled = !duration;
    download.disabled = !loaded[audible()];
    write(time, `${clock(at)} / ${clock(duration)}`);
    for (const cursor of cursors) cursor.style.transform = `translateX(${duration ? (100 * at) / duration : 0}%)`;
    followed({ share: duration ? at / duration : 0, playing });
  }

  function tick(now = 0) {
    if (now === 0 || now >= drawnAt + FRAME_MS) {
      drawnAt = now;
      draw();
    }
    if (playing) frame = requestAnimationFrame(tick);
  }

  play.onclick = toggle;
  loop.onchange = () => { if (playing) start(); };
  volume.oninput = setVolume;
  choices.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const ready = Object.keys(NAMES).filter((key) => loaded[key]);
    choose(ready[(ready.indexOf(audible()) + step + ready.length) % ready.length]);
    buttons[heard].focus();
    event.preventDefault();
  };
  download.onclick = () => {
    const link = element("a", { download: `${fileName()}_${audible()}.wav` });
    link.href = URL.createObjectURL(wav(loaded[audible()].channels, rate));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  setVolume();
  take({}, 1);
  paint({});
  return {
    transport, pictures, numbers, take, paint, toggle, position, seek,
    close() {
      cancelAnimationFrame(frame);
      context?.close();
    },
    get swaps() { return swaps; },
    get playing() { return playing; },
    get heard() { return audible(); },
    get sounds() { return loaded; },
    get analyser() { return analyser; },
    get clock() { return context?.currentTime; },
  };
}
