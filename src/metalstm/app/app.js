// The cards of the page: one for each class, with a pad to draw on and the images so far. This code runs inside a
// gr.HTML of gradio, which provides `element`, `props`, `upload` and `watch`. `props.value` is a list of
// {name, images}. An image is {url} if it is a drawing, and {url, path} if it is an uploaded file; a file has at most
// `props.bytes`. With `props.query` there is one card, for images to be classified, and its value follows the pen.

const PIXELS = 280; // side of a pad
const PEN = PIXELS / 22; // width of a line: a little more than one of the 28 pixels that the learner sees
const FOLLOW_MS = 120; // time between two updates of the value while the pen moves

const CARD = `
  <div class="top">
    <textarea class="name" rows="1" aria-label="Name of the class" placeholder="name" maxlength="60" spellcheck="false"></textarea>
    <button class="remove" title="Remove this class">×</button>
  </div>
  <div class="pad">
    <canvas width="${PIXELS}" height="${PIXELS}" aria-label="Pad to draw on"></canvas>
    <span>draw here<br>or drop images</span>
    <video playsinline muted hidden></video>
  </div>
  <div class="tools">
    <button class="next" title="Keep this drawing, draw another">+ Next</button>
    <button class="files" title="Choose image files">Files</button>
    <button class="camera" title="Use the camera; press again to take a picture">Camera</button>
    <button class="clear" title="Clear the pad; press again to remove the images">Clear</button>
    <input type="file" accept="image/*" multiple hidden>
  </div>
  <p class="refused"></p>
  <div class="images"></div>`;

const MORE = `
  <button class="add">+ Add a class</button>
  <button class="files" title="A folder that holds a folder of images for each class">Open a folder</button>
  <button class="clear">Start over</button>
  <input type="file" webkitdirectory hidden>`;

const IMAGE = `
  <canvas aria-label="The image; draw a square on it to crop it"></canvas>
  <p>To crop it, drag over a part.</p>
  <label>Class <select></select></label>
  <div class="tools">
    <button class="crop" disabled>Crop</button>
    <button class="remove">Remove</button>
    <button class="close">Close</button>
  </div>`;
const LARGE = 1024; // pixels of the longer side of an image that was cropped

let cards = [];
const more = makeNode("more", MORE);

function makeNode(name, html) {
  const node = document.createElement("div");
  node.className = name;
  node.innerHTML = html;
  return node;
}

function on(node, selector, event, handle) {
  node.querySelector(selector).addEventListener(event, handle);
}

function publish() {
  props.value = cards.map((card) => ({ name: card.name.value.trim(), images: [...card.drawing(), ...card.images] }));
}

