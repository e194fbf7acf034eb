"use strict";
// Sums of latents, decoded in the browser. The page runs this file, beside demo.js, and so does its worker.

const STARTING = "start", MIXING = "mix"; // what the page asks of the worker
if (typeof document === "undefined") decodeOnRequest(); else offerLive();

// ---------------------------------------------------------------- the worker

function decodeOnRequest() {
  let ort, session, folder, providers;
  const loaded = new Map(); // address -> its bytes

  async function bytesOf(address) {
    if (loaded.has(address)) return loaded.get(address);
    const name = address.split("/").pop();
    const answer = await fetch(address).catch(() => ({ ok: false, status: "no answer" }));
    if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status}). Check the connection and try again.`);
    const parts = [];
    const reader = answer.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      postMessage({ received: part.value.length });
    }
    const bytes = await new Blob(parts).arrayBuffer();
    loaded.set(address, bytes);
    return bytes;
  }

  // The first provider that starts. A GPU may be refused, or be lost while it decodes: then the next one follows.
  async function open() {
    const graph = await bytesOf(`${folder}decoder.onnx`);
    for (session = null; session === null;) {
      const name = providers[0] === "webgpu" ? "gpu" : "ort";
      try {
        const wasm = await bytesOf(`${folder}${name}.wasm`);
        ort = await import(`${folder}${name}.js`);
        ort.env.wasm.wasmBinary = wasm;
        ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
        session = await ort.InferenceSession.create(graph, { executionProviders: [providers[0]] });
      } catch (error) {
        pass(error);
      }
    }
  }

  function pass(error) {
    if (providers.length === 1) throw error;
    providers.shift();
    postMessage({ instead: providers[0] });
  }

  async function decoded(inputs) {
    try {
      return await session.run(inputs);
    } catch (error) {
      pass(error);
      await open();
      return session.run(inputs);
    }
  }

  async function mix({ latents, noise, shape, noiseShape, samples, gains }) {
    const stems = fromHalves(new Uint16Array(await bytesOf(latents)));
    const eps = new Float32Array(await bytesOf(noise));
    const [, channels, frames] = shape, size = channels * frames;
    const sum = new Float32Array(size);
    gains.forEach((gain, stem) => {
      for (let k = 0; k < size; k++) sum[k] += gain * stems[stem * size + k];
    });
    const before = performance.now();
    const inputs = { latents: new ort.Tensor("float32", sum, [1, channels, frames]), noise: new ort.Tensor("float32", eps, noiseShape) };
    const { audio } = await decoded(inputs);
    return { audio: audio.data.slice(0, samples), ms: performance.now() - before, provider: providers[0] };
  }

  onmessage = async ({ data }) => {
    try {
      if (data.kind === STARTING) {
        ({ folder, providers } = data);
        await open();
      }
      postMessage({ done: data.kind, ...(data.kind === MIXING ? await mix(data) : {}) });
    } catch (error) {
      postMessage({ failed: error.message });
    }
  };
}

function fromHalves(halves) {
  return Float32Array.from(halves, (bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
  });
}

// ---------------------------------------------------------------- the page

function offerLive() {
  const { live } = JSON.parse($("data").textContent);
  const folder = new URL("live/", document.baseURI).href;
  const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);
  const megabytes = (n) => (n / 1e6).toFixed(1);
  let worker = null, providers = [], total = 0, received = 0, busy = false, changed = false;
  let music = live.tracks[0], decoded = null, sounding = null, since = 0;

  const start = make("button", { type: "button", id: "live-start" });
  const said = make("p", { id: "live-said", role: "status" });
  const play = make("button", { type: "button", id: "live-play" }, "▶ Play the mix");
  const choice = make("select", {}, ...live.tracks.map(({ title }, k) => make("option", { value: k }, title)));
  const strips = make("div", { class: "strips" });
  const desk = make("div", { id: "live-desk", hidden: "" }, make("div", { class: "controls" }, play, make("label", {}, "Music ", choice)), strips);
  $("board").after(make("section", { id: "live", "aria-labelledby": "live-title" },
    make("h2", { id: "live-title" }, "Mix latents yourself"),
    make("p", {}, `The latents of the stems, each times its fader, are added in this browser, and the sum is decoded by the model ${live.model}. No waveform is mixed. Nothing is sent anywhere.`),
    start, said, desk));

  function toggle(name, about) {
    const button = make("button", { type: "button", "aria-pressed": "false", "aria-label": about }, name);
    button.onclick = () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false");
      request();
    };
    return button;
  }

  function showStrips() {
    strips.replaceChildren(...music.stems.map((stem) => {
      const level = make("span", { class: "level", "aria-hidden": "true" }, "0 dB");
      const fader = make("input", { type: "range", min: -40, max: 6, step: 1, value: 0, "aria-label": `${stem}, gain in dB`, "aria-valuetext": "0 dB" });
      fader.oninput = () => {
        level.textContent = `${fader.value.replace("-", "−")} dB`;
        fader.setAttribute("aria-valuetext", `${fader.value} dB`);
        request();
      };
      return make("div", { class: "strip", role: "group", "aria-label": stem }, make("strong", {}, stem), fader, level,
        toggle("Mute", `Mute ${stem}`), toggle("Invert", `Invert the polarity of ${stem}`));
    }));
  }

  function gains() {
    return [...strips.children].map((strip) => {
      const [muted, inverted] = [...strip.querySelectorAll("button")].map((button) => button.getAttribute("aria-pressed") === "true");
      return muted ? 0 : (inverted ? -1 : 1) * 10 ** (strip.querySelector("input").value / 20);
    });
  }

  // One mix is decoded at a time; of those asked for meanwhile only the last one follows.
  function request() {
    changed = true;
    if (busy || desk.hidden) return;
    busy = true;
    changed = false;
    said.textContent = "Decoding …";
    worker.postMessage({ kind: MIXING, latents: folder + music.latents, noise: folder + music.noise, shape: music.shape, noiseShape: music.noise_shape, samples: music.samples, gains: gains() });
  }

  function begin() {
    start.disabled = true;
    received = 0;
    total = live.bytes[providers[0]];
    worker = new Worker(`${folder}live.js`, { type: "module" });
    worker.onerror = () => fail("The decoder did not start. Is this page served by a web server, and the browser a current one?");
    worker.onmessage = ({ data }) => {
      if ("failed" in data) return fail(data.failed);
      if ("received" in data) {
        received += data.received;
        if (desk.hidden) said.textContent = `Loading: ${megabytes(received)} of ${megabytes(total)} MB`;
      } else if ("instead" in data) {
        total = received + live.bytes[data.instead];
      } else if (data.done === STARTING) {
        desk.hidden = false;
        start.hidden = true;
        request();
        play.focus();
      } else answered(data);
    };
    worker.postMessage({ kind: STARTING, folder, providers });
  }

  function fail(message) {
    worker?.terminate();
    worker = null;
    busy = false;
    hush();
    desk.hidden = true;
    start.hidden = start.disabled = false;
    said.textContent = message;
  }

  function answered({ audio, ms, provider }) {
    busy = false;
    decoded = { audio, ms, provider };
    const peak = audio.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    decoded.gain = Math.min(1, 0.89 / peak); // at most -1 dBFS
    const turned = decoded.gain < 1 ? ` Turned down by ${(-20 * Math.log10(decoded.gain)).toFixed(1)} dB to stay below full scale.` : "";
    said.textContent = `${(audio.length / live.sample_rate).toFixed(1)} s decoded in ${(ms / 1000).toFixed(1)} s${provider === "webgpu" ? " by the GPU" : ""}.${turned}`;
    if (sounding) sound();
    if (changed) request();
  }

  // Start what was decoded last where the one before it is.
  function sound() {
    const buffer = context.createBuffer(1, decoded.audio.length, live.sample_rate);
    buffer.copyToChannel(decoded.audio, 0);
    const source = context.createBufferSource(), gain = context.createGain(), now = context.currentTime;
    source.buffer = buffer;
    source.loop = true;
    gain.gain.setValueAtTime(0, now);
    gain.gain.linearRampToValueAtTime(decoded.gain, now + FADE_S);
    source.connect(gain).connect(output);
    source.start(now, (now - since) % buffer.duration);
    fadeOut(sounding);
    sounding = { source, gain };
  }

  function hush() {
    fadeOut(sounding);
    sounding = null;
    play.textContent = "▶ Play the mix";
  }

  async function listenTo() {
    if (sounding) return hush();
    try {
      await listen();
    } catch (error) {
      said.textContent = error.message;
      return;
    }
    stop(); // the player of the page
    if (!decoded) return;
    since = context.currentTime;
    sound();
    play.textContent = "■ Stop the mix";
    const watch = setInterval(() => {
      if (playing) hush();
      if (!sounding) clearInterval(watch);
    }, 50);
  }

  start.onclick = begin;
  play.onclick = listenTo;
  choice.onchange = () => {
    hush();
    music = live.tracks[choice.value];
    decoded = null;
    showStrips();
    request();
  };
  // With a GPU another build of the runtime is loaded, for which WebAssembly has to be able to wait.
  async function lookForGpu() {
    const gpu = "Suspending" in WebAssembly && await navigator.gpu?.requestAdapter().catch(() => null);
    if (gpu) offer(["webgpu", "wasm"]);
  }

  function offer(able) {
    providers = able;
    start.textContent = `Load the decoder (${megabytes(live.bytes[able[0]])} MB)`;
  }

  showStrips();
  offer(["wasm"]);
  if (!(typeof WebAssembly === "object" && WebAssembly.validate(SIMD))) {
    start.disabled = true;
    said.textContent = "This browser lacks WebAssembly with SIMD, which the decoder needs: use a current Firefox, Chrome or Edge, or Safari 16.4 and later.";
  } else lookForGpu();
  window.live = { get decoded() { return decoded; }, get busy() { return busy; }, get sounding() { return sounding; }, gains };
}
