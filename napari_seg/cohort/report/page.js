// Data, list and dialog of a report; `page.py` puts this file and plots.js into one function.
// Names come from strangers: all text is set as text, never as HTML.

const byId = id => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const STATES = data.states;
const mends = new Map(Object.entries(data.codes));
const MAX_PRINTED = 500, MAX_DOTS = 400;
const collator = new Intl.Collator("en", {numeric: true});

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child != null));
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const number = (value, digits) => value == null ? "–" : value.toFixed(digits).replace("-", "−");
const ml = value => value == null ? "–" : number(value, value === 0 ? 0 : value < 0.1 ? 4 : value < 10 ? 2 : value < 100 ? 1 : 0);
const plain = text => text.replaceAll("`", "");
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const seconds = value => value >= 100 ? `${Math.floor(value / 60)} min ${Math.round(value % 60)} s` : `${number(value, 1)} s`;

// cases

class Case {
  constructor(id, row) {
    [this.name, this.state, this.model, this.source, this.format, this.modality, this.seconds, this.parts, this.peak,
      this.attempts, this.code, this.message, this.volumes, this.confidence, this.unusual, this.notices, this.files,
      this.thumb] = row;
    this.id = id;
    this.state = STATES[this.state];
    this.doubts = this.unusual.length + this.notices.length;
    this.lowest = this.confidence.reduce((low, one) => one != null && (low == null || one < low) ? one : low, null);
  }
  get structures() { return data.structures[this.model] ?? []; }
  volume(name) { return this.volumes[places[this.model]?.get(name) ?? -1] ?? null; }
  unusualIn(name) { return this.unusual.find(one => this.structures[one[0]].name === name); }
  get badges() {
    return [...this.unusual.map(([n, z]) => `${this.structures[n].name} ${direction(this, n, z)}`),
      ...new Set(this.notices.map(one => one[0].replace(/^[a-z]+\./, "").replaceAll("_", " ")))];
  }
  get haystack() {
    return this._haystack ??= [this.name, this.source, this.code, this.message, this.state,
      ...this.notices.map(one => one[0])].join("\n").toLowerCase();
  }
}
const direction = (one, n, z) => one.volumes[n] === 0 ? "absent" : z > 0 ? "large" : "small";
const places = data.structures.map(some => new Map((some ?? []).map((one, n) => [one.name, n])));
const cases = new Map(data.cases.map(([id, ...row]) => [id, new Case(id, row)]));
const all = [...cases.values()];
const structureNames = [...new Set(data.structures.flatMap(some => (some ?? []).map(one => one.name)))];

// Thumbnails lie in a block of their own, which is read when the first one is shown.
let thumbs = null;
function picture(one, isLarge) {
  const path = one.files.overlay;
  thumbs ??= JSON.parse(byId("thumbs").textContent);
  const content = thumbs[one.thumb];
  if (content) return el("img", {src: `data:image/webp;base64,${content}`, decoding: "async",
    alt: isLarge ? `preview of ${one.name}: three planes through each structure` : ""});
  if (!path || !isLarge || content === "") return null;  // "": there was no preview when the page was written
  return el("img", {src: address(path), loading: "lazy", decoding: "async", alt: `preview of ${one.name}`,
    onerror: event => event.target.replaceWith(el("p", {}, `The preview is not embedded; it lies in ${path}.`))});
}
// A path of the manifest never becomes another scheme or host: it is relative, and each part is escaped.
const address = path => data.base + path.split("/").map(encodeURIComponent).join("/");

// filter, order and page of the list

const view = {text: "", state: "", model: "", doubt: "", some: null, someLabel: "", key: null, up: true, page: 0, size: 50,
  isGallery: false, names: structureNames.slice(0, 6)};
let shown = all;

const columns = () => [
  {label: "case", isText: true, value: one => one.name, cell: caseCell},
  {label: "state", isText: true, value: one => one.state, cell: stateCell},
  ...data.models.length > 1 ? [{label: "model", isText: true, value: one => data.models[one.model]?.name ?? null}] : [],
  ...view.names.map(name => ({label: `${name} ml`, value: one => one.volume(name),
    cell: one => el("td", {class: one.unusualIn(name) ? "unusual" : null}, ml(one.volume(name)))})),
  ...structureNames.length ? [{label: "lowest confidence", value: one => one.lowest, digits: 2}] : [],
  {label: "doubts", value: one => one.doubts, cell: doubtCell},
  {label: "seconds", value: one => one.seconds || null, digits: 1},
  {label: "MiB", value: one => one.peak || null, digits: 0},
];

