// From an image to the pixels that the network takes: what metalstm.images does by Pillow, number for number.
// A band is {width, height, values}: the bytes of one channel, row by row.

const BITS = 22; // behind the point of the weights, as in Pillow
const INK = 64; // gray levels between paper and ink

// The bands of RGBA pixels: three, or one of gray.
function bandsOf({ data, width, height }, channels) {
  const bands = Array.from({ length: channels }, () => ({ width, height, values: new Uint8Array(width * height) }));
  for (let k = 0; k < width * height; k++) {
    const [red, green, blue] = [data[4 * k], data[4 * k + 1], data[4 * k + 2]];
    if (channels === 1) {
      bands[0].values[k] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
    } else {
      bands[0].values[k] = red;
      bands[1].values[k] = green;
      bands[2].values[k] = blue;
    }
  }
  return bands;
}

// The pixels for the network: size * size * channels bytes.
function prepare(image, { image_size: size, channels, drawing, centered, framing }) {
  let bands = bandsOf(image, channels);
  if (drawing) bands = bands.map(autocontrast).map((band) => (centered ? centerInk(band) : band));
  const pixels = new Uint8Array(size * size * channels);
  bands.forEach((band, c) => FRAMINGS[framing](band, size).values.forEach((value, k) => (pixels[k * channels + c] = value)));
  return pixels;
}

// How a band becomes a square.
const FRAMINGS = {
  crop(band, size) {
    const side = Math.min(band.width, band.height);
    return resize(band, size, size, (band.width - side) / 2, (band.height - side) / 2, side, side);
  },

  squeeze(band, size) {
    return resize(band, size, size, 0, 0, band.width, band.height);
  },

  // Bars of the color of the border; of a drawing, more paper.
  letterbox(band, size) {
    const { width, height } = band;
    const across = width < height ? roundEven((width / height) * size) : size;
    const down = height < width ? roundEven((height / width) * size) : size;
    if (!across || !down) throw new Error("it is too narrow");
    const small = resize(band, across, down, 0, 0, width, height);
    return paste(small, size, roundEven((size - across) / 2), roundEven((size - down) / 2), borderOf(band));
  },
};

function autocontrast(band) {
  let [low, high] = [255, 0];
  for (const value of band.values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (high <= low) return band;
  const scale = 255 / (high - low);
  const table = Array.from({ length: 256 }, (_, k) => Math.min(Math.max(Math.trunc(k * scale - low * scale), 0), 255));
  return { ...band, values: band.values.map((value) => table[value]) };
}

// The median of the border; each corner counts twice.
function borderOf({ width, height, values }) {
  const border = [];
  for (let x = 0; x < width; x++) border.push(values[x], values[(height - 1) * width + x]);
  for (let y = 0; y < height; y++) border.push(values[y * width], values[y * width + width - 1]);
  border.sort((a, b) => a - b);
  return Math.trunc((border[border.length / 2 - 1] + border[border.length / 2]) / 2);
}

// The center of mass of the ink in the middle of a square that is large enough.
function centerInk(band) {
  const { width, height, values } = band;
  const paper = borderOf(band);
  const [columns, rows] = [new Float64Array(width), new Float64Array(height)];
  values.forEach((value, k) => {
    const ink = Math.abs(value - paper);
    if (ink < INK) return;
    columns[k % width] += ink;
    rows[Math.floor(k / width)] += ink;
  });
  if (!columns.some(Boolean)) return band;
  const sum = (line, weigh) => line.reduce((total, ink, k) => total + ink * weigh(k), 0);
  const middles = [columns, rows].map((line) => sum(line, (k) => k + 0.5) / sum(line, () => 1));
  const reaches = [columns, rows].map((line, k) => {
    const [first, last] = [line.findIndex(Boolean), line.findLastIndex(Boolean) + 1];
    return Math.max(Math.abs(first - middles[k]), Math.abs(last - middles[k]));
  });
  const side = Math.max(width, height, Math.ceil(2 * Math.max(...reaches)) + 1);
  const [left, top] = middles.map((middle) => roundEven(side / 2 - middle));
  return paste(band, side, left, top, paper);
}

// A square of paper with a band on it, cut at its edges.
function paste({ width, height, values }, side, left, top, paper) {
  const square = new Uint8Array(side * side).fill(paper);
  for (let y = Math.max(0, -top); y < Math.min(height, side - top); y++) {
    const [from, to] = [Math.max(0, -left), Math.min(width, side - left)];
    square.set(values.subarray(y * width + from, y * width + to), (y + top) * side + left + from);
  }
  return { width: side, height: side, values: square };
}

// Pillow's resize with the filter Lanczos of a box that begins at (left, top).
function resize(band, width, height, left, top, boxWidth, boxHeight) {
  return squeeze(squeeze(band, weights(left, boxWidth, width, band.width)), weights(top, boxHeight, height, band.height));
}

// What each of `n` numbers takes from a row of `length`: the first place, and whole weights from there.
function weights(start, span, n, length) {
  const scale = span / n;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: n }, (_, k) => {
    const center = start + (k + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 3 * stretch + 0.5));
    const last = Math.min(length, Math.trunc(center + 3 * stretch + 0.5));
    const all = Array.from({ length: last - first }, (_, j) => lanczos((j + first - center + 0.5) * (1 / stretch)));
    const total = all.reduce((sum, weight) => sum + weight, 0);
    const whole = all.map((weight) => (weight / total) * 2 ** BITS).map((w) => Math.trunc(w < 0 ? w - 0.5 : w + 0.5));
    return { first, whole };
  });
}

function lanczos(x) {
  const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
  return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
}

// Each row by the weights; the result lies on its side, so that doing it twice gives an image that is upright.
function squeeze({ width, height, values }, all) {
  const squeezed = new Uint8ClampedArray(all.length * height);
  all.forEach(({ first, whole }, k) => {
    for (let y = 0; y < height; y++) {
      let sum = 2 ** (BITS - 1);
      for (let j = 0, at = y * width + first; j < whole.length; j++) sum += values[at + j] * whole[j];
      squeezed[k * height + y] = sum >> BITS;
    }
  });
  return { width: height, height: all.length, values: squeezed };
}

// As Python rounds: a half goes to the even number.
function roundEven(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 ? floor + 1 : floor;
}
