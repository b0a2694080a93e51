// Pixels: from a photograph to the network's grid as Pillow does it, and from numbers to colours.

const POSITIONS = [-1, -0.667, -0.333, 0, 0.333, 0.667, 1];
// ColorBrewer's RdBu, with a pure white for zero.
const COLOURS = [[33, 102, 172], [103, 169, 207], [209, 229, 240], [255, 255, 255], [253, 219, 199], [239, 138, 98], [178, 24, 43]];
const BITS = 22; // of Pillow's fixed-point weights

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  }],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

// First source pixel and whole-numbered weights of every pixel of an axis that is resized.
function weights(given, wanted, interpolation) {
  const scale = given / wanted;
  if (interpolation === "nearest") {
    return Array.from({ length: wanted }, (_, i) => [Math.floor((i + 0.5) * scale), [2 ** BITS]]);
  }
  const [reach, filter] = FILTERS[interpolation];
  const width = Math.max(scale, 1), support = reach * width;
  return Array.from({ length: wanted }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), given);
    const raw = [];
    for (let x = first; x < last; x++) raw.push(filter((x - centre + 0.5) / width));
    const sum = raw.reduce((a, b) => a + b, 0);
    return [first, raw.map((w) => Math.trunc((w / sum) * 2 ** BITS + (w < 0 ? -0.5 : 0.5)))];
  });
}

// One axis: pixel (i, j) of the other and of this axis lies at 3 * (i * step_i + j * step_j).
function resizeAxis(from, to, lines, table, [fromLine, fromPixel], [toLine, toPixel]) {
  for (let line = 0; line < lines; line++) {
    table.forEach(([first, row], pixel) => {
      for (let c = 0; c < 3; c++) {
        let sum = 2 ** (BITS - 1);
        for (let k = 0; k < row.length; k++) sum += row[k] * from[3 * (line * fromLine + (first + k) * fromPixel) + c];
        to[3 * (line * toLine + pixel * toPixel) + c] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** BITS)));
      }
    });
  }
}

const roundHalfEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// The part of a picture that the network sees: {width, height, pixels} of red, green, blue, in the network's size.
export function crop(picture, how) {
  const [height, width] = how.size;
  let wide = width, high = height;
  if (how.resize !== null) {
    const scale = Math.max(how.resize / Math.min(picture.width, picture.height), width / picture.width, height / picture.height);
    wide = Math.max(width, Math.trunc(picture.width * scale + 1e-6));
    high = Math.max(height, Math.trunc(picture.height * scale + 1e-6));
  }
  const left = roundHalfEven((wide - width) / 2), top = roundHalfEven((high - height) / 2);
  const columns = weights(picture.width, wide, how.interpolation).slice(left, left + width);
  const rows = weights(picture.height, high, how.interpolation).slice(top, top + height);
  const narrow = new Uint8ClampedArray(3 * width * picture.height);
  resizeAxis(picture.pixels, narrow, picture.height, columns, [picture.width, 1], [width, 1]);
  const pixels = new Uint8ClampedArray(3 * width * height);
  resizeAxis(narrow, pixels, width, rows, [1, width], [1, width]);
  return { width, height, pixels };
}

// float32 [3, height, width] in the artifact's range.
export function prepared(cut, [low, high]) {
  const count = cut.width * cut.height;
  const image = new Float32Array(3 * count);
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < count; i++) image[c * count + i] = low + (high - low) * Math.fround(cut.pixels[3 * i + c] / 255);
  }
  return image;
}

// The reverse, for a picture that an ascent arrives at.
export function restored(image, width, height, [low, high]) {
  const count = width * height;
  const pixels = new Uint8ClampedArray(3 * count);
  for (let i = 0; i < 3 * count; i++) pixels[i] = ((image[(i % 3) * count + Math.floor(i / 3)] - low) * 255) / (high - low);
  return { width, height, pixels };
}

// Attribution [3, height, width] summed over colours, as a share of its 99th percentile, -1 to 1.
export function shares(attribution, count) {
  const summed = Float64Array.from({ length: count }, (_, i) => attribution[i] + attribution[count + i] + attribution[2 * count + i]);
  const sorted = summed.map(Math.abs).sort();
  const place = 0.99 * (count - 1), below = Math.floor(place);
  const percentile = sorted[below] + (place - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
  const scale = percentile || sorted[count - 1] || 1;
  return summed.map((value) => Math.min(1, Math.max(-1, value / scale)));
}

// Blue over white to red.
export function diverging(share) {
  let i = 1;
  while (i < POSITIONS.length - 1 && share > POSITIONS[i]) i++;
  const t = (share - POSITIONS[i - 1]) / (POSITIONS[i] - POSITIONS[i - 1]);
  return COLOURS[i].map((to, c) => COLOURS[i - 1][c] + t * (to - COLOURS[i - 1][c]));
}

// The photograph in light grey, coloured where the attribution is.
export function blended(cut, share, opacity) {
  const pixels = new Uint8ClampedArray(cut.pixels.length);
  for (let i = 0; i < share.length; i++) {
    const [r, g, b] = cut.pixels.subarray(3 * i, 3 * i + 3);
    const grey = 127.5 + (0.299 * r + 0.587 * g + 0.114 * b) / 2;
    const colour = share[i] > 0 ? COLOURS.at(-1) : COLOURS[0];
    const strength = Math.abs(share[i]) * opacity;
    for (let c = 0; c < 3; c++) pixels[3 * i + c] = grey + strength * (colour[c] - grey);
  }
  return { width: cut.width, height: cut.height, pixels };
}

export function show(canvas, { width, height, pixels }) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    image.data.set(pixels.subarray(3 * i, 3 * i + 3), 4 * i);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Pixels of anything that a canvas draws, over white; the longer side at most `largest`.
export function pixelsOf(source, width, height, largest = 4096) {
  const scale = Math.min(1, largest / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = new Uint8ClampedArray(3 * canvas.width * canvas.height);
  for (let i = 0; i < pixels.length / 3; i++) pixels.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
  return { width: canvas.width, height: canvas.height, pixels };
}
