// The preprocessing of mnv4_mm/runtime/preprocess.py: pixels of an image -> the input of an exported file.

// Size of an image before and after resizing to the input, as Placement in Python; sizes are [height, width].
export function placement(height, width, meta) {
  const size = meta.input.size;
  if (meta.resize.mode === 'stretch') return {original: [height, width], placed: size};
  const factor = Math.min(size[0] / height, size[1] / width);
  return {original: [height, width], placed: [height, width].map(side => Math.max(1, Math.floor(side * factor + 0.5)))};
}

// RGBA pixels -> {data, dims} of the input tensor, and the placement of the image in it.
export function prepare(rgba, height, width, meta) {
  const {size, layout, channel_order: order, dtype, normalise, mean, std} = meta.input;
  const place = placement(height, width, meta), [placedHeight, placedWidth] = place.placed;
  const rgb = resize(rgba, height, width, placedHeight, placedWidth);
  const first = order === 'RGB' ? 0 : 2;  // where the input's first channel is in rgb
  const area = size[0] * size[1], planar = layout === 'NCHW';
  const data = dtype === 'uint8' ? new Uint8Array(3 * area) : new Float32Array(3 * area);
  for (let channel = 0; channel < 3; channel++) {
    const shift = Math.fround(mean[channel]), scale = Math.fround(std[channel]);
    const value = pixel => normalise ? Math.fround(pixel - shift) / scale : pixel;
    const table = Float32Array.from({length: 256}, (_, pixel) => value(pixel)), pad = value(meta.resize.pad[channel]);
    const start = planar ? channel * area : channel, step = planar ? 1 : 3, from = Math.abs(first - channel);
    for (let y = 0; y < size[0]; y++) {
      let to = start + step * y * size[1];
      const end = to + step * size[1], stop = y < placedHeight ? to + step * placedWidth : to;
      for (let i = 3 * y * placedWidth + from; to < stop; to += step, i += 3) data[to] = table[rgb[i]];
      for (; to < end; to += step) data[to] = pad;
    }
  }
  return {data, dims: planar ? [1, 3, ...size] : [1, ...size, 3], place};
}

// RGBA -> RGB of another size with the pixels of cv2.resize(..., interpolation=cv2.INTER_LINEAR), exactly.
// OpenCV computes in fixed point: weights have 11 bits, and four of 19 bits are dropped before rows are mixed.
export function resize(rgba, height, width, toHeight, toWidth) {
  const out = new Uint8Array(3 * toHeight * toWidth);
  if (height === 2 * toHeight && width === 2 * toWidth) {  // OpenCV takes the mean of four pixels here
    for (let y = 0, o = 0; y < toHeight; y++)
      for (let x = 0; x < toWidth; x++)
        for (let c = 0; c < 3; c++) {
          const i = 4 * (2 * y * width + 2 * x) + c, j = i + 4 * width;
          out[o++] = (rgba[i] + rgba[i + 4] + rgba[j] + rgba[j + 4] + 2) >> 2;
        }
    return out;
  }
  if (height === toHeight && width === toWidth) {
    for (let i = 0, o = 0; o < out.length; i += 4) { out[o++] = rgba[i]; out[o++] = rgba[i + 1]; out[o++] = rgba[i + 2]; }
    return out;
  }
  const columns = taps(width, toWidth), rows = taps(height, toHeight);
  for (let x = 0; x < toWidth; x++) {  // at the border OpenCV repeats pixels along rows by the weights, not the position
    if (columns.at[x] < 0 || columns.at[x] >= width - 1) {
      columns.at[x] = columns.at[x] < 0 ? 0 : width - 1;
      columns.low[x] = 2048;
      columns.high[x] = 0;
    }
  }
  const cache = [new Int32Array(3 * toWidth), new Int32Array(3 * toWidth)], cached = [-1, -1];
  const mixed = row => {  // a row of the image, mixed along x
    const y = Math.max(0, Math.min(height - 1, row)), slot = y % 2;
    if (cached[slot] !== y) {
      cached[slot] = y;
      const line = cache[slot];
      for (let x = 0, o = 0; x < toWidth; x++) {
        const i = 4 * (y * width + columns.at[x]), j = columns.high[x] ? i + 4 : i;
        for (let c = 0; c < 3; c++) line[o++] = rgba[i + c] * columns.low[x] + rgba[j + c] * columns.high[x];
      }
    }
    return cache[slot];
  };
  for (let y = 0, o = 0; y < toHeight; y++) {
    const above = mixed(rows.at[y]), below = mixed(rows.at[y] + 1), low = rows.low[y], high = rows.high[y];
    for (let i = 0; i < above.length; i++)
      out[o++] = ((low * (above[i] >> 4) >> 16) + (high * (below[i] >> 4) >> 16) + 2) >> 2;
  }
  return out;
}

// For each position along an axis: the first of two neighbours, and their weights in units of 1 / 2048.
function taps(length, toLength) {
  const scale = 1 / (toLength / length);  // in this order, as OpenCV rounds it
  const at = new Int32Array(toLength), low = new Int32Array(toLength), high = new Int32Array(toLength);
  for (let i = 0; i < toLength; i++) {
    const centre = Math.fround((i + 0.5) * scale - 0.5), share = Math.fround(centre - Math.floor(centre));
    at[i] = Math.floor(centre);
    low[i] = roundHalfEven(2048 * Math.fround(1 - share));
    high[i] = roundHalfEven(2048 * share);
  }
  return {at, low, high};
}

function roundHalfEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2) ? floor + 1 : floor;
}

// For each position along an axis: the nearest neighbour, as cv2.INTER_NEAREST_EXACT takes it.
export function nearest(length, toLength) {
  const step = Math.floor((length * 65536 + Math.floor(toLength / 2)) / toLength);
  const first = Math.floor(step / 2) - length % 2;
  return Int32Array.from({length: toLength}, (_, i) => Math.min(length - 1, Math.floor((step * i + first) / 65536)));
}
