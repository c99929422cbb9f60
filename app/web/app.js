// The page: a photo comes in, its labels are shown, then its attention.

import { byId, make } from "./dom.js";
import { drawPhoto, readPhoto } from "./draw.js";
import { Problem, askCard, askExample, askPhoto, hasKey, keepKey } from "./service.js";
import { Viewer } from "./viewer.js";
import { errorWord, lang, speak, translate, word } from "./words.js";

const EXAMPLES = "/web/examples/";

const viewer = new Viewer(attempt);
let card = null; // the model card, once it has come
let run = null; // the photo under way or shown; a later one takes its place
let again = null; // what "try again" and a new key do

/** Run what may fail; where it does, say so in words. What was overtaken by a later photo says nothing. */
async function attempt(step) {
  const mine = run;
  byId("problem").hidden = byId("key").hidden = true;
  try {
    await step();
  } catch (error) {
    if (error.name === "AbortError" || mine !== run) return;
    if (!(error instanceof Problem)) console.error(error);
    show(error instanceof Problem ? error : new Problem("unknown"), step);
  }
}

function show(problem, step) {
  again = step;
  busy(false);
  const keyWanted = problem.code === "unauthorized";
  byId("key").hidden = !keyWanted;
  byId("problem").hidden = false;
  byId("problem-text").textContent = keyWanted && hasKey() ? word("badKey") : errorWord(problem.code);
  byId("problem-detail").textContent = keyWanted ? "" : word("problem", problem.status, problem.detail, problem.id);
  const refused = problem.status >= 400 && problem.status < 500 && problem.status !== 408; // 408: it came too slowly
  byId("again").hidden = keyWanted || refused;
  byId("status").textContent = "";
  byId("answer").scrollIntoView({ block: "nearest" });
  if (keyWanted) byId("key-text").focus();
}

function busy(is) {
  byId("answer").ariaBusy = String(is);
}

/** The model card, asked for once. */
async function needCard() {
  if (card !== null) return;
  card = await askCard();
  viewer.knows(card);
  showAccuracy();
}

function showAccuracy() {
  const told = card?.metrics.val;
  byId("accuracy").textContent = told ? word("accuracy", told.top1, told.images.toLocaleString(lang()), card.classes) : "";
}

/** Ask for a photo: `blob`, or `source`, where to fetch it from; `name`. It takes the place of the one before. */
function begin(photo) {
  run?.control.abort();
  run = { photo, control: new AbortController() };
  attempt(answer);
}

/** Show the run's photo and what the service answers. */
async function answer() {
  const { photo, control } = run;
  clear();
  photo.blob ??= await askExample(photo.source, control.signal);
  const shown = showPhoto(photo, control.signal);
  const failed = new AbortController(); // so that labels that come late do not write over what is said of a failure
  try {
    await explain(photo, shown, AbortSignal.any([control.signal, failed.signal]));
  } catch (error) {
    failed.abort();
    throw error;
  }
}

/** The labels as soon as they are there, then the attention over the photo, once it is `shown`. */
async function explain(photo, shown, signal) {
  const started = performance.now();
  const since = () => Math.round(performance.now() - started);
  const labelled = askPhoto(`/predict?lang=${lang()}`, photo, signal).then(async (found) => {
    showLabels(await found.json());
    byId("status").textContent = word("explaining", since());
    return since();
  });
  const [picture, ms] = await Promise.all([shown, labelled]);
  byId("no-preview").hidden = picture !== null; // known now: it is an image all the same
  const attention = await (await askPhoto(`/attention?${viewer.query}`, photo, signal)).json();
  viewer.show({ photo, picture, attention, signal });
  byId("status").textContent = word("explained", ms, since());
  busy(false);
}

function clear() {
  viewer.hide();
  byId("no-preview").hidden = true;
  byId("labels").replaceChildren();
  byId("facts").textContent = byId("first").textContent = "";
  byId("status").textContent = word("asking");
  busy(true);
}

/** The photo on the page; null where this browser cannot show it. */
async function showPhoto(photo, signal) {
  await needCard();
  const picture = await readPhoto(photo.blob, card.input.crop);
  signal.throwIfAborted(); // a later photo may have been read sooner
  byId("photo").classList.toggle("taken", picture !== null);
  byId("preview").hidden = picture === null;
  if (picture !== null) drawPhoto(byId("preview"), picture);
  byId("preview").ariaLabel = word("preview", photo.name);
  byId("choose").dataset.word = "chooseAnother";
  byId("choose").textContent = word("chooseAnother");
  return picture;
}

function showLabels({ image, model, predictions }) {
  byId("labels").replaceChildren(...predictions.map(labelLine));
  byId("facts").textContent = word("facts", image, model);
  byId("first").textContent = word("first", predictions[0].label, percent(predictions[0].probability));
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function labelLine({ label, class_id, probability }) {
  const line = make(
    "li",
    {},
    make("span", { className: "label", textContent: label }),
    make("span", { className: "id quiet", textContent: class_id }),
    make("span", { className: "share", textContent: percent(probability) }),
    make("span", { className: "bar", ariaHidden: "true" }),
  );
  line.style.setProperty("--share", probability);
  return line;
}

// Ways in: a file chosen, dropped or pasted; an example.

function take(files) {
  const [file] = files;
  if (file) begin({ blob: file, name: file.name });
  else byId("status").textContent = word("notAPhoto");
}

byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) take(event.target.files);
  event.target.value = ""; // so that the same file may be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.target.matches("input[type=password]")) return;
  take(event.clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
for (const button of document.querySelectorAll("[data-example]")) {
  const name = button.dataset.example;
  button.addEventListener("click", () => begin({ source: EXAMPLES + name, name }));
}

byId("again").addEventListener("click", () => attempt(again));
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key-text").value.trim());
  byId("key-text").value = "";
  attempt(again);
});
for (const button of document.querySelectorAll("[data-lang]"))
  button.addEventListener("click", () => {
    speak(button.dataset.lang);
    showAccuracy();
    if (run !== null) begin(run.photo); // the labels are spoken by the service
    else byId("status").textContent = word("waiting");
  });

translate();
byId("status").textContent = word("waiting");
attempt(needCard);