function caseCell(one) {
  const button = el("button", {class: "link", "data-case": one.id, tabindex: -1}, one.name);
  const text = el("span", {}, button, one.source ? el("small", {}, one.source) : null);
  const image = picture(one, false);
  return el("td", {}, el("div", {class: "case"}, image && el("span", {class: "panel"}, image), text));
}
function stateCell(one) {
  const style = {done: "good", failed: "bad"}[one.state];
  return el("td", {class: `text ${style ?? ""}`, title: one.code || null}, one.state);
}
function doubtCell(one) {
  const badges = one.badges;
  const some = badges.slice(0, 2).map(text => el("span", {class: "badge"}, text));
  if (badges.length > 2) some.push(`+${badges.length - 2}`);
  return el("td", {class: "text", title: badges.join(", ") || null}, ...some);
}

function choose() {
  const {text, state, model, doubt, some} = view;
  const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
  shown = all.filter(one => (!state || one.state === state)
    && (model === "" || one.model === +model)
    && (!doubt || (doubt === "unusual" ? one.unusual.length : doubt === "none" ? one.state === "done" && !one.doubts
      : one.doubts))
    && (!some || some.has(one.id))
    && wanted.every(word => one.haystack.includes(word)));
  const column = columns().find(one => one.label === view.key);
  if (column) {
    const blank = one => column.value(one) == null;
    const order = column.isText ? (a, b) => collator.compare(column.value(a), column.value(b))
      : (a, b) => column.value(a) - column.value(b);
    shown = [...shown].sort((a, b) => blank(a) - blank(b) || (blank(a) ? 0 : view.up ? order(a, b) : order(b, a)));
  }
  view.page = 0;
}

// the list as a table or a gallery

const list = byId("list");
const count = el("output", {"aria-live": "polite"});
const controls = {};