// A window with an image of a card, to crop, relabel or remove it.
async function openImage(card, image) {
  const dialog = document.createElement("dialog");
  dialog.innerHTML = IMAGE;
  const [canvas, select, crop] = ["canvas", "select", ".crop"].map((name) => dialog.querySelector(name));
  const context = canvas.getContext("2d");
  const picture = new Image();
  const replace = (others) => ((card.images = card.images.flatMap((i) => (i === image ? others : i))), card.show());
  picture.src = image.url;
  canvas.className = image.path ? "photo" : "drawing";
  select.replaceChildren(...cards.map((other, k) => new Option(other.name.value || "(no name)", k, false, other === card)));
  dialog.querySelector("label").hidden = Boolean(props.query);
  dialog.addEventListener("close", () => dialog.remove());
  on(dialog, ".close", "click", () => dialog.close());
  on(dialog, ".remove", "click", () => (replace([]), dialog.close()));
  select.addEventListener("change", () => {
    const other = cards[select.value];
    replace([]);
    other.images.push(image);
    other.show();
    dialog.close();
  });
  element.append(dialog);
  dialog.showModal();
  if (!(await picture.decode().then(() => true, () => false))) return; // it can be removed all the same
  const scale = Math.min(1, LARGE / Math.max(picture.naturalWidth, picture.naturalHeight));
  [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight].map((n) => Math.max(1, Math.round(n * scale)));
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);

  let [start, square] = [null, null];
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const share = (at, from, length) => Math.min(Math.max((at - from) / length, 0), 1);
    return [share(event.clientX, box.left, box.width) * canvas.width, share(event.clientY, box.top, box.height) * canvas.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    start = place(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = place(event);
    const room = [x < start[0] ? start[0] : canvas.width - start[0], y < start[1] ? start[1] : canvas.height - start[1]];
    const side = Math.min(Math.max(Math.abs(x - start[0]), Math.abs(y - start[1])), ...room);
    square = [x < start[0] ? start[0] - side : start[0], y < start[1] ? start[1] - side : start[1], side];
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "#0009";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, ...[square[0], square[1], side, side].map((n) => n / scale), square[0], square[1], side, side);
    crop.disabled = side < 8;
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (start = null));
  crop.addEventListener("click", async () => {
    const [left, top, side] = square;
    const part = document.createElement("canvas");
    part.width = part.height = Math.round(Math.min(side / scale, LARGE));
    part.getContext("2d").drawImage(picture, ...[left, top, side, side].map((n) => n / scale), 0, 0, part.width, part.height);
    dialog.close();
    if (!image.path) return replace([{ url: part.toDataURL() }]);
    const uploaded = await send(part, `part of ${image.path.split(/[\\/]/).pop().replace(/\.\w+$/, "")}.png`);
    if (uploaded?.path) replace([uploaded]);
  });
}

// Upload what a canvas shows as a file.
async function send(canvas, name) {
  const blob = await new Promise((done) => canvas.toBlob(done));
  return upload(new File([blob], name, { type: blob.type })).catch(() => null);
}

