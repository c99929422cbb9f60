// The attention viewer: kinds of map, the strip of blocks, and one block opened.

import { byId, digitsOf, fixed, make, nextByKey, signed } from "./dom.js";
import { drawBar, drawMap, drawWeights, rangeOf } from "./draw.js";
import { askPhoto, curl } from "./service.js";
import { lang, word } from "./words.js";

const GATE = "gate"; // the paper's map; every other kind is a `map_<kind>` of the answer
const STILL = 0.005; // gates of a smaller standard deviation hardly modulate
const UNIFORM = 1.01; // as nam/maps.py: below this, max(w) * C says that the weights are alike
const WORDED = ["product", "activation", "class", GATE];
const FAITHFUL = "product"; // as measured: README.md has the figures

export class Viewer {
  #attempt; // runs what may fail, and says so where it does
  #run = null;
  #kinds = [GATE];
  #opensOn = GATE;
  #kind = GATE;
  #chosen = null; // the name of the block that was last chosen by hand
  #block = null;
  #opening = new AbortController();

  constructor(attempt) {
    this.#attempt = attempt;
    drawBar(byId("bar"));
    byId("strip").addEventListener("keydown", (event) => this.#onKey(event));
    byId("opacity").addEventListener("input", () => this.#drawMap());
    byId("copy").addEventListener("click", () => this.#copy());
    for (const button of document.querySelectorAll("[data-format]"))
      button.addEventListener("click", () => this.#attempt(() => this.#save(button.dataset.format)));
  }

  /** What the service can draw; it opens on the most faithful. */
  knows(card) {
    this.#opensOn = this.#kind = card.methods.includes(FAITHFUL) ? FAITHFUL : GATE;
    this.#kinds = [...new Set([this.#opensOn, ...card.methods, GATE])];
  }

  /** The query for the strip: every block's map of every kind and its effect, no channels. */
  get query() {
    const query = new URLSearchParams({ lang: lang(), top_channels: 0, effects: true });
    for (const kind of this.#kinds) if (kind !== GATE) query.append("method", kind);
    return query;
  }

  hide() {
    this.#opening.abort();
    byId("viewer").hidden = true;
  }

  /** Show a run: its `photo`, `picture` (null where it cannot be shown), `attention` and `signal`. */
  show(run) {
    this.#run = { ...run, channels: new Map() };
    byId("viewer").hidden = false;
    byId("notes").replaceChildren(...run.attention.notes.map((note) => make("li", { textContent: note })));
    const none = run.attention.blocks.length === 0; // no NAM: the notes say so
    for (const part of ["kinds", "kind-text", "strip", "block"]) byId(part).hidden = none;
    if (none) return;
    this.#showKinds();
    this.#showStrip();
    this.#open(this.#first());
  }

  /** The block that was chosen last, else the first of the last size but one: there maps are most faithful, as measured. */
  #first() {
    const { blocks } = this.#run.attention;
    const drawn = blocks.filter((block) => this.#mapOf(block));
    const sizes = [...new Set(drawn.map((block) => block.height))];
    const best = drawn.find((block) => block.height === sizes.at(-2)) ?? drawn[0] ?? blocks[0];
    return drawn.find((block) => block.name === this.#chosen) ?? best;
  }

  #mapOf(block) {
    return (this.#kind === GATE ? block.map : block[`map_${this.#kind}`]) ?? null;
  }

  // Kinds of map

  #showKinds() {
    const choices = this.#kinds.map((kind) => {
      const input = make("input", { type: "radio", name: "kind", value: kind, checked: kind === this.#kind });
      input.addEventListener("change", () => this.#choose(kind));
      return make("label", {}, input, make("span", { textContent: nameOf(kind) }));
    });
    byId("kinds").replaceChildren(byId("kinds").firstElementChild, ...choices);
    this.#explainKind();
  }

  #explainKind() {
    const known = WORDED.includes(this.#kind);
    const text = known ? word(`${this.#kind}Text`) : word("otherText", this.#kind);
    byId("kind-text").textContent = `${text} ${word("opensOn", nameOf(this.#opensOn))}`;
  }

  #choose(kind) {
    this.#kind = kind;
    this.#explainKind();
    this.#showStrip();
    this.#open(this.#mapOf(this.#block) ? this.#block : this.#first());
  }

  // The strip

  #showStrip() {
    const blocks = this.#run.attention.blocks;
    const most = Math.max(...blocks.map((block) => Math.abs(block.effect)));
    byId("strip").replaceChildren(...blocks.map((block) => this.#tile(block, most)));
  }

  #tile(block, most) {
    const canvas = make("canvas", { ariaHidden: "true" });
    const map = this.#mapOf(block);
    drawMap(canvas, this.#run.picture, map, 0.75);
    const effect = make("span", { className: "pull", ariaHidden: "true" });
    const pull = (50 * block.effect) / (most || 1); // per cent of the bar, from its middle
    effect.style.setProperty("--from", `${50 + Math.min(0, pull)}%`);
    effect.style.setProperty("--size", `${Math.abs(pull)}%`);
    const tile = make(
      "button",
      { type: "button", role: "tab", ariaSelected: "false", tabIndex: -1 },
      canvas,
      make("strong", { textContent: block.name }),
      make("span", { className: "quiet", textContent: map ? rangeText(map) : word("noMap") }),
      make("span", { textContent: word("effectShort", signed(block.effect)) }),
      effect,
    );
    tile.setAttribute("aria-controls", "block");
    tile.addEventListener("click", () => this.#chooseBlock(block));
    return tile;
  }

  #chooseBlock(block) {
    this.#chosen = block.name;
    this.#open(block);
  }

  #onKey(event) {
    const blocks = this.#run.attention.blocks;
    const index = nextByKey(event.key, blocks.indexOf(this.#block), blocks.length);
    if (index === null) return;
    event.preventDefault();
    this.#chooseBlock(blocks[index]);
    byId("strip").children[index].focus();
  }

  // One block

  #open(block) {
    this.#block = block;
    const opened = this.#run.attention.blocks.indexOf(block);
    [...byId("strip").children].forEach((tile, i) => {
      tile.ariaSelected = i === opened;
      tile.tabIndex = i === opened ? 0 : -1;
    });
    byId("block-title").textContent = byId("block").ariaLabel = word("blockTitle", block);
    this.#drawMap();
    this.#showNumbers(block);
    byId("curl").textContent = curl(this.#path(), this.#run.photo);
    byId("take-status").textContent = "";
    this.#attempt(() => this.#measure(block));
  }

  #drawMap() {
    const map = this.#mapOf(this.#block);
    drawMap(byId("over"), this.#run.picture, map, byId("opacity").value / 100);
    const [low, high] = map ? ends(map) : ["", ""];
    byId("bar").hidden = map === null;
    byId("low").textContent = low;
    byId("high").textContent = high;
    const text = map ? word("mapText", nameOf(this.#kind), low, high) : word("noMapText");
    byId("map-text").textContent = byId("over").ariaLabel = text;
  }

  #showNumbers({ effect, gates, weights }) {
    const label = this.#run.attention.predictions[0].label;
    byId("effect-value").textContent = signed(effect);
    byId("effect-text").textContent = word(effect < 0 ? "rises" : "falls", label, fixed(Math.abs(effect), 3));
    byId("still").hidden = gates.std >= STILL;
    byId("still").textContent = word("still", gates.std.toPrecision(2));
    const digits = digitsOf(gates.min, gates.max);
    const facts = {
      gates: word("range", fixed(gates.min, digits), fixed(gates.max, digits)),
      mean: fixed(gates.mean, digits),
      std: fixed(gates.std, Math.max(3, digits)),
    };
    const pairs = Object.entries(facts).map(([name, value]) =>
      make("div", {}, make("dt", { textContent: word(name) }), make("dd", { textContent: value })),
    );
    byId("gates").replaceChildren(...pairs);
    this.#showWeights(weights);
  }

  #showWeights(weights) {
    const [low, high] = [Math.min(...weights), Math.max(...weights)];
    const even = 1 / weights.length;
    const text = word("weightsText", high.toPrecision(3), low.toPrecision(3), even.toPrecision(3));
    byId("weights").replaceChildren(drawWeights(weights, 8));
    byId("weights-text").textContent = high * weights.length < UNIFORM ? `${text} ${word("uniform")}` : text;
  }

  // The strongest channels, measured when their block is opened

  async #measure(block) {
    this.#opening.abort();
    const { signal } = (this.#opening = new AbortController());
    const { channels } = this.#run;
    try {
      if (!channels.has(block.name)) channels.set(block.name, await this.#hold(signal));
      const { top, ms } = channels.get(block.name);
      byId("channel-status").textContent = word("held", ms);
      byId("channels").replaceChildren(...top.map((channel) => this.#channel(channel)));
    } catch (error) {
      if (!signal.aborted) byId("channel-status").textContent = "";
      throw error;
    } finally {
      if (!signal.aborted) byId("channels").ariaBusy = "false"; // else a later block has the list
    }
  }

  /** What the strongest channels of the open block do, each held at its mean. */
  async #hold(opened) {
    const { photo, signal } = this.#run;
    byId("channels").replaceChildren();
    byId("channels").ariaBusy = "true";
    byId("channel-status").textContent = word("holding");
    const started = performance.now();
    const answer = await askPhoto(this.#path(), photo, AbortSignal.any([signal, opened]));
    const [seen] = (await answer.json()).blocks;
    return { top: seen.top_channels, ms: Math.round(performance.now() - started) };
  }

  #channel({ channel, weight, effect, map }) {
    const canvas = make("canvas", { role: "img", ariaLabel: word("channelMap", channel, ...ends(map)) });
    drawMap(canvas, this.#run.picture, map, 0.75);
    const line = (name, value) => make("span", {}, make("span", { className: "quiet", textContent: `${name} ` }), value);
    return make(
      "li",
      {},
      canvas,
      make("strong", { textContent: `${word("channel")} ${channel}` }),
      make("span", { className: "quiet", textContent: rangeText(map) }),
      line(word("weight"), weight.toPrecision(3)),
      line(word("effect"), signed(effect)),
    );
  }

  // Taking it with you

  #path() {
    const query = new URLSearchParams({ block: this.#block.name, effects: true, channel_effects: true, lang: lang() });
    if (this.#kind !== GATE) query.append("method", this.#kind);
    return `/attention?${query}`;
  }

  async #save(format) {
    const { photo, signal } = this.#run;
    const path = `${this.#path()}&format=${format}`;
    const name = `${photo.name.replace(/\.[^.]*$/, "")}-${this.#block.name}.${format}`;
    byId("take-status").textContent = word("fetching");
    try {
      hand(await (await askPhoto(path, photo, signal)).blob(), name);
      byId("take-status").textContent = word("saved", name);
    } catch (error) {
      byId("take-status").textContent = "";
      throw error;
    }
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(byId("curl").textContent);
      byId("take-status").textContent = word("copied");
    } catch {
      // Browsers give the clipboard to https and to this machine alone.
      getSelection().selectAllChildren(byId("curl"));
      byId("take-status").textContent = word("selected");
    }
  }
}

function hand(blob, name) {
  const address = URL.createObjectURL(blob);
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000); // some browsers read it after the click
}

const nameOf = (kind) => (WORDED.includes(kind) ? word(kind) : kind);

function ends(map) {
  const [low, high] = rangeOf(map);
  return [low, high].map((value) => fixed(value, digitsOf(low, high)));
}

const rangeText = (map) => word("range", ...ends(map));
