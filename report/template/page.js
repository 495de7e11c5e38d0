"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters");
const cards = document.getElementById("cards");
const PAGE = 20;
let shown = PAGE;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function fill(name, values, all, text = (value) => value) {
  const select = form.elements[name];
  select.replaceChildren(new Option(all, ""), ...values.map((value) => new Option(text(value), value)));
}

function taskName(task) {
  return data.tasks[task] || task;
}

function answer(row, model) {
  return (row.answers[model] || []).map((part) => part[1]).join("");
}

// the two models that are compared; fewer: nothing is compared
function compared() {
  return [form.elements.one.value, form.elements.other.value].filter((model) => model);
}

function distinct(field) {
  return [...new Set(data.rows.map((row) => row[field]))];
}

function matches(row) {
  const wanted = form.elements;
  const text = wanted.text.value.trim().toLowerCase();
  const said = [row.question, row.truth, ...data.models.map((model) => answer(row, model))];
  const [one, other] = compared();
  if (wanted.differs.checked && other && answer(row, one) === answer(row, other)) return false;
  return (
    ["group", "person", "task"].every((name) => !wanted[name].value || row[name] === wanted[name].value) &&
    (!text || said.some((each) => each.toLowerCase().includes(text)))
  );
}

function card(row, models) {
  const made = element("article", undefined, row.image === null ? "card words" : "card");
  if (row.image !== null) {
    const image = element("img");
    image.src = data.images[row.image];
    image.alt = "Picture that the question is about";
    made.append(image);
  }
  const body = element("div");
  body.append(element("p", `${row.person} · ${taskName(row.task)} · ${row.group}`, "where"), element("p", row.question, "question"));
  const list = element("dl");
  list.append(element("dt", "truth"), element("dd", row.truth, "truth"));
  for (const model of models) {
    const said = element("dd");
    for (const [same, text] of row.answers[model] || []) said.append(element(same ? "span" : "mark", text));
    if (!said.textContent.trim()) said.append(element("mark", "(nothing)"));
    list.append(element("dt", model), said);
  }
  body.append(list);
  made.append(body);
  return made;
}

function show() {
  const found = data.rows.filter(matches);
  const chosen = compared();
  form.elements.differs.disabled = chosen.length < 2;
  let models = data.models;
  if (chosen.length === 1) models = data.models.filter((model) => data.anchors.includes(model) || model === chosen[0]);
  if (chosen.length === 2) models = [...new Set(chosen)];
  cards.replaceChildren(...found.slice(0, shown).map((row) => card(row, models)));
  document.getElementById("count").textContent = `${found.length} of ${data.rows.length} rows`;
  document.getElementById("more").hidden = found.length <= shown;
}

function remember() {
  const state = new URLSearchParams([...new FormData(form)].filter((pair) => pair[1]));
  history.replaceState(null, "", `#${state}`);
}

fill("group", distinct("group"), "all");
fill("person", distinct("person").sort(), "everybody");
fill("task", distinct("task"), "all", taskName);
fill("one", data.models, "all");
fill("other", data.models, "base and gold");
for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
  const field = form.elements[name];
  if (field && field.type === "checkbox") field.checked = true;
  else if (field) field.value = value;
}
if (matchMedia("(max-width: 600px)").matches) document.getElementById("fold").open = false;
form.addEventListener("input", () => { shown = PAGE; remember(); show(); });
form.addEventListener("submit", (event) => event.preventDefault());
document.getElementById("more").addEventListener("click", () => {
  const first = cards.children.length;
  shown += PAGE;
  show();
  if (cards.children[first]) { cards.children[first].tabIndex = -1; cards.children[first].focus(); }
});
show();

const chooser = document.getElementById("distribution");
if (chooser) chooser.addEventListener("change", () => {
  document.querySelectorAll(".distribution").forEach((each, number) => { each.hidden = number !== Number(chooser.value); });
});
