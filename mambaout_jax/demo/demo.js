// Runs model.onnx on pictures, drawings and the webcam, with the preprocessing of the evaluation.
import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // threads need headers that static hosts do not send
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;

const about = JSON.parse(document.getElementById("description").textContent);
const [, channels, height, width] = about.input.shape;
const { logits: logitsShape } = about.outputs;
// Whether there is a row of logits for each pixel, and whether there are detections with boxes.
const isMap = logitsShape?.length === 4, isDetection = !logitsShape;
const MAX_SIDE = 1024; // of a picture on the page; larger ones are reduced by the browser first
const MAX_ELONGATION = 200; // of a picture; of longer ones, the middle is used, as in the evaluation
const SHOWN = 5; // classes in the list
const SHOWN_SCORE = 0.5, SHOWN_DETECTIONS = 20;
const READY = "Draw something, or open a picture.";
const element = (id) => document.getElementById(id);
const input = element("input"), overlay = element("overlay"), context = input.getContext("2d", { willReadFrequently: true });

// Kernels and their supports as in Pillow's resampling, which the evaluation uses.
const FILTERS = {
  nearest: null,
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    x = Math.abs(x);
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  }],
  lanczos: [3, (x) => (x === 0 ? 1 : Math.abs(x) >= 3 ? 0 : sinc(x) * sinc(x / 3))],
};
const sinc = (x) => Math.sin(Math.PI * x) / (Math.PI * x);

// Resize one axis of pixels {data, height, width, channels}, and round to integers.
function resizeAxis(image, size, vertical) {
  const { data, channels: c } = image;
  const old = vertical ? image.height : image.width;
  if (old === size) return image;
  const scale = old / size, stretch = about.input.antialias ? Math.max(scale, 1) : 1, filter = FILTERS[about.input.interpolation];
  const result = { height: vertical ? size : image.height, width: vertical ? image.width : size, channels: c };
  result.data = new Uint8Array(result.height * result.width * c);
  const lines = vertical ? image.width : image.height;
  for (let i = 0; i < size; i++) {
    const center = (i + 0.5) * scale;
    let first = Math.min(old - 1, Math.floor(center)), weights = [1];
    if (filter) {
      const [support, kernel] = filter;
      first = Math.max(0, Math.floor(center - support * stretch + 0.5));
      const last = Math.min(old, Math.floor(center + support * stretch + 0.5));
      weights = Array.from({ length: last - first }, (_, k) => kernel((first + k - center + 0.5) / stretch));
      const sum = weights.reduce((a, b) => a + b);
      weights = weights.map((weight) => weight / sum);
    }
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < c; channel++) {
        let total = 0;
        for (let k = 0; k < weights.length; k++) {
          const [y, x] = vertical ? [first + k, line] : [line, first + k];
          total += weights[k] * data[(y * image.width + x) * c + channel];
        }
        const [y, x] = vertical ? [i, line] : [line, i];
        result.data[(y * result.width + x) * c + channel] = Math.min(255, Math.max(0, Math.floor(total + 0.5)));
      }
    }
  }
  return result;
}

// Round like Python: halves to the even neighbor.
const roundEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
const gray = (r, g, b) => (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; // as Pillow's mode L
const FILL = [124, 116, 104]; // around pictures that are smaller than the crop: ImageNet's mean color

// The size to which a picture is resized before its center is cropped.
function resizedSize(image) {
  if (about.input.crop_mode === "squash") return crop([height, width]);
  const target = crop([height, width]);
  if (about.input.crop_mode === "border") {
    const factor = Math.max(image.height / target[0], image.width / target[1]);
    return [image.height / factor, image.width / factor].map((side) => Math.max(1, roundEven(side)));
  }
  if (target[0] !== target[1]) {
    const factor = Math.min(image.height / target[0], image.width / target[1]);
    return [roundEven(image.height / factor), roundEven(image.width / factor)];
  }
  return image.width <= image.height
    ? [Math.floor((target[0] * image.height) / image.width), target[0]]
    : [target[0], Math.floor((target[0] * image.width) / image.height)];
}
const crop = (size) => size.map((side) => Math.floor(side / about.input.crop_pct));

// Return the middle of RGBA data that is much longer than wide, or the other way round.
function limitElongation({ data, height, width }) {
  const longest = MAX_ELONGATION * Math.min(height, width);
  const [h, w] = [Math.min(height, longest), Math.min(width, longest)];
  if (h === height && w === width) return { data, height, width };
  const top = (height - h) >> 1, left = (width - w) >> 1, kept = new Uint8ClampedArray(4 * h * w);
  for (let y = 0; y < h; y++) {
    const start = 4 * ((y + top) * width + left);
    kept.set(data.subarray(start, start + 4 * w), 4 * y * w);
  }
  return { data: kept, height: h, width: w };
}

// Return the pixels of RGBA data as the model takes them: resized, cropped, (channels, height, width).
export function prepare(picture) {
  const { data, height: h, width: w } = about.input.crop_mode === "squash" ? picture : limitElongation(picture);
  let image = { data: new Uint8Array(h * w * channels), height: h, width: w, channels };
  for (let i = 0; i < h * w; i++) {
    const [r, g, b] = data.subarray(4 * i, 4 * i + 3);
    if (channels === 1) image.data[i] = gray(r, g, b);
    else image.data.set([r, g, b], 3 * i);
  }
  const [rows, columns] = resizedSize(image);
  image = resizeAxis(resizeAxis(image, columns, false), rows, true);
  const offset = (extent, size) => (extent >= size ? roundEven((extent - size) / 2) : -((size - extent) >> 1));
  const top = offset(rows, height), left = offset(columns, width);
  const pixels = new Uint8Array(channels * height * width);
  const fill = channels === 1 ? [gray(...FILL)] : FILL;
  for (let channel = 0; channel < channels; channel++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const [row, column] = [y + top, x + left];
        const inside = row >= 0 && row < rows && column >= 0 && column < columns;
        pixels[(channel * height + y) * width + x] = inside
          ? image.data[(row * columns + column) * channels + channel]
          : fill[channel];
      }
    }
  }
  return pixels;
}