function makeCard({ name, images }) {
  const node = makeNode("card", CARD);
  const canvas = node.querySelector("canvas");
  const pen = canvas.getContext("2d");
  const card = { node, name: node.querySelector(".name"), images: [...images] };
  card.name.value = name;

  const pad = node.querySelector(".pad");
  const isBlank = () => pad.classList.contains("blank");
  const wipe = () => {
    pen.fillStyle = "white";
    pen.fillRect(0, 0, PIXELS, PIXELS);
    pad.classList.add("blank");
  };
  const show = (card.show = () => {
    node.querySelector(".images").replaceChildren(...card.images.map(thumbnail));
    publish();
  });
  const thumbnail = (image) => {
    const button = document.createElement("button");
    const picture = document.createElement("img");
    button.title = "Crop, move or remove this image";
    button.className = image.path ? "photo" : "drawing";
    picture.src = image.url;
    picture.alt = image.path ? image.path.split(/[\\/]/).pop() : "a drawing";
    button.append(picture);
    button.addEventListener("click", () => openImage(card, image));
    return button;
  };
  card.drawing = () => (isBlank() ? [] : [{ url: canvas.toDataURL() }]);
  card.open = async (files) => {
    const refused = [];
    const send = async (file) => {
      const image = file.size <= props.bytes && (await upload(file).catch(() => null));
      if (!image?.path) refused.push(file.name);
      return image;
    };
    card.images.push(...(await Promise.all([...files].map(send))).filter((image) => image?.path));
    const more = refused.length > 1 ? ` and ${refused.length - 1} more` : "";
    node.querySelector(".refused").textContent = refused.length
      ? `${refused[0]}${more}: not uploaded, because it is too large or there are too many`
      : "";
    show();
  };

  let last = null; // the last position of the pen while it is down
  let timer = 0;
  const draw = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = PIXELS / box.width;
    const to = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    pen.lineWidth = PEN;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(...(last ?? to));
    pen.lineTo(...to);
    pen.stroke();
    last = to;
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    pad.classList.remove("blank");
    draw(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const points = event.getCoalescedEvents?.() ?? [];
    (points.length ? points : [event]).forEach(draw);
    if (props.query) timer ||= setTimeout(() => ((timer = 0), publish()), FOLLOW_MS);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      if (last) publish();
      last = null;
    });
  }

  const video = node.querySelector("video");
  const camera = node.querySelector(".camera");
  const closeCamera = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    video.hidden = true;
    camera.textContent = "Camera";
  };
  camera.addEventListener("click", async () => {
    const refused = node.querySelector(".refused");
    refused.textContent = "";
    if (video.hidden) {
      try {
        video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
        video.hidden = false;
        camera.textContent = "Take it";
        await video.play();
      } catch (error) {
        closeCamera();
        refused.textContent = `The browser gives no camera (${error.message}): allow it for this page, or use Files`;
      }
      return;
    }
    const picture = document.createElement("canvas");
    [picture.width, picture.height] = [video.videoWidth, video.videoHeight];
    picture.getContext("2d").drawImage(video, 0, 0);
    const image = await send(picture, `camera ${Date.now()}.png`);
    if (image?.path) card.images.push(image);
    show();
  });

  const grow = () => {
    card.name.style.height = "auto";
    if (card.name.scrollHeight) card.name.style.height = `${card.name.scrollHeight + 2}px`;
  };
  new ResizeObserver(grow).observe(node);
  card.name.addEventListener("input", () => {
    card.name.value = card.name.value.replace(/\s*\n\s*/g, " ");
    grow();
  });
  card.name.addEventListener("keydown", (event) => event.key === "Enter" && (event.preventDefault(), card.name.blur()));

  const input = node.querySelector("[type=file]");
  on(node, ".next", "click", () => {
    card.images.push(...card.drawing());
    closeCamera();
    wipe();
    show();
  });
  on(node, ".clear", "click", () => {
    if (!video.hidden) return closeCamera();
    if (isBlank()) card.images = [];
    wipe();
    show();
  });
  on(node, ".remove", "click", () => {
    closeCamera();
    cards = cards.filter((other) => other !== card);
    node.remove();
    publish();
  });
  on(node, ".files", "click", () => input.click());
  input.addEventListener("change", () => card.open(input.files).then(() => (input.value = "")));
  card.name.addEventListener("change", publish);
  node.addEventListener("dragover", (event) => event.preventDefault());
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    card.open(event.dataTransfer.files);
  });
  wipe();
  node.querySelector(".images").replaceChildren(...card.images.map(thumbnail));
  return card;
}

function addCard(name) {
  const card = makeCard({ name, images: [] });
  cards.push(card);
  more.before(card.node);
  return card;
}

function rebuild() {
  cards = props.value.map(makeCard);
  element.firstElementChild.classList.toggle("query", Boolean(props.query));
  element.firstElementChild.replaceChildren(...cards.map((card) => card.node), ...(props.query ? [] : [more]));
}

on(more, ".add", "click", () => {
  const taken = cards.map((card) => card.name.value);
  addCard([..."ABCDEFGHIJKLMNOPQRST"].find((letter) => !taken.includes(letter)) ?? "").name.select();
  publish();
});
on(more, ".clear", "click", () => {
  props.value = ["A", "B"].map((name) => ({ name, images: [] }));
  rebuild();
});
on(more, ".files", "click", () => more.querySelector("input").click());
on(more, "input", "change", async (event) => {
  const isEmpty = (card) => !card.images.length && !card.drawing().length;
  cards.filter(isEmpty).forEach((card) => card.node.remove());
  cards = cards.filter((card) => !isEmpty(card));
  const place = (file) => file.webkitRelativePath;
  for (const file of [...event.target.files].sort((a, b) => (place(a) < place(b) ? -1 : 1))) {
    const [, name, base] = place(file).split("/");
    if (!base || base.startsWith(".")) continue;
    await (cards.find((card) => card.name.value === name) ?? addCard(name)).open([file]);
  }
  event.target.value = "";
});
// Otherwise the browser would leave the page and open a file that is dropped beside a card.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
watch("value", rebuild);
rebuild();
