"use strict";
// Charts are embedded, cards are made with textContent alone: a text of others stays a text.
const dark = matchMedia("(prefers-color-scheme: dark)");
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const specs = read("specs"), cards = read("cards");

function draw() {
  const ink = getComputedStyle(document.body).getPropertyValue("--ink").trim();
  const soft = getComputedStyle(document.body).getPropertyValue("--soft").trim();
  for (const place of document.querySelectorAll(".chart")) {
    const spec = structuredClone(specs[place.dataset.spec]);
    spec.config.axis = { titleFontWeight: "normal", labelColor: ink, titleColor: soft, domainColor: soft,
      tickColor: soft, gridColor: soft, gridOpacity: 0.2 };
    spec.config.text = { color: ink };
    spec.config.header = { labelColor: ink };
    spec.config.legend = { labelColor: ink };
    spec.config.tick = { color: ink };
    vegaEmbed(place, spec, { actions: false, renderer: "svg" });
  }
}

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

const signed = (x) => (x >= 0 ? "+" : "\u2212") + Math.abs(x).toPrecision(3);
const kind = (card) => card.about.domain ?? card.about.label ?? card.about.source ?? "";

function body(card, target) {
  const pre = element("pre");
  const words = card.words && card.words[target];
  if (!words) {
    pre.textContent = card.text;
    return pre;
  }
  const sizes = words.map(Math.abs).sort((a, b) => a - b);
  const usual = sizes[Math.floor(sizes.length * 0.98)] || 1;
  card.pieces.forEach((piece, k) => {
    const span = element("span", piece);
    const strength = Math.min(Math.abs(words[k]) / usual, 1) * 0.6;
    span.style.background = `rgba(var(--${words[k] >= 0 ? "helped" : "hurt"}), ${strength})`;
    span.title = signed(words[k]);
    pre.append(span);
  });
  return pre;
}

function show(card, target, measure) {
  const made = element("article", undefined, "card");
  const values = card.values[target], value = values[measure];
  const head = element("header");
  head.append(element("span", signed(value), "number " + (value >= 0 ? "helped" : "hurt")));
  head.append(element("span", `rank ${values.rank} of ${values.samples}`));
  head.append(element("span", kind(card)));
  if (card.about.kind && card.about.kind !== "clean") head.append(element("span", card.about.kind));
  const [first, last] = card.steps;
  head.append(element("span", first === last ? `step ${first}` : `steps ${first} to ${last}`));
  head.append(element("span", `chunk ${card.id}`));
  made.append(head);
  if (card.documents.length) {
    const names = card.documents.slice(0, 3).join(", ");
    const more = card.documents.length > 3 ? ` and ${card.documents.length - 3} more` : "";
    made.append(element("header", names + more));
  }
  made.append(body(card, target));
  return made;
}

function wanted(card, given) {
  return (!given.group || kind(card) === given.group)
    && (given.from === "" || card.steps[1] >= Number(given.from))
    && (given.to === "" || card.steps[0] <= Number(given.to))
    && (!given.search || card.text.toLowerCase().includes(given.search.toLowerCase()));
}

function columns() {
  const form = document.getElementById("controls");
  const given = Object.fromEntries(new FormData(form));
  const of = (card) => card.values[given.target][given.measure];
  const chosen = cards.filter((card) => given.target in card.values && wanted(card, given));
  const ranked = [...chosen].sort((a, b) => of(b) - of(a) || a.id - b.id);
  const count = 12;
  const lists = {
    "Helped most": ranked.filter((card) => of(card) > 0).slice(0, count),
    "At random": ranked.filter((card) => card.random),
    "Hurt most": ranked.filter((card) => of(card) < 0).reverse().slice(0, count),
  };
  const place = document.getElementById("columns");
  place.replaceChildren();
  for (const [title, list] of Object.entries(lists)) {
    const column = element("div", undefined, "column");
    column.append(element("h3", title));
    for (const card of list) column.append(show(card, given.target, given.measure));
    if (!list.length) column.append(element("p", "none of these", "note"));
    place.append(column);
  }
}

draw();
dark.addEventListener("change", draw);
if (cards.length) {
  const form = document.getElementById("controls");
  for (const name of [...new Set(cards.map(kind))].sort()) {
    if (name) form.elements.group.append(element("option", name));
  }
  form.addEventListener("input", columns);
  form.addEventListener("submit", (event) => event.preventDefault());
  columns();
}
