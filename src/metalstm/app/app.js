// The cards of the page: one for each class, with a pad to draw on and the images so far. This code runs inside a
// gr.HTML of gradio, which provides `element`, `props`, `upload` and `watch`. `props.value` is a list of
// {name, images}. An image is {url} if it is a drawing, and {url, path} if it is an uploaded file; a file has at most
// `props.bytes`. With `props.query` there is one card, for images to be classified, and its value follows the pen.

const PIXELS = 280; // side of a pad
const PEN = PIXELS / 22; // width of a line: a little more than one of the 28 pixels that the learner sees
const FOLLOW_MS = 120; // time between two updates of the value while the pen moves

const CARD = `
  <div class="top">
    <input class="name" aria-label="Name of the class" placeholder="name" maxlength="60" spellcheck="false">
    <button class="remove" title="Remove this class">×</button>
  </div>
  <div class="pad">
    <canvas width="${PIXELS}" height="${PIXELS}" aria-label="Pad to draw on"></canvas>
    <span>draw here<br>or drop images</span>
  </div>
  <div class="tools">
    <button class="next" title="Keep this drawing, draw another">+ Next</button>
    <button class="files" title="Choose image files">Files</button>
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
  props.value = cards.map((card) => ({ name: card.name.value.trim(), images: [...card.images, ...card.drawing()] }));
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
  const show = () => {
    node.querySelector(".images").replaceChildren(...card.images.map(thumbnail));
    publish();
  };
  const thumbnail = (image) => {
    const button = document.createElement("button");
    const picture = document.createElement("img");
    button.title = "Remove this image";
    button.className = image.path ? "photo" : "drawing";
    picture.src = image.url;
    picture.alt = image.path ? image.path.split(/[\\/]/).pop() : "a drawing";
    button.append(picture);
    button.addEventListener("click", () => {
      card.images = card.images.filter((other) => other !== image);
      show();
    });
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

  const input = node.querySelector("[type=file]");
  on(node, ".next", "click", () => {
    card.images.push(...card.drawing());
    wipe();
    show();
  });
  on(node, ".clear", "click", () => {
    if (isBlank()) card.images = [];
    wipe();
    show();
  });
  on(node, ".remove", "click", () => {
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
