// Sends chosen X-rays to this machine's own server, one after another, and shows what it answers.
"use strict";

const MODEL_SECONDS = 4;
const PATIENCE_SECONDS = 120;
const MAX_BYTES = Number(document.body.dataset.maxBytes);

const byId = (id) => document.getElementById(id);
const results = byId("results");
const cards = []; // {file, element, url, version}: what is shown, in order
const waiting = [];
let isReading = false;
let version = Number(document.body.dataset.version);

const percent = (value) => {
  const text = (100 * value).toFixed(1);
  return `${text === "100.0" && value < 1 ? "> 99.9" : text === "0.0" && value > 0 ? "< 0.1" : text} %`;
};

// Choosing

function addFiles(files) {
  for (const file of files) {
    const card = { file, element: makeCard(file), url: URL.createObjectURL(file), version: 0 };
    cards.push(card);
    results.append(card.element);
    preview(card);
    wire(card);
    enqueue(card);
  }
  showCounts();
}

function makeCard(file) {
  const element = byId("card").content.firstElementChild.cloneNode(true);
  element.querySelector(".file").textContent = file.name;
  element.querySelector(".remove").setAttribute("aria-label", `Remove ${file.name}`);
  return element;
}

function preview(card) {
  const image = card.element.querySelector(".xray");
  image.alt = `X-ray ${card.file.name}`;
  image.addEventListener("load", () => {
    if (image.src === card.url) setRatio(card, image.naturalWidth / image.naturalHeight);
  });
  // No browser shows DICOM, and few TIFF: the image as the model got it stands in, once it is there.
  image.addEventListener("error", () => {
    card.unseen = true;
    image.hidden = true;
    if (card.seen) showSeen(card);
  });
  image.src = card.url;
}

function showSeen(card) {
  const image = card.element.querySelector(".xray");
  image.src = card.seen;
  image.hidden = false;
}

function setRatio(card, ratio) {
  card.element.querySelector(".picture").style.setProperty("--ratio", String(ratio));
}

function wire(card) {
  const find = (selector) => card.element.querySelector(selector);
  find(".remove").addEventListener("click", () => remove(card));
  find(".heat-on").addEventListener("change", () => showHeat(card));
  find(".heat-opacity").addEventListener("input", () => showHeat(card));
}

function remove(card) {
  const index = cards.indexOf(card);
  cards.splice(index, 1);
  const place = waiting.indexOf(card);
  if (place >= 0) waiting.splice(place, 1);
  URL.revokeObjectURL(card.url);
  card.element.remove();
  showCounts();
  const next = cards[Math.min(index, cards.length - 1)];
  (next ? next.element.querySelector(".remove") : byId("files")).focus();
}

function showCounts() {
  byId("empty").hidden = cards.length > 0;
  byId("actions").hidden = cards.length === 0;
  byId("count").hidden = cards.length === 0;
  byId("count").textContent = `(${cards.length})`;
  byId("again").hidden = !cards.some((card) => card.version && card.version !== version);
}

// Reading

function enqueue(card) {
  waiting.push(card);
  card.element.querySelector(".busy").hidden = false;
  card.element.querySelector(".failure").hidden = true;
  card.element.setAttribute("aria-busy", "true");
  if (!isReading) readAll();
}

async function readAll() {
  isReading = true;
  while (waiting.length) {
    const card = waiting.shift();
    const answer = await ask(card.file);
    card.element.removeAttribute("aria-busy");
    card.element.querySelector(".busy").hidden = true;
    if (answer.error) showFailure(card, answer.error);
    else showAnswer(card, answer);
    showCounts();
  }
  isReading = false;
}

async function ask(file) {
  if (file.size > MAX_BYTES) {
    return { error: `The file has ${Math.ceil(file.size / 2 ** 20)} MB; up to ${MAX_BYTES / 2 ** 20} MB are taken. Save it smaller.` };
  }
  if (file.size === 0) return { error: "The file is empty." };
  const form = new FormData();
  form.append("image", file, file.name);
  try {
    const response = await fetch("predict?heatmap=1&seen=1", {
      method: "POST",
      body: form,
      signal: AbortSignal.timeout(PATIENCE_SECONDS * 1000),
    });
    return await response.json();
  } catch {
    return { error: "The clinic gave no answer. Is it still running? Remove the image and try it again." };
  }
}

function showFailure(card, message) {
  const element = card.element;
  element.classList.add("failed");
  element.querySelector(".answer").hidden = true;
  const failure = element.querySelector(".failure");
  failure.textContent = message;
  failure.hidden = false;
  say(`${card.file.name}: ${message}`);
}

