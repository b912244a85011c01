// Distributions of the volumes: a dot for each case, or bars where there are many.

const MIN_PLOTTED = 2;  // one dot has no distribution; the table has its number
const W = 440, H = 90, LEFT = 8, BASE = 64;

function scaleOf(values) {
  const low = Math.min(...values), high = Math.max(...values);
  const isLog = high / low > 30;
  const to = isLog ? Math.log : Number;
  let first = to(low), last = to(high);
  const pad = (last - first || Math.abs(last) || 1) * .04;
  first = isLog ? first - pad : Math.max(0, first - pad);
  last += pad;
  const x = value => LEFT + (to(value) - first) / (last - first) * (W - 2 * LEFT);
  return {x, ticks: ticks(first, last, isLog)};
}
function ticks(first, last, isLog) {
  if (isLog) {
    const marks = [];
    for (let power = Math.floor(first / Math.LN10); power <= last / Math.LN10; power++)
      for (const factor of last - first > 7 ? [1] : [1, 3]) {
        const mark = factor * 10 ** power;
        if (Math.log(mark) >= first && Math.log(mark) <= last) marks.push(mark);
      }
    return marks;
  }
  const rough = (last - first) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(factor => factor * power >= rough) * power;
  const marks = [];
  for (let n = Math.ceil(first / step); n * step <= last; n++) marks.push(+(n * step).toPrecision(6));
  return marks;
}
function percentile(sorted, fraction) {
  const place = fraction * (sorted.length - 1), n = Math.floor(place);
  return sorted[n] + (place - n) * ((sorted[n + 1] ?? sorted[n]) - sorted[n]);
}