let session, loaded = false;
// Return the outputs for the pixels that `prepare` returns, by name.
export async function run(pixels) {
  session ??= ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  const images = new ort.Tensor("uint8", pixels, [1, channels, height, width]);
  const outputs = await (await session).run({ images });
  return Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, data]));
}

const nameOf = (index) => about.class_descriptions?.[index] ?? String(index);
const colorOf = (index) => about.class_colors?.[index] ?? `hsl(${(index * 222.5) % 360} 80% 55%)`;

function showRows(rows) {
  element("classes").replaceChildren(...rows.map(({ index, share }) => {
    const row = document.createElement("li"), name = document.createElement("span"), bar = document.createElement("span");
    if (isMap || isDetection) {
      const swatch = document.createElement("i");
      swatch.className = "swatch";
      swatch.style.background = colorOf(index);
      name.append(swatch);
    }
    name.append(nameOf(index));
    bar.className = "share";
    bar.append(document.createElement("i"));
    bar.firstChild.style.width = `${100 * share}%`;
    const number = document.createElement("span");
    number.className = "number";
    number.textContent = `${(100 * share).toFixed(1)} %`;
    row.append(name, bar, number);
    return row;
  }));
}

function showClasses({ logits }) {
  const largest = Math.max(...logits), exps = Array.from(logits, (value) => Math.exp(value - largest));
  const sum = exps.reduce((a, b) => a + b);
  showRows(exps.map((value, index) => ({ index, share: value / sum })).sort((a, b) => b.share - a.share).slice(0, SHOWN));
}

function showMap({ logits }) {
  const area = height * width, count = logits.length / area, pixels = new Array(count).fill(0);
  const image = new ImageData(width, height);
  const colors = Array.from({ length: count }, (_, index) => rgb(colorOf(index)));
  for (let i = 0; i < area; i++) {
    let best = 0;
    for (let index = 1; index < count; index++) if (logits[index * area + i] > logits[best * area + i]) best = index;
    pixels[best]++;
    image.data.set(colors[best], 4 * i);
  }
  [overlay.width, overlay.height] = [width, height];
  overlay.getContext("2d").putImageData(image, 0, 0);
  showRows(pixels.map((value, index) => ({ index, share: value / area }))
    .filter(({ share }) => share > 0).sort((a, b) => b.share - a.share).slice(0, SHOWN));
}

// Draw the boxes and masks of detections, and list them.
function showDetections({ boxes, scores, classes, valid, mask_logits: masks }) {
  const side = about.outputs.mask_logits.at(-1), area = side * side;
  const enlarged = Math.max(1, MAX_SIDE / Math.max(input.width, input.height)); // for sharp lines and text
  [overlay.width, overlay.height] = [input.width, input.height].map((extent) => Math.round(extent * enlarged));
  const canvas = overlay.getContext("2d"), scale = Math.max(overlay.width, overlay.height) / 512;
  const [toX, toY] = [overlay.width / width, overlay.height / height];
  const shown = Array.from(scores.keys()).filter((i) => valid[i] && scores[i] >= SHOWN_SCORE).slice(0, SHOWN_DETECTIONS);
  for (const i of shown) {
    const color = rgb(colorOf(classes[i])), mask = new ImageData(side, side);
    for (let k = 0; k < area; k++) mask.data.set([...color.slice(0, 3), masks[i * area + k] >= 0 ? 115 : 0], 4 * k);
    const [x1, y1, x2, y2] = [0, 1, 2, 3].map((k) => boxes[4 * i + k] * (k % 2 ? toY : toX));
    const stamp = new OffscreenCanvas(side, side);
    stamp.getContext("2d").putImageData(mask, 0, 0);
    canvas.drawImage(stamp, x1, y1, x2 - x1, y2 - y1);
    Object.assign(canvas, { strokeStyle: colorOf(classes[i]), lineWidth: 2 * scale, font: `${14 * scale}px sans-serif` });
    canvas.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const label = `${nameOf(classes[i])} ${Math.round(100 * scores[i])} %`, top = Math.max(0, y1 - 18 * scale);
    canvas.fillStyle = colorOf(classes[i]);
    canvas.fillRect(x1, top, canvas.measureText(label).width + 6 * scale, 18 * scale);
    canvas.fillStyle = color[0] + color[1] + color[2] > 380 ? "black" : "white";
    canvas.fillText(label, x1 + 3 * scale, top + 14 * scale);
  }
  showRows(shown.map((i) => ({ index: classes[i], share: scores[i] })));
  return shown.length ? "" : ", no object found";
}

