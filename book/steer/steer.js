// The page without a kernel: controls, the picture, and the address that holds both.
const root = document.getElementById("kflow-steer");
const assets = new URL("./", import.meta.url);
const colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"];
const places = { wasm: "on the processor", webgpu: "on the graphics card" };
const defaults = { model: "digits-db6", seeds: [1, 2], label: 3, guidance: 1.5, tau: 1, steps: 30, localised: false };
const state = { ...defaults, frozen: [], ...fromAddress() };
let meta = null;
let worker = null;
let gpu = false; // whether the network runs on the graphics card
let frames = [];
let request = 0;
let began = 0; // when the newest request was sent, in ms
let shown = null; // index of the frame under the scrubber; null: the newest

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const found = {};
  if (given.has("model")) found.model = given.get("model");
  if (given.has("seeds")) found.seeds = given.get("seeds").split(",").map(asSeed);
  for (const key of ["label", "guidance", "tau", "steps"]) {
    if (given.has(key) && Number.isFinite(Number(given.get(key)))) found[key] = Number(given.get(key));
  }
  if (given.has("localised")) found.localised = given.get("localised") === "1";
  return found;
}

function toAddress() {
  const { model, seeds, label, guidance, tau, steps, localised } = state;
  const entries = { model, seeds: seeds.join(","), label, guidance, tau, steps, localised: localised ? 1 : 0 };
  history.replaceState(null, "", `#${new URLSearchParams(entries)}`);
}

function asSeed(value) {
  const seed = Math.floor(Number(value));
  return Number.isFinite(seed) ? ((seed % 4294967296) + 4294967296) % 4294967296 : 0;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const child of children) element.append(child);
  return element;
}

const status = make("p", { className: "kflow-status", role: "status" });
const canvas = make("canvas", { width: 32, height: 32, className: "kflow-picture", role: "img" });
const bar = make("div", { className: "kflow-bar" });
const scrubber = make("input", { type: "range", min: 0, max: 1, value: 1, step: 1 });
const scrubbed = make("output");
const controls = make("div", { className: "kflow-controls" });

function labelled(text, input, output) {
  const line = make("label", { className: "kflow-line" }, make("span", { textContent: text }), input);
  if (output) line.append(output);
  return line;
}

function slider(text, key, min, max, step, show = (x) => x) {
  const input = make("input", { type: "range", min, max, step, value: state[key] });
  const output = make("output", { textContent: show(state[key]) });
  input.addEventListener("input", () => {
    state[key] = Number(input.value);
    output.textContent = show(state[key]);
    start();
  });
  return labelled(text, input, output);
}

function bandControls() {
  return meta.names.map((name, band) => {
    const input = make("input", { type: "number", min: 0, max: 4294967295, step: 1, value: state.seeds[band] });
    input.addEventListener("input", () => {
      state.seeds[band] = asSeed(input.value);
      start();
    });
    const dice = make("button", { type: "button", textContent: "dice", title: `another seed for the ${name} band` });
    const frozen = make("input", { type: "checkbox", checked: Boolean(state.frozen[band]) });
    const roll = () => {
      if (state.frozen[band]) return;
      state.seeds[band] = Math.floor(Math.random() * 4294967296);
      input.value = state.seeds[band];
    };
    dice.addEventListener("click", () => (roll(), start()));
    frozen.addEventListener("change", () => {
      state.frozen[band] = frozen.checked;
      input.disabled = dice.disabled = frozen.checked;
    });
    input.ariaLabel = `seed of the ${name} noise`;
    frozen.ariaLabel = `keep the ${name} noise`;
    const keep = make("label", {}, frozen, " keep"); // beside the seed, not in a label of its own: labels do not nest
    const line = make("div", { className: "kflow-line" }, make("span", { textContent: `${name} noise` }), input, dice, keep);
    line.style.borderColor = colours[band];
    return { line, roll };
  });
}

function build() {
  const bands = bandControls();
  const all = make("button", { type: "button", textContent: "new noise in every band that is not kept" });
  all.addEventListener("click", () => (bands.forEach(({ roll }) => roll()), start()));
  const label = make("select");
  meta.classes.forEach((name, i) => label.append(make("option", { value: i, textContent: name, selected: i === state.label })));
  label.addEventListener("change", () => ((state.label = Number(label.value)), start()));
  const localised = make("input", { type: "checkbox", checked: state.localised });
  localised.addEventListener("change", () => ((state.localised = localised.checked), start()));
  const save = make("button", { type: "button", textContent: "save the picture" });
  save.addEventListener("click", () => {
    const link = make("a", { download: `kflow-${state.model}-${state.seeds.join("-")}-${state.label}.png`, href: canvas.toDataURL() });
    link.click();
  });
  controls.replaceChildren(
    ...bands.map(({ line }) => line),
    all,
    ...(meta.classes.length
      ? [
          labelled("class", label),
          slider("guidance", "guidance", 0, 4, 0.1, (x) => x.toFixed(1)),
          slider("class dropped at k", "tau", 0, 1, 0.05, (x) =>
            x < 1 ? x.toFixed(2) + (meta.joins.includes(x) ? ", the join" : "") : "never",
          ),
        ]
      : []),
    slider("Euler steps", "steps", Math.max(4, 2 * meta.bands), 60, 1),
    labelled("localised: each band moves only in its turn", localised),
    save,
  );
  canvas.width = meta.picture[2];
  canvas.height = meta.picture[1];
  drawBar();
}

