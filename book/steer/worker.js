// The model, off the page's thread: noise band by band (Algorithm 2), Euler steps of the flow, one frame a step.
import { where } from "./ort/where.mjs";

let ort = null; // the runtime, for the processor alone or for the graphics card too
let model = null; // {meta, step, compose, decode: of latents}
let wanted = 0; // number of the newest request: an older one stops at its next step

// The generator of kflow.steer.draw_noise: a 32-bit counter, hashed twice with the seed, Box and Muller.
function mix(x) {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

export function drawNoise(seed, size) {
  const key = mix((seed ^ 0x9e3779b9) >>> 0);
  const unit = (i) => (mix((mix(i) ^ key) >>> 0) + 0.5) / 4294967296;
  const noise = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    noise[i] = Math.sqrt(-2 * Math.log(unit(2 * i))) * Math.cos(2 * Math.PI * unit(2 * i + 1));
  }
  return noise;
}

// kflow.sample.grid: points from 0 to 1 that have every join among them, steps shared out by length.
export function grid(joins, steps) {
  const edges = [0, ...joins.filter((j) => j > 0 && j < 1).sort((a, b) => a - b), 1];
  const lengths = edges.slice(1).map((high, i) => high - edges[i]);
  const ideal = lengths.map((length) => steps * length);
  const counts = ideal.map((x) => Math.max(1, Math.floor(x)));
  const sum = () => counts.reduce((a, b) => a + b, 0);
  while (sum() !== steps) {
    const short = sum() < steps;
    let best = -1;
    for (let i = 0; i < counts.length; i++) {
      if (!short && counts[i] < 2) continue;
      const gap = ideal[i] - counts[i];
      const chosen = best < 0 ? null : ideal[best] - counts[best];
      if (best < 0 || (short ? gap > chosen : gap < chosen)) best = i;
    }
    counts[best] += short ? 1 : -1;
  }
  const points = counts.flatMap((n, i) => Array.from({ length: n }, (_, j) => edges[i] + (lengths[i] * j) / n));
  return [...points, 1];
}

async function start(gpu) {
  const runtime = await (gpu ? import("./ort/ort.webgpu.min.mjs") : import("./ort/ort.wasm.min.mjs"));
  runtime.env.wasm.wasmPaths = where;
  runtime.env.wasm.numThreads = 1; // more would need headers that static hosts do not send
  return runtime;
}

async function load(name, gpu) {
  ort ??= await start(gpu);
  const get = async (file) => {
    const answer = await fetch(new URL(`./${file}`, import.meta.url));
    if (!answer.ok) throw new Error(`${file}: ${answer.status}`);
    return answer;
  };
  const meta = await (await get(`${name}.json`)).json();
  const read = async (part, provider) => {
    const bytes = new Uint8Array(await (await get(`${name}-${part}.onnx`)).arrayBuffer());
    // errors alone: it would warn that WebGPU leaves shapes to the processor
    return ort.InferenceSession.create(bytes, { executionProviders: [provider], logSeverityLevel: 3 });
  };
  let provider = gpu ? "webgpu" : "wasm";
  const step = await read("step", provider).catch((error) => {
    if (!gpu) throw error;
    provider = "wasm"; // a card that does not take the model
    return read("step", provider);
  });
  model = { meta, step, compose: await read("compose", "wasm"), decode: meta.latents && (await read("decode", "wasm")) };
  return { ...meta, provider };
}

// The state, and the picture that it is: latents are decoded.
async function show(id, index, count, k, state) {
  const { meta, decode } = model;
  const latents = decode && new ort.Tensor("float32", state, [1, ...meta.shape]);
  const picture = decode ? (await decode.run({ latents })).image.data.slice() : state.slice();
  postMessage({ kind: "frame", id, index, count, k, state: state.slice(), picture });
}

async function run(request) {
  const { meta, step, compose } = model;
  const [channel, height, width] = meta.shape;
  const size = channel * height * width;
  const noises = new Float32Array(meta.bands * size);
  request.seeds.forEach((seed, band) => noises.set(drawNoise(seed, size), band * size));
  const stacked = new ort.Tensor("float32", noises, [meta.bands, channel, height, width]);
  let state = (await compose.run({ noises: stacked })).noise.data.slice();
  const points = grid(meta.classes.length && request.tau < 1 ? [...new Set([...meta.joins, request.tau])] : meta.joins, request.steps);
  await show(request.id, 0, points.length, 0, state);
  const number = (value) => new ort.Tensor("float32", Float32Array.from([value]), [1]);
  const label = new ort.Tensor("int64", BigInt64Array.from([BigInt(request.label)]), [1]);
  for (let i = 0; i + 1 < points.length; i++) {
    if (request.id !== wanted) return;
    const [low, high] = [points[i], points[i + 1]];
    const dropped = request.tau < 1 && (low + high) / 2 > request.tau;
    const { velocity } = await step.run({
      state: new ort.Tensor("float32", state, [1, channel, height, width]),
      k: number(low),
      localised: number(request.localised ? 1 : 0),
      ...(meta.classes.length && { labels: label, guidance: number(dropped ? 0 : request.guidance) }),
    });
    const next = new Float32Array(size);
    for (let j = 0; j < size; j++) next[j] = state[j] + (high - low) * velocity.data[j];
    state = next;
    await show(request.id, i + 1, points.length, high, state);
    await new Promise((resolve) => setTimeout(resolve)); // let a newer request in
  }
}

onmessage = async ({ data }) => {
  try {
    if (data.kind === "load") postMessage({ kind: "loaded", meta: await load(data.name, data.gpu) });
    if (data.kind === "run") {
      wanted = data.id;
      await run(data);
    }
  } catch (error) {
    postMessage({ kind: "error", message: String(error.message ?? error) });
  }
};