const showOutputs = isDetection ? showDetections : isMap ? showMap : showClasses;

function rgb(color) {
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = color;
  probe.fillRect(0, 0, 1, 1);
  return probe.getImageData(0, 0, 1, 1).data;
}

// Counts what was opened, drawn or cleared: what was begun for an earlier picture has no effect any more.
let generation = 0;
let running = false, again = false;
// Predict what is on the canvas; while a prediction runs, at most one more is waiting.
async function predict() {
  if (running) return void (again = true);
  running = true;
  try {
    do {
      again = false;
      const start = performance.now(), shown = generation;
      const outputs = await run(prepare(context.getImageData(0, 0, input.width, input.height)));
      if (shown !== generation) continue;
      const remark = showOutputs(outputs) ?? "";
      say(`${about.model}, ${Math.round(performance.now() - start)} ms${remark}`);
      element("status").dataset.predictions = 1 + Number(element("status").dataset.predictions ?? 0);
      await new Promise(requestAnimationFrame);
    } while (again);
  } catch (error) {
    say(`The model cannot be run: ${error.message}`, true);
  } finally {
    running = false;
  }
}

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

function clear() {
  stopCamera();
  [input.width, input.height] = [512, Math.round((512 * height) / width)];
  context.fillStyle = "black";
  context.fillRect(0, 0, input.width, input.height);
  overlay.width = overlay.width; // clears it
  element("classes").replaceChildren();
  again = false;
  if (loaded) say(READY);
}

function show(picture, w, h) {
  const factor = Math.min(1, MAX_SIDE / Math.max(w, h));
  [input.width, input.height] = [Math.max(1, Math.round(w * factor)), Math.max(1, Math.round(h * factor))];
  context.imageSmoothingQuality = "high"; // the size of the canvas resets it
  context.drawImage(picture, 0, 0, input.width, input.height);
}

async function open(file) {
  stopCamera();
  const mine = generation;
  try {
    const imageOrientation = about.input.exif_orientation ? "from-image" : "none";
    const picture = await createImageBitmap(file, { imageOrientation });
    if (mine !== generation) return;
    overlay.width = overlay.width;
    show(picture, picture.width, picture.height);
    await predict();
  } catch {
    say(`${file.name ?? "The clipboard"} is not a picture that this browser can read.`, true);
  }
}

let stream;
function stopCamera() {
  generation++;
  stream?.getTracks().forEach((track) => track.stop());
  stream = undefined;
  element("camera").textContent = "Webcam";
}

async function startCamera() {
  stopCamera();
  if (!window.isSecureContext) return say("The webcam works only if the page is served over https:// or from localhost.", true);
  const mine = generation, video = document.createElement("video");
  try {
    const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if (mine !== generation) return opened.getTracks().forEach((track) => track.stop());
    stream = opened;
    for (const track of stream.getTracks()) track.addEventListener("ended", () => mine === generation && stopCamera());
    Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
    element("camera").textContent = "Stop";
    await video.play();
  } catch {
    if (mine !== generation) return;
    stopCamera();
    return say("No webcam is available, or its use was not allowed.", true);
  }
  while (mine === generation) {
    show(video, video.videoWidth, video.videoHeight);
    await predict();
    await new Promise(requestAnimationFrame);
  }
}

function draw() {
  let last;
  const point = (event) => {
    const box = input.getBoundingClientRect();
    return [((event.clientX - box.left) * input.width) / box.width, ((event.clientY - box.top) * input.height) / box.height];
  };
  const line = (to) => {
    Object.assign(context, { strokeStyle: "white", lineWidth: input.width / 10, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...to);
    context.stroke();
    last = to;
  };
  input.addEventListener("pointerdown", (event) => {
    stopCamera();
    input.setPointerCapture(event.pointerId);
    last = point(event);
    line(last);
  });
  input.addEventListener("pointermove", (event) => {
    if (last) line(point(event));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    input.addEventListener(name, () => {
      if (last) predict();
      last = undefined;
    });
  }
}

element("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) open(target.files[0]);
  target.value = ""; // so that the same file can be opened again
});
element("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
element("clear").addEventListener("click", clear);
document.addEventListener("paste", (event) => event.clipboardData.files[0] && open(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  element("stage").classList.add("drop");
});
document.addEventListener("dragleave", () => element("stage").classList.remove("drop"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element("stage").classList.remove("drop");
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
});
overlay.classList.toggle("opaque", isDetection);
draw();
clear();
run(new Uint8Array(channels * height * width)).then(
  () => {
    loaded = true;
    say(READY);
  },
  (error) => say(`The model cannot be loaded: ${error.message}`, true),
);
