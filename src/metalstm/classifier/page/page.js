// The page: images from files or the camera, and the classifier's answers.

const PIXELS = 2 ** 24; // of an image; a larger one is scaled down first, because some browsers cannot hold it
const SHOWN = 10; // classes of an answer
const NAMED = 30; // classes at the top of the page
const SIDE = 96; // pixels of a picture beside its answer
const LIVE_MS = 150; // between two answers to the camera

const find = (id) => document.getElementById(id);
const about = JSON.parse(find("about").textContent);
const video = document.querySelector("video");
let stream = null; // of the camera, while it is open

// What `gzip` and base64 packed into the page.
async function unpack(id) {
  const bytes = Uint8Array.from(atob(find(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function start() {
  const script = new Blob([await unpack("runtime")], { type: "text/javascript" });
  const { env, InferenceSession, Tensor } = await import(URL.createObjectURL(script));
  env.wasm.numThreads = 1; // more need a server's headers
  env.wasm.wasmBinary = await unpack("wasm");
  const session = await InferenceSession.create(await unpack("model"));
  const { image_size: size, channels } = about;
  return async (pixels) => {
    const { probabilities, score } = await session.run({ images: new Tensor("uint8", pixels, [1, size, size, channels]) });
    return { probabilities: [...probabilities.data], score: score ? score.data[0] : Math.max(...probabilities.data) };
  };
}

// A picture on white, at a size.
function canvasOf(source, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  return canvas;
}

// The answer for an image, one after another: the network takes one at a time.
let last = Promise.resolve();
function classify(image) {
  const next = last.then(async () => (await run)(prepare(image, about)));
  last = next.catch(() => {});
  return next;
}

function node(tag, name, ...parts) {
  const made = Object.assign(document.createElement(tag), { className: name });
  made.append(...parts);
  return made;
}

function percent(probability) {
  return `${(100 * probability).toFixed(probability > 0.995 || probability < 0.005 ? 1 : 0)} %`;
}

// A card with a picture. `answer` fills it: from a canvas, or with what is wrong.
function makeCard(name) {
  const card = node("article", "card", node("div", "picture"), node("div", "answer", node("p", "", `${name} …`)));
  card.answer = async (canvas) => {
    const scale = SIDE / Math.max(canvas.width, canvas.height);
    const [width, height] = [canvas.width, canvas.height].map((side) => Math.max(1, Math.round(side * scale)));
    const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    Object.assign(card, await classify(image));
    card.firstChild.replaceChildren(canvasOf(canvas, width, height));
    card.name = name;
    show(card);
  };
  card.fail = (reason) => card.lastChild.replaceChildren(node("p", "wrong", `${name}: ${reason}`));
  return card;
}

function show(card) {
  const order = card.probabilities.map((_, k) => k).sort((a, b) => card.probabilities[b] - card.probabilities[a]);
  const rejects = about.threshold !== null && find("reject").querySelector("input").checked;
  const isKnown = !rejects || card.score >= about.threshold;
  const bars = order.slice(0, SHOWN).map((k) => {
    const bar = node("p", "bar", node("span", "", about.classes[k]), node("b", "", percent(card.probabilities[k])));
    bar.style.setProperty("--share", `${100 * card.probabilities[k]}%`);
    return bar;
  });
  const more = order.length > SHOWN ? [node("p", "name", `and ${order.length - SHOWN} more classes`)] : [];
  const said = node("h2", isKnown ? "" : "none", isKnown ? about.classes[order[0]] : "none of these");
  card.lastChild.replaceChildren(said, ...bars, ...more, node("p", "name", card.name));
}

// An image file as a canvas, upright.
async function read(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error("this browser cannot read it as an image: save it as JPEG or PNG");
  });
  const scale = Math.min(1, Math.sqrt(PIXELS / (bitmap.width * bitmap.height)));
  const canvas = canvasOf(bitmap, Math.floor(bitmap.width * scale), Math.floor(bitmap.height * scale));
  bitmap.close();
  return canvas;
}

async function open(files) {
  const cards = [...files].map((file) => makeCard(file.name || "picture"));
  find("answers").prepend(...cards);
  for (const [k, file] of [...files].entries()) {
    try {
      await cards[k].answer(await read(file));
    } catch (error) {
      cards[k].fail(error.message);
    }
  }
}

const REFUSED = {
  NotAllowedError: "This page may not use the camera: allow it in the browser's settings for this page.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera is in use by another program.",
};

async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    say("This browser gives no camera to a file or to http. Choose images instead (a phone offers its camera there), or open this page by https.");
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`${REFUSED[error.name] ?? `No camera: ${error.message}.`} You can choose images instead.`);
    return;
  }
  say("");
  video.srcObject = stream;
  find("live").hidden = false;
  await video.play();
  const card = makeCard("camera");
  find("live").append(card);
  while (stream) {
    await card.answer(canvasOf(video, video.videoWidth, video.videoHeight)).catch((error) => card.fail(error.message));
    await new Promise((wake) => setTimeout(wake, LIVE_MS));
  }
  card.remove();
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = video.srcObject = null;
  find("live").hidden = true;
}

function keep() {
  const card = makeCard(`picture of ${new Date().toLocaleTimeString()}`);
  find("answers").prepend(card);
  card.answer(canvasOf(video, video.videoWidth, video.videoHeight)).catch((error) => card.fail(error.message));
}

function say(text) {
  find("message").textContent = text;
}

const run = start();
run.then(
  () => say(""),
  (error) => say(`This browser cannot run the classifier (${error.message}): it needs Chrome 91, Firefox 113 or Safari 16.4.`),
);
const hidden = about.classes.length - NAMED > 0 ? ", …" : "";
find("classes").textContent = `Knows ${about.classes.length} classes: ${about.classes.slice(0, NAMED).join(", ")}${hidden}`;
if (about.threshold !== null) {
  find("reject").hidden = false;
  find("reject").addEventListener("change", () => find("answers").querySelectorAll(".card").forEach((card) => card.name && show(card)));
}
find("files").addEventListener("change", async (event) => {
  await open(event.target.files);
  event.target.value = "";
});
find("camera").addEventListener("click", () => stream || openCamera());
find("close").addEventListener("click", closeCamera);
find("keep").addEventListener("click", keep);
for (const name of ["dragover", "dragleave", "drop"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", name === "dragover");
  });
}
addEventListener("drop", (event) => open(event.dataTransfer.files));
addEventListener("paste", (event) => open(event.clipboardData.files));