function drawBar() {
  const edges = [0, ...meta.joins, 1];
  bar.replaceChildren(
    ...meta.order.map((band, i) => {
      const alone = meta.order.length > 1; // ordinary flow matching has one band, which holds everything
      const part = make("span", { textContent: alone ? `${meta.names[band]} band moves` : "everything moves at once" });
      part.style.cssText = `flex:${edges[i + 1] - edges[i]};background:${alone ? colours[band] : "#595959"}`;
      return part;
    }),
  );
}

function draw() {
  const index = shown ?? frames.length - 1;
  const frame = frames[index];
  if (!frame) return;
  const pixels = new ImageData(canvas.width, canvas.height);
  const plane = canvas.width * canvas.height;
  for (let i = 0; i < plane; i++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = frame.picture[(meta.picture[0] === 3 ? channel * plane : 0) + i];
      pixels.data[4 * i + channel] = Math.round((value + 1) * 127.5);
    }
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.ariaLabel = `${meta.classes[state.label] ?? "face"} at k = ${frame.k.toFixed(2)}, seeds ${state.seeds.join(" and ")}`;
  scrubber.max = frames.length - 1;
  scrubber.value = index;
  scrubbed.textContent = `k = ${frame.k.toFixed(2)}`;
  const moving = [...meta.joins, 1].findIndex((edge) => frame.k < edge); // -1 at k = 1: nothing moves any more
  [...bar.children].forEach((part, i) => part.classList.toggle("kflow-moving", i === moving));
}

function start() {
  if (!meta) return;
  toAddress();
  frames = [];
  shown = null;
  request += 1;
  began = performance.now();
  root.dataset.state = "running";
  const { seeds, label, guidance, tau, steps, localised } = state;
  const used = Array.from({ length: meta.bands }, (_, band) => seeds[band] ?? band + 1);
  worker.postMessage({ kind: "run", id: request, seeds: used, label, guidance, tau, steps, localised });
}

function receive({ data }) {
  if (data.kind === "error") return fail(data.message);
  if (data.kind === "loaded") {
    meta = data.meta;
    state.seeds = Array.from({ length: meta.bands }, (_, band) => state.seeds[band] ?? band + 1);
    if (meta.classes.length) state.label = Math.min(Math.max(0, Math.floor(state.label)), meta.classes.length - 1);
    build();
    start();
  }
  if (data.kind === "frame" && data.id === request) {
    frames.push(data);
    const finished = data.index + 1 === data.count;
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    status.textContent = finished ? `finished: ${data.count - 1} steps in ${seconds} s ${places[meta.provider]}` : `step ${data.index} of ${data.count - 1}`;
    if (finished) root.dataset.state = "finished";
    if (shown === null) draw();
  }
}

// The page without the model: it says why, and shows what the model draws, computed while the book was built.
function fail(message) {
  worker?.terminate();
  worker = meta = null;
  root.dataset.state = "failed";
  status.textContent = `The model does not run in this browser: ${message}. This is what it draws, computed before.`;
  const picture = make("img", { className: "kflow-fallback", src: new URL("fallback.png", assets).href });
  picture.alt = "25 handwritten threes in five rows and five columns: each row has one noise in the low band, each column one in the high band";
  const caption = "A three, guidance 1.5, db6. Each row has one noise in the low band, each column one in the high band.";
  root.replaceChildren(status, make("figure", {}, picture, make("figcaption", { textContent: caption })));
}

async function load() {
  status.textContent = "loading …";
  root.dataset.state = "loading";
  try {
    worker = new Worker(new URL("worker.js", assets), { type: "module" });
    worker.onmessage = receive;
    worker.onerror = (event) => fail(event.message || "its worker does not start");
    worker.postMessage({ kind: "load", name: state.model, gpu });
  } catch (error) {
    fail(error.message);
  }
}

scrubber.addEventListener("input", () => {
  shown = Number(scrubber.value);
  draw();
});

async function begin() {
  if (typeof WebAssembly !== "object") return fail("it has no WebAssembly");
  const answer = await fetch(new URL("models.json", assets));
  if (!answer.ok) throw new Error(`models.json: ${answer.status}`);
  const models = await answer.json();
  const choice = make("select");
  for (const [name, about] of Object.entries(models.models)) {
    choice.append(make("option", { value: name, textContent: about.title, selected: name === state.model }));
  }
  choice.addEventListener("change", () => {
    state.model = choice.value;
    meta = null;
    if (!worker) return name();
    root.dataset.state = "loading";
    status.textContent = "loading …";
    worker.postMessage({ kind: "load", name: state.model, gpu });
  });
  if (!(state.model in models.models)) state.model = choice.value;
  const button = make("button", { type: "button", className: "kflow-load" });
  const card = make("input", { type: "checkbox" });
  const name = () => {
    const bytes = models.runtime[card.checked ? "webgpu" : "wasm"] + models.models[state.model].bytes;
    button.textContent = `load the model and its runtime (${(bytes / 1e6).toFixed(0)} MB)`;
  };
  name();
  card.addEventListener("change", name);
  const cardLine = labelled("run it on the graphics card (WebGPU)", card);
  cardLine.hidden = !(await navigator.gpu?.requestAdapter().catch(() => null));
  button.addEventListener("click", () => {
    gpu = card.checked;
    button.remove();
    cardLine.remove();
    load();
  });
  const look = labelled("look at", scrubber, scrubbed);
  root.replaceChildren(labelled("model", choice), button, cardLine, status, canvas, bar, look, controls);
  root.dataset.state = "ready";
  window.kflow = { state, frames: () => frames }; // for tests and the curious
}

begin().catch((error) => fail(error.message));
