// The page: loads the artifact once, then explains every picture that it is given.
import { classOf } from "./classes.js";
import { blended, crop, diverging, pixelsOf, prepared, restored, shares, show } from "./pictures.js";

const element = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const state = { ort: null, session: null, about: null, picture: null, cut: null, target: -1, settings: {}, share: null, busy: false, again: false };
window.sptrace = { state, result: null }; // for tests, and for the curious

function say(text, error = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", error);
}

// Two names of one logit: class 1 is the logit, class 0 its negative.
const isPair = (logits) => logits.length === 1 && state.about.description.labels?.length === 2;
const link = () => state.about.description.link ?? "softmax";
const label = (index) => state.about.description.labels?.[index] ?? `${link() === "none" ? "output" : "class"} ${index}`;

// What each class has: the logits; of one logit for two classes its negative and itself.
function scores(logits) {
  const [only] = logits;
  return isPair(logits) ? [link() === "identity" ? 1 - only : -only, only] : Array.from(logits);
}

// What the link makes of the scores; null where they are plain values (sptrace/artifact/links.py).
function probabilities(scores) {
  if (link() === "none") return null;
  if (link() === "identity") return scores;
  if (link() === "sigmoid") return scores.map((score) => 1 / (1 + Math.exp(-score)));
  const largest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// What is said of a class: its probability, or its value.
function figure(scores, index) {
  const shares = probabilities(scores);
  return shares ? `${(100 * shares[index]).toFixed(1)} %` : Number(scores[index].toPrecision(4)).toString();
}

async function load() {
  const backend = query.get("backend") === "webgpu" ? "webgpu" : "wasm";
  const most = self.crossOriginIsolated ? navigator.hardwareConcurrency ?? 1 : 1;
  const threads = Math.min(Math.max(1, Number(query.get("threads")) || most), most);
  offerBackends(backend, threads, most);
  state.about = await (await fetch("explainer.json")).json();
  const { description } = state.about;
  element("network").textContent = description.network;
  document.title = `Why ${description.network}`;
  element("about").textContent =
    `${description.program}, written by sptrace ${description.version}; weights: ${description.weights}; ` +
    `${description.classes} classes; ${description.preprocessing.size.join(" × ")} pixels`;
  offerLabels();
  offerSettings();
  say("Loading the artifact…");
  state.ort = await import(backend === "webgpu" ? "./ort/ort.webgpu.min.mjs" : "./ort/ort.wasm.min.mjs");
  state.ort.env.wasm.wasmPaths = new URL("ort/", location.href).href;
  state.ort.env.wasm.numThreads = threads;
  state.ort.env.logLevel = "error";
  state.session = await state.ort.InferenceSession.create("explainer.onnx", { executionProviders: [backend], logSeverityLevel: 3 });
  say("Ready: choose a picture, or drop one.");
  if (state.picture) explain();
}

function offerBackends(backend, threads, most) {
  const counts = [...new Set([1, 2, 4, 8, most])].filter((count) => count <= most).sort((a, b) => a - b);
  const choices = counts.map((count) => [`?threads=${count}`, `CPU, ${count} thread${count > 1 ? "s" : ""}`, backend === "wasm" && count === threads]);
  if (navigator.gpu) choices.push(["?backend=webgpu", "GPU (WebGPU)", backend === "webgpu"]);
  element("backend").append(...choices.map(([value, text, selected]) => new Option(text, value, selected, selected)));
  element("backend").onchange = (event) => location.assign(event.target.value);
}

function offerLabels() {
  const labels = state.about.description.labels ?? [];
  element("labels").append(...labels.map((text, index) => new Option(`${index}`, text)));
  element("search").onchange = (event) => {
    if (!event.target.value.trim()) return;
    const { index, error } = classOf(event.target.value, labels, labels.length || state.about.description.classes);
    if (error) return say(error, true);
    state.target = index;
    explain();
  };
}

// A slider for each number that the program takes when it runs.
function offerSettings() {
  for (const [name, { default: given, dtype, help }] of Object.entries(state.about.settings)) {
    state.settings[name] = given;
    const whole = dtype === "int64";
    const most = whole ? Math.max(10, 4 * given) : given === 0 ? 1 : 4 * given;
    const line = document.createElement("label");
    line.title = help;
    const slider = Object.assign(document.createElement("input"), { type: "range", id: `setting-${name}`, min: whole ? 1 : 0, max: most, step: whole ? 1 : most / 200, value: given });
    const shown = document.createElement("output");
    shown.textContent = given;
    slider.oninput = () => { shown.textContent = slider.value; };
    slider.onchange = () => { state.settings[name] = Number(slider.value); explain(); };
    line.append(`${name} `, slider, " ", shown);
    element("settings").append(line);
    element("settings").hidden = false;
  }
}

function feeds() {
  const { ort, about, picture, cut } = state;
  const { preprocessing, input } = about.description;
  const image = input === "uint8"
    ? new ort.Tensor("uint8", new Uint8Array(picture.pixels), [1, picture.height, picture.width, 3])
    : new ort.Tensor("float32", prepared(cut, preprocessing.input_range), [1, 3, cut.height, cut.width]);
  const result = { image, target: new ort.Tensor("int64", [BigInt(state.target)], [1]) };
  for (const [name, { dtype }] of Object.entries(about.settings)) {
    const number = state.settings[name];
    result[name] = new ort.Tensor(dtype, dtype === "int64" ? [BigInt(number)] : [number], []);
  }
  return result;
}

async function explain() {
  if (!state.session || !state.picture) return;
  if (state.busy) { state.again = true; return; }
  state.busy = true;
  document.body.setAttribute("aria-busy", "true");
  say("Explaining…");
  await new Promise((resolve) => setTimeout(resolve, 20)); // so that the line is drawn
  try {
    const start = performance.now();
    const answers = await state.session.run(feeds(), state.about.outputs.filter((name) => name !== "overlay"));
    const milliseconds = performance.now() - start;
    draw(answers);
    window.sptrace.result = {
      milliseconds,
      target: state.explained,
      ...Object.fromEntries(Object.entries(answers).map(([name, tensor]) => [name, Array.from(tensor.data)])),
    };
    say(`Explained in ${milliseconds.toFixed(0)} ms.`);
  } catch (error) {
    say(`The artifact could not be run: ${error.message ?? error}`, true);
  } finally {
    state.busy = false;
    document.body.removeAttribute("aria-busy");
  }
  if (state.again) { state.again = false; explain(); }
}

function draw(answers) {
  const { cut, about } = state;
  const given = scores(answers.logits.data);
  const order = given.map((_, index) => index).sort((a, b) => given[b] - given[a]);
  state.explained = state.target >= 0 ? state.target : isPair(answers.logits.data) ? 1 : order[0];
  const listed = order.slice(0, 5);
  if (!listed.includes(state.explained)) listed.push(state.explained);
  element("top").replaceChildren(...listed.map((index) => classButton(index, figure(given, index), probabilities(given)?.[index] ?? 0)));
  element("explained").textContent = label(state.explained);
  state.share = shares(answers.attribution.data, cut.width * cut.height);
  const heat = new Uint8ClampedArray(cut.pixels.length);
  state.share.forEach((share, i) => heat.set(diverging(share), 3 * i));
  show(element("photograph"), cut);
  show(element("attribution"), { ...cut, pixels: heat });
  drawOverlay();
  element("arrived").hidden = !answers.image_out;
  if (answers.image_out) {
    show(element("image_out"), restored(answers.image_out.data, cut.width, cut.height, about.description.preprocessing.input_range));
    const after = answers.logits_out && figure(scores(answers.logits_out.data), state.explained);
    element("after").textContent = after === undefined ? "" : `(${label(state.explained)}: ${after})`;
  }
  element("result").hidden = false;
}

function classButton(index, text, share) {
  const button = document.createElement("button");
  button.append(Object.assign(document.createElement("span"), { textContent: label(index) }));
  button.append(Object.assign(document.createElement("span"), { textContent: text }));
  button.style.setProperty("--share", `${100 * share}%`);
  button.setAttribute("aria-pressed", index === state.explained);
  button.onclick = () => { state.target = index; explain(); };
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function drawOverlay() {
  if (state.share) show(element("overlay"), blended(state.cut, state.share, element("opacity").value / 100));
}

function take(picture) {
  if (Math.max(picture.width, picture.height) > 100 * Math.min(picture.width, picture.height)) return say("The picture is too thin: crop it first.", true);
  state.picture = picture;
  state.cut = crop(picture, state.about.description.preprocessing);
  state.target = -1;
  element("search").value = "";
  explain();
}

async function open(file) {
  if (!file || !state.about) return;
  try {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    take(pixelsOf(bitmap, bitmap.width, bitmap.height));
  } catch {
    say(`${file.name} is not a picture that this browser can read.`, true);
  }
}

function watchPictures() {
  element("file").onchange = (event) => { open(event.target.files[0]); event.target.value = ""; };
  element("choose").onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); element("file").click(); } };
  document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("dragging"); };
  document.ondragleave = () => document.body.classList.remove("dragging");
  document.ondrop = (event) => { event.preventDefault(); document.body.classList.remove("dragging"); open(event.dataTransfer.files[0]); };
  document.onpaste = (event) => open(event.clipboardData.files[0]);
  element("opacity").oninput = drawOverlay;
  if (!navigator.mediaDevices) return;
  const video = element("video"), camera = element("camera"), shoot = element("shoot");
  const stop = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    video.hidden = shoot.hidden = true;
    camera.textContent = "Camera";
  };
  camera.hidden = false;
  camera.onclick = async () => {
    if (video.srcObject) return stop();
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      await video.play();
      video.hidden = shoot.hidden = false;
      camera.textContent = "Close the camera";
    } catch (error) {
      say(`No camera: ${error.message}`, true);
    }
  };
  shoot.onclick = () => { take(pixelsOf(video, video.videoWidth, video.videoHeight)); stop(); };
}

watchPictures();
load().catch((error) => say(`The page could not be loaded: ${error.message ?? error}`, true));