function showAnswer(card, answer) {
  const find = (selector) => card.element.querySelector(selector);
  card.element.classList.remove("failed");
  card.version = answer.model.version;
  setRatio(card, answer.image.width / answer.image.height);
  find(".lead").textContent = answer.uncertain ? "Uncertain, leans to" : "Most probable";
  find(".class").textContent = answer.class;
  find(".probability").textContent = percent(answer.probability);
  find(".warning").textContent = answer.warning ?? "";
  find(".warning").hidden = !answer.warning;
  find(".bars").replaceChildren(...bars(answer));
  find(".preprocessing").textContent = answer.image.preprocessing;
  find(".by").textContent = answer.model.run_id === null
    ? "Read by a model that tells nothing about its training."
    : `Read by run ${answer.model.run_id}, round ${answer.model.round}.`;
  find(".seen").src = card.seen = answer.seen;
  if (card.unseen) showSeen(card);
  if (answer.heatmap) find(".heat").src = answer.heatmap;
  else find(".heat").removeAttribute("src");
  find(".heat").alt = answer.heatmap ? `Heat map: what speaks for ${answer.heatmap_class}` : "";
  find(".heat-controls").hidden = !answer.heatmap;
  find(".heat-note").textContent = heatNote(answer);
  find(".answer").hidden = false;
  showHeat(card);
  say(`${card.file.name}: ${answer.uncertain ? "uncertain, leans to " : ""}${answer.class}, ${percent(answer.probability)}. ${answer.warning ?? ""}`);
}

function heatNote(answer) {
  if (!answer.heatmap) return "No single place in the image speaks for an answer, so there is no heat map.";
  if (answer.heatmap_class === answer.class) return `The heat map shows what speaks for ${answer.class}.`;
  const other = answer.heatmap_class;
  return `No single place speaks for ${answer.class}. The heat map shows what little speaks for ${other} (${percent(answer.probabilities[other])}).`;
}

function bars(answer) {
  const sorted = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
  return sorted.map(([name, value]) => {
    const row = document.createElement("li"), words = document.createElement("div"), bar = document.createElement("div");
    const [label, number, filled] = ["span", "b", "i"].map(tag => document.createElement(tag));
    row.classList.toggle("best", name === answer.class);
    words.className = "bar-text";
    label.textContent = name;
    number.textContent = percent(value);
    words.append(label, number);
    bar.className = "bar";
    bar.setAttribute("aria-hidden", "true");
    filled.style.setProperty("--share", `${100 * value}%`);
    bar.append(filled);
    row.append(words, bar);
    return row;
  });
}

function showHeat(card) {
  const heat = card.element.querySelector(".heat");
  const isOn = card.element.querySelector(".heat-on").checked;
  const slider = card.element.querySelector(".heat-opacity");
  heat.hidden = !isOn || !heat.hasAttribute("src");
  heat.style.opacity = String(slider.value / 100);
  slider.disabled = !isOn;
}

function say(text) {
  byId("live").textContent = text;
}

// The model, which may change while the page is open

async function watchModel() {
  if (!document.hidden) {
    try {
      const response = await fetch("model", { signal: AbortSignal.timeout(MODEL_SECONDS * 1000) });
      if (response.ok) showModel(await response.json());
      byId("offline").hidden = true;
    } catch {
      byId("offline").hidden = false;
    }
  }
  setTimeout(watchModel, MODEL_SECONDS * 1000);
}

function showModel(model) {
  const told = {
    ...model,
    classes: model.classes.join(", "),
    auc: model.auc === null ? "not measured" : model.auc.toFixed(3),
    num_examples: model.num_examples ? `${model.num_examples.toLocaleString("en")} images` : null,
  };
  for (const cell of document.querySelectorAll("[data-model]")) {
    const text = String(told[cell.dataset.model] ?? "not told");
    if (cell.textContent !== text) cell.textContent = text;
  }
  byId("model-warning").hidden = !model.warning;
  if (byId("model-warning").textContent !== (model.warning ?? "")) byId("model-warning").textContent = model.warning ?? "";
  if (model.version !== version) {
    version = model.version;
    say(`A new model answers now: ${model.name}.`);
    showCounts();
  }
}

// Events

byId("files").addEventListener("change", (event) => {
  addFiles([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
byId("clear").addEventListener("click", () => {
  while (cards.length) remove(cards[0]);
});
byId("again").addEventListener("click", () => {
  for (const card of cards) if (card.version !== version && !waiting.includes(card)) enqueue(card);
});

for (const type of ["dragenter", "dragover"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault(); // a file that misses the field must not replace the page
    byId("drop").classList.add("over");
  });
}
for (const type of ["dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    if (type === "drop" || !event.relatedTarget) byId("drop").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => addFiles([...(event.dataTransfer?.files ?? [])]));

setTimeout(watchModel, MODEL_SECONDS * 1000);
