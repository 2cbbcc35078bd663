// A worker that runs an exported ONNX file with onnxruntime-web: pixels in, results in pixels of the image out.
// Each message {id, action, ...} is answered by {id, ...}, or by {id, error}.
import {nearest, prepare} from './prepare.js';

const FOLDER = new URL('onnxruntime-web/', self.location).href;
const MAX_SHOWN = 1600;  // largest side of a class map in pixels, as mnv4_mm/demo/server.py reduces it
const OUTPUTS = {nms: ['boxes', 'scores', 'labels'], class_map: ['class_map']};
let ort, session, meta;

const actions = {
  // provider: 'wasm' or 'webgpu'; threads: of WebAssembly.
  async load({file, provider, threads}) {
    meta = await (await get(`${encodeURIComponent(file)}.json`)).json();
    if (meta.format !== 1 || !OUTPUTS[meta.kind] || !meta.input.size)
      throw new Error(`${file}.json describes a file that this page does not run: export again`);
    const model = await (await get(encodeURIComponent(file))).arrayBuffer(), sha256 = Object.values(meta.files)[0];
    if (self.crypto?.subtle) {  // not without HTTPS
      const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', model));
      if (Array.from(digest, byte => byte.toString(16).padStart(2, '0')).join('') !== sha256)
        throw new Error(`${file} is not the file that ${file}.json describes: reload the page, or copy the whole folder again`);
    }
    const start = performance.now();
    ort = await import(`${FOLDER}ort.${provider}.min.mjs`);
    ort.env.wasm.wasmPaths = FOLDER;
    ort.env.wasm.numThreads = threads;
    session = await ort.InferenceSession.create(model, {executionProviders: [provider], logSeverityLevel: 3});
    // The first run takes longer than others: it belongs to loading.
    const size = meta.input.size;
    await actions.predict({rgba: new Uint8ClampedArray(4 * size[0] * size[1]), height: size[0], width: size[1]});
    return {ms: performance.now() - start, sha256};
  },

  // rgba: pixels of an image of this height and width. ms: from these pixels to the result; model: the ONNX file alone.
  async predict({rgba, height, width}) {
    if (!session) throw new Error('the model is not loaded');
    const start = performance.now(), {data, dims, place} = prepare(rgba, height, width, meta);
    const feeds = {image: new ort.Tensor(meta.input.dtype, data, dims)};
    const before = performance.now(), outputs = await session.run(feeds, OUTPUTS[meta.kind]);
    const model = performance.now() - before;
    const result = meta.kind === 'nms' ? detections(outputs, place) : {class_map: classMap(outputs.class_map, place)};
    for (const tensor of Object.values(outputs)) tensor.dispose();
    return {width, height, ...result, model, ms: performance.now() - start};
  },

  // The outputs of the file for a given input, without preprocessing; for tests of a device.
  async run({data, dims}) {
    const outputs = await session.run({image: new ort.Tensor(meta.input.dtype, data, dims)}, OUTPUTS[meta.kind]);
    const values = Object.entries(outputs).map(([name, {dims, data}]) => [name, {dims, data: Array.from(data, Number)}]);
    return {outputs: Object.fromEntries(values)};
  },
};

// As boxes_to_image in mnv4_mm/runtime/results.py.
function detections({boxes, scores, labels}, {original, placed}) {
  const [y, x] = original.map((side, i) => Math.fround(side / placed[i])), scale = [x, y, x, y];
  return {
    detections: Array.from(scores.data, (score, i) => ({
      label: Number(labels.data[i]), score,
      box: scale.map((factor, j) => Math.fround(boxes.data[4 * i + j] * factor)),
    })),
  };
}

// As map_to_image in mnv4_mm/runtime/results.py; then reduced to what the page shows. Shares are of the whole image.
function classMap({data, dims}, {original, placed}) {
  const reduce = Math.min(1, MAX_SHOWN / Math.max(...original));
  const shown = original.map(side => Math.max(1, Math.round(side * reduce)));
  const whole = original.map((side, i) => side === placed[i] ? Int32Array.from({length: side}, (_, at) => at) : nearest(placed[i], side));
  const [rows, columns] = shown.map((side, i) => reduce < 1 ? nearest(original[i], side).map(at => whole[i][at]) : whole[i]);
  const labels = new Uint16Array(shown[0] * shown[1]);
  for (let y = 0, o = 0; y < shown[0]; y++)
    for (let x = 0; x < shown[1]; x++) labels[o++] = data[rows[y] * dims[2] + columns[x]];
  const repeats = placed.map((side, i) => { const count = new Int32Array(side); for (const at of whole[i]) count[at]++; return count; });
  const share = new Float64Array(meta.classes.length), pixels = original[0] * original[1];
  for (let y = 0; y < placed[0]; y++)
    for (let x = 0; x < placed[1]; x++) share[data[y * dims[2] + x]] += repeats[0][y] * repeats[1][x];
  return {width: shown[1], height: shown[0], labels, share: Array.from(share, count => count / pixels)};
}

async function get(name) {
  const response = await fetch(name, {cache: 'no-cache'});  // a file of an earlier export may be in the cache
  if (!response.ok) throw new Error(`${decodeURIComponent(name)} cannot be loaded: ${response.status} ${response.statusText}`);
  return response;
}

let queue = Promise.resolve();  // one message at a time
self.onmessage = ({data: {id, action, ...given}}) => {
  queue = queue.then(async () => {
    try {
      self.postMessage({id, ...await actions[action](given)});
    } catch (error) {
      self.postMessage({id, error: error instanceof Error ? error.message : String(error)});
    }
  });
};