function drawHead() {
  const head = el("tr");
  for (const column of columns()) {
    const sort = () => {
      view.up = view.key === column.label ? !view.up : true;
      view.key = column.label;
      for (const other of head.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", view.up ? "ascending" : "descending");
      choose();
      drawRows();
    };
    const isText = column.isText || column.cell === doubtCell;
    const cell = el("th", {scope: "col", class: isText ? "text" : null}, el("button", {type: "button", onclick: sort},
      column.label.replaceAll("_", "_\u200b")));
    if (view.key === column.label) cell.setAttribute("aria-sort", view.up ? "ascending" : "descending");
    head.append(cell);
  }
  const table = el("table", {}, el("caption", {class: "visually-hidden"}, "Cases; arrow keys move, Enter opens a case"),
    el("thead", {}, head), el("tbody", {onkeydown: moveInRows}));
  list.replaceChildren(el("div", {class: "wide"}, table));
}

function drawRows(isPrinted = false) {
  const pages = Math.max(1, Math.ceil(shown.length / view.size));
  view.page = Math.min(view.page, pages - 1);
  const first = view.page * view.size;
  const some = isPrinted ? shown.slice(0, MAX_PRINTED) : shown.slice(first, first + view.size);
  if (view.isGallery) {
    list.replaceChildren(el("div", {class: "gallery", onkeydown: moveInRows}, ...some.map(tile)));
  } else {
    if (!list.querySelector("table")) drawHead();
    const kinds = columns();
    list.querySelector("tbody").replaceChildren(...some.map(one => el("tr", {}, ...kinds.map(kind => kind.cell
      ? kind.cell(one) : el("td", {class: kind.isText ? "text" : null}, cellText(kind, one))))));
  }
  const start = list.querySelector("[data-case]");
  if (start) start.tabIndex = 0;
  const last = Math.min(first + view.size, shown.length);
  count.textContent = shown.length ? `${(first + 1).toLocaleString("en")}–${last.toLocaleString("en")} of ${
    plural(shown.length, "case")}` : "no case";
  controls.previous.disabled = view.page === 0;
  controls.next.disabled = view.page >= pages - 1;
  controls.some.hidden = !view.some;
  controls.some.textContent = `${view.someLabel} ✕`;
  byId("printed").textContent = shown.length > MAX_PRINTED
    ? `The first ${MAX_PRINTED} of ${plural(shown.length, "case")} are printed; cases.csv has all.` : "";
}
function cellText(kind, one) {
  const value = kind.value(one);
  return kind.isText ? value ?? "" : number(value, kind.digits);
}
function tile(one) {
  const image = picture(one, true);
  if (image) image.alt = "";
  const about = one.state === "done" ? one.badges.join(", ") || one.structures.slice(0, 2).map((structure, n) =>
    `${structure.name} ${ml(one.volumes[n])} ml`).join(", ") : one.code || one.state;
  return el("button", {type: "button", "data-case": one.id, tabindex: -1},
    el("span", {class: "picture"}, image ?? one.state), el("span", {}, el("b", {}, one.name)),
    el("span", {class: one.state === "failed" ? "bad" : null}, about || " "));
}
function moveInRows(event) {
  const buttons = [...list.querySelectorAll("[data-case]")], now = buttons.indexOf(document.activeElement);
  if (now < 0) return;
  const across = view.isGallery ? getComputedStyle(list.firstChild).gridTemplateColumns.split(" ").length : 1;
  let next = {ArrowDown: now + across, ArrowUp: now - across, Home: 0, End: buttons.length - 1,
    ArrowRight: view.isGallery ? now + 1 : undefined, ArrowLeft: view.isGallery ? now - 1 : undefined}[event.key];
  const turn = {PageDown: 1, PageUp: -1}[event.key] ?? (next >= buttons.length ? 1 : next < 0 ? -1 : 0);
  if (turn) {
    event.preventDefault();
    if (view.page + turn < 0 || (view.page + turn) * view.size >= shown.length) return;
    view.page += turn;
    drawRows();
    const fresh = [...list.querySelectorAll("[data-case]")];
    focusRow(fresh, turn < 0 && event.key !== "PageUp" ? fresh.length - 1 : 0);
  } else if (next != null) {
    event.preventDefault();
    focusRow(buttons, next);
  }
}
function focusRow(buttons, n) {
  for (const one of buttons) one.tabIndex = -1;
  buttons[n].tabIndex = 0;
  buttons[n].focus();
}

function update() { choose(); drawRows(); }

function select(label, options, change) {
  const box = el("select", {onchange: () => { change(box.value); }},
    ...options.map(([value, text]) => el("option", {value}, text)));
  return [el("label", {}, label, box), box];
}

function buildControls() {
  let timer = 0;
  const text = el("input", {type: "search", placeholder: "name, source, code …", oninput: () => {
    clearTimeout(timer);
    timer = setTimeout(() => { view.text = text.value; update(); }, 120);
  }});
  controls.text = text;
  const states = STATES.filter(state => all.some(one => one.state === state));
  const [stateLabel, stateBox] = select("state", [["", "all"], ...states.map(one => [one, one])],
    value => { view.state = value; update(); });
  const [modelLabel] = select("model", [["", "all"], ...data.models.map((one, n) => [n, one.name])],
    value => { view.model = value; update(); });
  const [doubtLabel, doubtBox] = select("doubts", [["", "all"], ["any", "with doubts"], ["unusual", "unusual volume"],
    ["none", "done without"]], value => { view.doubt = value; update(); });
  const [sizeLabel] = select("rows", [[50, "50"], [100, "100"], [250, "250"]],
    value => { view.size = +value; drawRows(); });
  Object.assign(controls, {stateBox, doubtBox});
  controls.previous = el("button", {type: "button", onclick: () => { view.page--; drawRows(); }}, "‹ previous");
  controls.next = el("button", {type: "button", onclick: () => { view.page++; drawRows(); }}, "next ›");
  controls.some = el("button", {type: "button", "aria-label": "remove this filter", onclick: () => {
    view.some = null; update(); }});
  const gallery = el("button", {type: "button", "aria-pressed": "false", onclick: () => {
    view.isGallery = !view.isGallery;
    gallery.setAttribute("aria-pressed", view.isGallery);
    list.replaceChildren();
    drawRows();
  }}, "gallery");
  byId("controls").append(
    el("label", {}, "find", text), stateLabel, ...data.models.length > 1 ? [modelLabel] : [], doubtLabel, sizeLabel,
    gallery, controls.some, el("span", {class: "space"}), count, controls.previous, controls.next);
  if (structureNames.length > 6) byId("controls").after(columnChoice());
}
function columnChoice() {
  const boxes = structureNames.map(name => {
    const box = el("input", {type: "checkbox", checked: view.names.includes(name), onchange: () => {
      view.names = structureNames.filter((_, n) => boxes[n].firstChild.checked);
      if (!view.isGallery) drawHead();
      drawRows();
    }});
    return el("label", {}, box, ` ${name}`);
  });
  return el("details", {class: "screen"}, el("summary", {}, `columns of ${structureNames.length} structures`),
    el("div", {class: "columns"}, ...boxes));
}

// one case

const dialog = byId("dialog");
let opened = null;

function open(one) {
  opened = one;
  const near = () => { const n = shown.indexOf(opened); return n < 0 ? [] : [shown[n - 1], shown[n + 1]]; };
  const go = n => () => { const next = near()[n]; if (next) open(next); };
  const [before, after] = near();
  const step = (text, n, one) => el("button", {type: "button", class: "plain", disabled: !one, onclick: go(n)}, text);
  const links = ["overlay", "labels", "record"].filter(role => one.files[role]).map(role =>
    el("a", {href: address(one.files[role]), target: "_blank", rel: "noopener"},
      {overlay: "whole preview", labels: "label map", record: "record"}[role]));
  const facts = [["source", one.source], ["model", data.models[one.model] && `${data.models[one.model].name} ${
    data.models[one.model].version}`], ["format", [one.format, one.modality].filter(Boolean).join(", ")],
    ["time", one.seconds ? `${seconds(one.seconds)}${one.parts[1] ? ` (read ${number(one.parts[0], 1)}, network ${
      number(one.parts[1], 1)}, write ${number(one.parts[2], 1)})` : ""}` : ""],
    ["memory", one.peak ? `${one.peak.toLocaleString("en")} MiB` : ""], ["attempts", one.attempts > 1 ? one.attempts : ""]];
  const image = picture(one, true);
  const focused = [...dialog.querySelectorAll("header button")].indexOf(document.activeElement);
  dialog.replaceChildren(
    el("header", {}, el("h2", {id: "dialog-title"}, one.name), step("‹ previous", 0, before), step("next ›", 1, after),
      el("button", {type: "button", class: "plain", autofocus: true, onclick: () => dialog.close()}, "close")),
    one.state === "failed" || one.code ? reason(one) : "",
    el("div", {class: "parts"},
      image ? el("div", {}, image, el("p", {}, ...links.flatMap((link, n) => n ? [" · ", link] : [link]))) : null,
      el("div", {}, volumeTable(one), doubtList(one),
        el("dl", {}, ...facts.filter(([, text]) => text).flatMap(([name, text]) =>
          [el("dt", {}, name), el("dd", {}, String(text))])))));
  const buttons = dialog.querySelectorAll("header button");
  if (!dialog.open) dialog.showModal();
  else (focused < 0 || buttons[focused].disabled ? buttons[2] : buttons[focused]).focus();
  dialog.scrollTop = 0;
}
function reason(one) {
  const mend = mends.get(one.code);
  return el("div", {class: `group ${one.state}`}, el("h3", {}, `${one.state}: ${one.code}`),
    el("p", {}, one.message), mend ? el("p", {}, el("b", {}, "What to do: "), plain(mend)) : null);
}
function volumeTable(one) {
  if (!one.volumes.length) return "";
  const rows = one.structures.map((structure, n) => {
    const unusual = one.unusual.find(some => some[0] === n);
    const z = !unusual ? "" : unusual[1] == null ? direction(one, n, 0) : `${direction(one, n, unusual[1])}, z ${
      number(unusual[1], 1)}`;
    return one.volumes[n] == null ? null : el("tr", {}, el("th", {scope: "row", class: "text"}, structure.name),
      el("td", {class: unusual ? "unusual" : null}, ml(one.volumes[n])), el("td", {}, ml(structure.quartiles[2])),
      el("td", {}, number(one.confidence[n], 2)), el("td", {class: "text warn"}, z));
  });
  const heads = ["structure", "ml", "median", "confidence", ""].map((head, n) =>
    el("th", {scope: "col", class: n ? null : "text"}, head));
  return el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows.filter(Boolean)));
}
function doubtList(one) {
  if (!one.notices.length) return "";
  return el("ul", {}, ...one.notices.map(([code, message, segment]) => el("li", {},
    el("b", {}, segment ? `${segment}: ${code}` : code), ` ${message}`,
    mends.has(code) ? el("small", {}, ` ${plain(mends.get(code))}`) : null)));
}
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", event => {
  const turn = {ArrowRight: 1, ArrowLeft: -1}[event.key], n = shown.indexOf(opened);
  if (turn && n >= 0 && shown[n + turn]) { event.preventDefault(); open(shown[n + turn]); }
});
document.addEventListener("click", event => {
  const button = event.target.closest("[data-case], [data-find]");
  if (!button || dialog.contains(button)) return;
  if (button.dataset.case) {
    const one = cases.get(+button.dataset.case);
    if (one) open(one);
  } else {
    Object.assign(view, {text: button.dataset.find, state: "", doubt: "", some: null});
    controls.text.value = view.text;
    controls.stateBox.value = controls.doubtBox.value = "";
    update();
    byId("cases").scrollIntoView();
    byId("cases").focus();
  }
});
