// Pictures: the photo as the network sees it, a map over it, the weights. No state.

// The ramp of nam/figure.py: dark to light in equal steps, so that it reads without colour too.
const RAMP = [[13, 8, 60], [84, 15, 109], [158, 40, 100], [219, 80, 62], [251, 155, 28], [250, 245, 160]];
const SQUARE = 448; // pixels a side that are kept of the photo
const SVG = "http://www.w3.org/2000/svg";

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

/** The colour of `share`, 0 to 1, as red, green, blue. */
function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const below = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[below].map((from, i) => Math.round(from + (RAMP[below + 1][i] - from) * (place - below)));
}

/** The least and the greatest value of a map, H x W. */
export function rangeOf(map) {
  const values = map.flat();
  return [Math.min(...values), Math.max(...values)];
}

/** The photo for the page: `whole` to look at, `square`, its centred crop in grey; null where the browser cannot. */
export async function readPhoto(blob, crop) {
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (bitmap === null) return null;
  const scale = Math.min(1, 900 / Math.max(bitmap.width, bitmap.height));
  const whole = canvasOf(Math.max(1, bitmap.width * scale), Math.max(1, bitmap.height * scale));
  whitened(whole).drawImage(bitmap, 0, 0, whole.width, whole.height);
  const side = Math.max(1, crop * Math.min(bitmap.width, bitmap.height));
  const square = canvasOf(SQUARE, SQUARE);
  const context = whitened(square);
  context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, SQUARE, SQUARE);
  bitmap.close();
  grey(context);
  return { whole, square, crop };
}

/** A canvas' context, all white: transparent parts of a photo lie on white, as the service lays them. */
function whitened(canvas) {
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return context;
}

function grey(context) {
  const image = context.getImageData(0, 0, SQUARE, SQUARE);
  for (let i = 0; i < image.data.length; i += 4) {
    const light = 0.299 * image.data[i] + 0.587 * image.data[i + 1] + 0.114 * image.data[i + 2];
    image.data.fill(light, i, i + 3);
  }
  context.putImageData(image, 0, 0);
}

/** The whole photo, dimmed where the network does not look. */
export function drawPhoto(canvas, { whole, crop }) {
  Object.assign(canvas, { width: whole.width, height: whole.height });
  const context = canvas.getContext("2d");
  const side = crop * Math.min(whole.width, whole.height);
  const [left, top] = [(whole.width - side) / 2, (whole.height - side) / 2];
  context.globalAlpha = 0.3;
  context.drawImage(whole, 0, 0);
  context.globalAlpha = 1;
  context.clearRect(left, top, side, side);
  context.drawImage(whole, left, top, side, side, left, top, side, side);
}

/** A map over the grey photo: its least value darkest, its greatest lightest; every value a rectangle of one colour. */
export function drawMap(canvas, photo, map, opacity) {
  Object.assign(canvas, { width: SQUARE, height: SQUARE });
  const context = canvas.getContext("2d");
  if (photo !== null) context.drawImage(photo.square, 0, 0);
  if (map === null) return;
  context.globalAlpha = photo === null ? 1 : opacity;
  context.imageSmoothingEnabled = false;
  context.drawImage(tinted(map), 0, 0, SQUARE, SQUARE);
}

function tinted(map) {
  const [low, high] = rangeOf(map);
  const small = canvasOf(map[0].length, map.length);
  const image = new ImageData(small.width, small.height);
  map.flat().forEach((value, i) => image.data.set([...colour((value - low) / (high - low || 1)), 255], 4 * i));
  small.getContext("2d").putImageData(image, 0, 0);
  return small;
}

/** The ramp, light at the top. */
export function drawBar(canvas) {
  const values = Array.from({ length: 256 }, (_, i) => [255 - i]);
  Object.assign(canvas, { width: 1, height: 256 }).getContext("2d").drawImage(tinted(values), 0, 0);
}

/** The weights, greatest first, as bars without gaps; the first `marked` of them stand out; a line where all are alike. */
export function drawWeights(weights, marked) {
  const sorted = [...weights].sort((a, b) => b - a);
  const picture = svg("svg", { viewBox: `0 0 ${sorted.length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
  picture.append(bars(sorted, 0, sorted.length, "all"), bars(sorted, 0, Math.min(marked, sorted.length), "marked"));
  const even = 1 - 1 / sorted.length / sorted[0];
  picture.append(svg("line", { x1: 0, x2: sorted.length, y1: even, y2: even }));
  return picture;
}

function bars(sorted, from, to, name) {
  const steps = sorted.slice(from, to).map((weight, i) => `V${1 - weight / sorted[0]}H${from + i + 1}`);
  return svg("path", { class: name, d: `M${from} 1${steps.join("")}V1Z` });
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