function drawPlot(figure, model, structure, n) {
  const having = all.filter(one => one.model === model && one.state === "done" && one.volumes[n] > 0)
    .sort((a, b) => a.volumes[n] - b.volumes[n]);
  const unusual = one => one.unusual.some(some => some[0] === n);
  const strange = having.filter(unusual).length + structure.absentUnusual;
  const caption = el("figcaption", {}, el("b", {}, structure.name), ` median ${
    ml(structure.quartiles[2])} ml, ${plural(having.length, "case")}${
    structure.absent ? `, absent in ${structure.absent.toLocaleString("en")}` : ""}${strange ? `, ` : ""}`,
    strange ? el("span", {class: "bad"}, `${strange} unusual`) : "");
  const values = having.map(one => one.volumes[n]);
  const {x, ticks} = scaleOf([values[0], values.at(-1)]);
  const plot = svg("svg", {viewBox: `0 0 ${W} ${H}`, tabindex: 0, role: "img",
    "aria-label": `Volumes of ${structure.name} in ml, ${caption.textContent}; arrow keys go from case to case`});
  for (const mark of ticks) {
    plot.append(svg("line", {x1: x(mark), x2: x(mark), y1: 4, y2: BASE + 6}));
    const anchor = x(mark) < 24 ? "start" : x(mark) > W - 24 ? "end" : "middle";
    plot.append(svg("text", {class: "scale", x: x(mark), y: H - 10, "text-anchor": anchor}, String(mark)));
  }
  const [q1, q2, q3] = [.25, .5, .75].map(fraction => x(percentile(values, fraction)));
  plot.append(svg("rect", {x: q1, width: Math.max(q3 - q1, 1), y: 8, height: BASE - 8}));
  const marks = [];
  if (having.length <= MAX_DOTS) {
    having.forEach((one, k) => marks.push(dot(one, k)));
  } else {
    const step = (W - 2 * LEFT) / 44, bins = Array.from({length: 44}, () => []);
    for (const one of having) bins[Math.min(43, Math.floor((x(one.volumes[n]) - LEFT) / step))].push(one);
    const most = Math.max(...bins.map(bin => bin.length));
    bins.forEach((bin, k) => {
      if (!bin.length) return;
      const height = Math.max(1.5, bin.length / most * (BASE - 10));
      const node = svg("rect", {class: "bar", x: LEFT + k * step + .5, width: step - 1, y: BASE - height, height});
      const range = `${structure.name} ${ml(bin[0].volumes[n])} to ${ml(bin.at(-1).volumes[n])} ml`;
      marks.push({node, x: LEFT + (k + .5) * step, y: BASE - height / 2, near: step,
        text: `${range}: ${plural(bin.length, "case")}`, act: () => filterTo(bin, range)});
    });
    having.filter(unusual).slice(-MAX_DOTS).forEach((one, k) => marks.push(dot(one, k)));
  }
  function dot(one, k) {
    const y = 14 + (BASE - 22) * (k * 0.618034 % 1), isBad = unusual(one);
    const node = svg("circle", {cx: x(one.volumes[n]).toFixed(1), cy: y.toFixed(1), r: isBad ? 4 : 3});
    if (isBad) node.classList.add("bad");
    return {node, x: x(one.volumes[n]), y, near: 12, text: `${one.name}: ${ml(one.volumes[n])} ml${
      isBad ? ", unusual" : ""}`, act: () => open(one)};
  }
  plot.append(...marks.map(mark => mark.node), svg("line", {class: "median", x1: q2, x2: q2, y1: 6, y2: BASE + 2}));
  const output = el("output", {});
  let current = -1;
  const highlight = k => {
    marks[current]?.node.classList.remove("on");
    current = k;
    marks[k]?.node.classList.add("on");
    output.textContent = marks[k]?.text ?? "";
  };
  plot.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(plot.getScreenCTM().inverse());
    let best = -1, least = Infinity;
    marks.forEach((mark, k) => {
      const isBar = mark.node.localName === "rect";
      const far = isBar ? Math.abs(at.x - mark.x) + 6 : Math.hypot(at.x - mark.x, at.y - mark.y);
      if (far < least && far < mark.near + 6 * isBar) [best, least] = [k, far];
    });
    if (best !== current) highlight(best);
  });
  plot.addEventListener("pointerleave", () => highlight(-1));
  plot.addEventListener("click", () => marks[current]?.act());
  plot.addEventListener("keydown", event => {
    const turn = {ArrowRight: 1, ArrowLeft: -1, Home: -marks.length, End: marks.length}[event.key];
    if (turn) {
      event.preventDefault();
      highlight(Math.max(0, Math.min(marks.length - 1, current + turn)));
    } else if (event.key === "Enter" && current >= 0) marks[current].act();
  });
  output.setAttribute("aria-live", "polite");
  figure.replaceChildren(caption, plot, output);
}
function filterTo(some, label) {
  Object.assign(view, {some: new Set(some.map(one => one.id)), someLabel: label});
  update();
  byId("cases").scrollIntoView();
}

const waiting = new Map();
function drawWaiting(figure) { waiting.get(figure)?.(); waiting.delete(figure); }

function buildPlots() {
  const root = byId("plots");
  if (!root) return;
  const watcher = new IntersectionObserver(entries => {
    for (const {isIntersecting, target} of entries) if (isIntersecting) { drawWaiting(target); watcher.unobserve(target); }
  }, {rootMargin: "400px"});
  data.structures.forEach((structures, model) => {
    if (!structures?.some(structure => structure.count >= MIN_PLOTTED)) return;
    if (data.models.length > 1) root.append(el("h3", {}, data.models[model]?.name ?? "no model"));
    const plots = el("div", {class: "plots"});
    structures.forEach((structure, n) => {
      if (structure.count < MIN_PLOTTED) return;
      const figure = el("figure", {}, el("figcaption", {}, el("b", {}, structure.name)));
      waiting.set(figure, () => drawPlot(figure, model, structure, n));
      plots.append(figure);
      watcher.observe(figure);
    });
    root.append(plots);
  });
}

addEventListener("beforeprint", () => {
  for (const figure of [...waiting.keys()]) drawWaiting(figure);
  drawRows(true);
});
addEventListener("afterprint", () => drawRows());

buildControls();
update();
buildPlots();
document.documentElement.dataset.milliseconds = Math.round(performance.now());
