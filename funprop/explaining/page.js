"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const STAGES = ["Forward", "Loss", "Backward", "Update"];
const NS = "http://www.w3.org/2000/svg";
const units = D.units, folded = new Set();
const steps = [
  ...D.forward.map(([n, c]) => ({ stage: 0, node: n, copy: c })),
  { stage: 1, node: D.loss, copy: 0 },
  { stage: 2, node: D.loss, copy: 0 },
  ...[...D.forward].reverse().map(([n, c]) => ({ stage: 2, node: n, copy: c })),
  { stage: 3, node: null, copy: 0 },
];
let at = 0, chosen = steps[0].node, copy = 0, example = 0, unit = null;
let view = units ? "units" : "layers";

const esc = t => String(t).replace(/[&<>"]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" }[c]));
const num = (v, d = 3) => v === null || v === undefined ? "" : typeof v !== "number" ? v
  : v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-3 ? v.toExponential(1).replace(/-/g, "\u2212")
  : String(+v.toPrecision(d)).replace("-", "\u2212");
const callOf = (n, k = copy) => D.nodes[n].calls[Math.min(k, D.nodes[n].calls.length - 1)];
const last = name => name.split("/").pop();
const notesOf = n => D.notes.filter(t => D.nodes[n].calls.some(c => c.path === t.where)
  || D.nodes[n].updates.some(i => D.updates[i].name === t.where));
const shape = s => s ? `[${s.shape.join(", ")}]` : "";

function make(tag, attributes, parent, text) {
  const found = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attributes)) found.setAttribute(k, v);
  if (text !== undefined) found.textContent = text;
  if (parent) parent.appendChild(found);
  return found;
}

// Whether a call lies before the slider, on it or behind it, in the stage that is shown.
function state(n, k) {
  const now = steps[at];
  if (now.stage === 3) return D.nodes[n].updates.length ? "done" : "";
  if (now.stage === 1) return n === D.loss ? "at" : "done";
  const where = steps.findIndex(s => s.stage === now.stage && s.node === n && s.copy === k);
  return where < 0 ? (n === D.loss ? "ahead" : "") : where === at ? "at" : where < at ? "done" : "ahead";
}

function told(n) {
  const call = callOf(n), stage = steps[at].stage;
  if (n === D.loss && stage < 2) return `mean ${num(D.total / (D.weight || 1))}, of ${num(D.weight)} terms`;
  if (stage < 2) return call.y ? `mean ${num(call.y.mean)}, deviation ${num(call.y.deviation)}` : "";
  if (stage === 2) return `${call.dy && n !== D.loss ? "|dy| " + num(call.dy.norm) : ""}${call.dx ? "  |dx| " + num(call.dx.norm) : ""}`;
  const rows = D.nodes[n].updates.map(i => D.updates[i]).filter(u => u.trained && typeof u.ratio === "number");
  return rows.length ? `update / weight ${num(Math.max(...rows.map(u => u.ratio)), 2)}` : "no weights of its own";
}

// ------------------------------------------------------------------------ the graph of layers
const W = 228, H = 46, GAP = 20;

function layout(n) {
  const node = D.nodes[n], inner = node.parts.map(p => p);
  if (!inner.length || folded.has(n)) return { n, w: W, h: H, draw: leaf };
  const parts = inner.map(layout);
  const beside = node.kind === "branches";
  const w = beside ? parts.reduce((s, p) => s + p.w + 18, -18) : Math.max(...parts.map(p => p.w));
  const h = beside ? Math.max(...parts.map(p => p.h)) + 40 : parts.reduce((s, p) => s + p.h + GAP, -GAP);
  const body = { n, parts, w, h, draw: beside ? branches : chain };
  if (node.kind === "skip") return { n, body, w: w + 72, h: h + 58, draw: skip };
  const framed = node.kind === "copies" || node.kind === "shared" || node.kind === "around"
    || (node.named && node.name && parts.length > 1 && n !== D.root);
  return framed ? { n, body, w: w + 24, h: h + 42, draw: frame } : body;
}

function edge(g, points) {
  const back = steps[at].stage === 2, none = steps[at].stage === 3;
  const d = "M" + points.map(p => p.join(",")).join("L");
  const tip = back ? "marker-start" : "marker-end";
  make("path", { d, class: "edge", ...(none ? {} : { [tip]: "url(#tip)" }) }, g);
}

function leaf(g, me, cx, y) {
  const node = D.nodes[me.n], call = callOf(me.n), k = Math.min(copy, node.calls.length - 1);
  const cls = ["node", state(me.n, k), me.n === chosen ? "chosen" : ""].join(" ");
  const box = make("g", { class: cls, "data-node": me.n, tabindex: 0, role: "button" }, g);
  make("rect", { x: cx - W / 2, y, width: W, height: H, rx: 9, class: "box" }, box);
  make("text", { x: cx - W / 2 + 12, y: y + 19, "font-weight": 600 }, box,
    (folded.has(me.n) ? "\u25b8 " : "") + (node.name || "model"));
  make("text", { x: cx + W / 2 - 12, y: y + 19, "text-anchor": "end", class: "sub" }, box,
    me.n === D.loss ? "" : shape(call.y));
  make("text", { x: cx - W / 2 + 12, y: y + 37, class: "sub" }, box, told(me.n));
  if (notesOf(me.n).length) make("circle", { cx: cx + W / 2 - 1, cy: y + 2, r: 5.5, class: "mark" }, box);
  if (me.n === steps[at].node) box.setAttribute("data-now", "1");
  box.addEventListener("click", () => folded.has(me.n) ? (folded.delete(me.n), show()) : choose(me.n));
  box.addEventListener("keydown", e => { if (e.key === "Enter") choose(me.n); });
}

function chain(g, me, cx, y) {
  me.parts.forEach((part, i) => {
    if (i) edge(g, [[cx, y - GAP + 2], [cx, y - 3]]);
    part.draw(g, part, cx, y);
    y += part.h + GAP;
  });
}

function branches(g, me, cx, y) {
  let x = cx - me.w / 2;
  for (const part of me.parts) {
    const mid = x + part.w / 2, low = y + 20 + part.h;
    edge(g, [[cx, y], [mid, y + 4], [mid, y + 17]]);
    part.draw(g, part, mid, y + 20);
    edge(g, [[mid, low + 2], [mid, y + me.h - 8], [cx, y + me.h - 2]]);
    x += part.w + 18;
  }
}

function skip(g, me, cx, y) {
  const low = y + me.h - 12, side = cx + me.w / 2 - 8;
  edge(g, [[cx, y], [cx, y + 15]]);
  me.body.draw(g, me.body, cx, y + 18);
  edge(g, [[cx, y + 18 + me.body.h + 2], [cx, low - 14]]);
  edge(g, [[cx, y + 3], [side, y + 3], [side, low], [cx + 14, low]]);
  make("circle", { cx, cy: low, r: 11, class: "box" }, g);
  make("text", { x: cx, y: low + 5, "text-anchor": "middle" }, g, "+");
}

function frame(g, me, cx, y) {
  const node = D.nodes[me.n];
  make("rect", { x: cx - me.w / 2, y, width: me.w, height: me.h, rx: 12, class: "frame" }, g);
  let text = node.name;
  if (node.kind === "copies") text += ` \u00d7 ${node.copies}: copy ${copy % node.copies}`;
  if (node.kind === "shared") text = "weights shared inside";
  const head = make("text", { x: cx - me.w / 2 + 12, y: y + 19, class: "title", "data-fold": me.n }, g, "\u25be " + text);
  head.addEventListener("click", () => { folded.add(me.n); show(); });
  if (node.kind === "copies") for (const [i, sign] of [[-1, "\u25c0"], [1, "\u25b6"]]) {
    const turn = make("text", { x: cx + me.w / 2 - (i < 0 ? 44 : 22), y: y + 19, class: "title", "data-copy": i }, g, sign);
    turn.addEventListener("click", () => { copy = (copy + i + node.copies) % node.copies; show(); });
  }
  me.body.draw(g, me.body, cx, y + 30);
}

function drawLayers(svg) {
  const top = layout(D.root), pad = 14;
  size(svg, top.w + 2 * pad, top.h + 2 * pad);
  top.draw(svg, top, top.w / 2 + pad, pad);
}

function size(svg, w, h) {
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  const room = $("graph").clientWidth - 24;
  const scale = Math.min(1, Math.max(0.6, room / w));
  svg.setAttribute("width", w * scale);
  svg.setAttribute("height", h * scale);
}

// ------------------------------------------------- the graph of units, of a network small enough
const row = s => s.values[Math.min(example, s.values.length - 1)];
const weightOf = n => D.nodes[n].updates.map(i => D.updates[i]).find(u => last(u.name) === "w");
const biasOf = n => D.nodes[n].updates.map(i => D.updates[i]).find(u => last(u.name) === "b");
const columns = () => [{ name: "inputs", y: callOf(units[0]).x, dy: callOf(units[0]).dx },
  ...units.map(n => ({ n, name: D.nodes[n].name, y: callOf(n).y, dy: callOf(n).dy }))];

function drawUnits(svg) {
  const all = columns(), narrow = $("graph").clientWidth < 560, stage = steps[at].stage;
  const most = Math.max(...all.map(c => row(c.y).length));
  const along = narrow ? 118 : 168, across = narrow ? 104 : 92, pad = 40;
  const long = along * all.length, wide = Math.max(across * most, 240);
  size(svg, ...(narrow ? [wide + 2 * pad, long + 2 * pad] : [long + 2 * pad, wide + 2 * pad]));
  const place = (c, i) => {
    const a = pad + along * c, b = pad + wide / 2 + across * (i - (row(all[c].y).length - 1) / 2);
    return narrow ? [b, a] : [a, b];
  };
  const reach = c => { // of a column: the number shown has been reached
    const n = c ? all[c].n : units[0];
    if (stage !== 2) return stage > 0 || !c || steps.findIndex(s => s.node === n) <= at;
    const from = c + 1 < all.length ? all[c + 1].n : D.loss; // whose backward gives it
    return steps.findIndex(s => s.stage === 2 && s.node === from) <= at;
  };
  for (let c = 1; c < all.length; c++) {
    const here = row(all[c].y).length, w = weightOf(all[c].n), n = all[c].n;
    const before = row(all[c - 1].y).length, now = steps[at].node === n || stage === 3;
    for (let j = 0; j < here; j++) for (let i = 0; i < before; i++) {
      if (!w && i !== j) continue;
      const [x1, y1] = place(c - 1, i), [x2, y2] = place(c, j);
      make("line", { x1, y1, x2, y2, class: "weight" + (now && w ? " on" : "") }, svg);
    }
    if (w) for (let j = 0; j < here; j++) for (let i = 0; i < before; i++) {
      const [x1, y1] = place(c - 1, i), [x2, y2] = place(c, j), t = 0.34 + 0.34 * (j / Math.max(1, here - 1) || 0);
      const shown = stage < 2 ? w.weight.values[i][j] : stage === 2
        ? (reach(c - 1) ? callOf(n).gradients.w.values[i][j] : "") : w.after.values[i][j];
      make("text", { x: x1 + t * (x2 - x1), y: y1 + t * (y2 - y1) + 4, class: "number", "text-anchor": "middle" }, svg, num(shown));
    }
  }
  all.forEach((column, c) => {
    row(column.y).forEach((_, i) => {
      const [x, y] = place(c, i), seen = reach(c);
      const value = stage === 2 ? (column.dy ? row(column.dy)[i] : "") : row(column.y)[i];
      const at1 = column.n === steps[at].node && stage < 3 || (!c && at === 0);
      const cls = ["node", "unit", at1 ? "at" : seen && stage < 3 ? "done" : "",
        unit && unit[0] === c && unit[1] === i ? "chosen" : ""].join(" ");
      const g = make("g", { class: cls, tabindex: 0, role: "button", "data-unit": `${c},${i}` }, svg);
      make("circle", { cx: x, cy: y, r: 25, class: "box" }, g);
      make("text", { x, y: y + 4, class: "value" }, g, seen ? num(value) : "?");
      g.addEventListener("click", () => { unit = [c, i]; chosen = column.n ?? units[0]; show(); });
    });
    const [x, y] = place(c, row(column.y).length - 1);
    make("text", { x: narrow ? x + 32 : x, y: narrow ? y + 4 : y + 46, class: "sub", "text-anchor": narrow ? "start" : "middle" }, svg, column.name);
  });
  const end = all.length, [x, y] = narrow ? [pad + wide / 2, pad + along * end - 30] : [pad + along * end - 40, pad + wide / 2];
  const [x1, y1] = narrow ? [x, y - along + 56] : [x - along + 66, y];
  edge(svg, narrow ? [[x1, y1], [x, y - 27]] : [[x1, y1], [x - 48, y]]);
  const box = make("g", { class: ["node", state(D.loss, 0), chosen === D.loss ? "chosen" : ""].join(" "), "data-node": D.loss, tabindex: 0 }, svg);
  make("rect", { x: x - 46, y: y - 24, width: 92, height: 48, rx: 9, class: "box" }, box);
  make("text", { x, y: y - 4, class: "value", "font-weight": 600 }, box, "loss");
  make("text", { x, y: y + 14, class: "value" }, box, stage || at >= D.forward.length ? num(D.total / (D.weight || 1)) : "?");
  box.addEventListener("click", () => choose(D.loss));
}

// The sums behind one unit, to follow with a pencil.
function sums([c, i]) {
  const all = columns(), column = all[c], lines = [];
  const v = (a, d = 4) => { const t = num(a, d); return String(t).startsWith("\u2212") ? `(${t})` : t; };
  if (c) {
    const w = weightOf(column.n), b = biasOf(column.n), x = row(all[c - 1].y);
    lines.push(["Forward", w
      ? `${x.map((a, k) => `${v(a)} \u00d7 ${v(w.weight.values[k][i])}`).join(" + ")}${b ? " + " + v(b.weight.values[i]) : ""} = ${num(row(column.y)[i], 4)}`
      : `${D.nodes[column.n].formula.forward}, x = ${num(x[i], 4)}: ${num(row(column.y)[i], 4)}`]);
  }
  const next = all[c + 1];
  if (column.dy) {
    const w = next && weightOf(next.n);
    lines.push(["Backward", w && next.dy
      ? `${row(next.dy).map((d, k) => `${v(d)} \u00d7 ${v(w.weight.values[i][k])}`).join(" + ")} = ${num(row(column.dy)[i], 4)}`
      : next ? `${D.nodes[next.n].formula.backward}, dy = ${num(row(next.dy)[i], 4)}: ${num(row(column.dy)[i], 4)}`
      : `${D.nodes[D.loss].formula ? D.nodes[D.loss].formula.backward : "of the loss"}: ${num(row(column.dy)[i], 4)}`]);
  }
  if (c && weightOf(column.n)) {
    const w = weightOf(column.n), b = biasOf(column.n), g = callOf(column.n).gradients;
    const xs = all[c - 1].y.values, ds = column.dy.values;
    w.weight.values.forEach((wk, k) => {
      const terms = xs.length <= 4 ? xs.map((x, e) => `${v(x[k])} \u00d7 ${v(ds[e][i])}`).join(" + ") + " = " : "";
      lines.push([`dw from unit ${k}`, `${terms}${num(g.w.values[k][i], 4)}`]);
      lines.push(["its update", `${num(wk[i], 4)} + ${v(w.change.values[k][i])} = ${num(w.after.values[k][i], 4)}`]);
    });
    if (b) lines.push(["bias", `db = ${num(g.b.values[i], 4)}; ${num(b.weight.values[i], 4)} + ${v(b.change.values[i])} = ${num(b.after.values[i], 4)}`]);
  }
  return `<h3>Unit ${i} of ${esc(column.name)}, example ${example}</h3>`
    + lines.map(([name, text]) => `<div class="sum"><span class="soft">${name}:</span> ${esc(text)}</div>`).join("");
}

// ------------------------------------------------------------------------------------ the panel
function panel() {
  const n = chosen, node = D.nodes[n], call = callOf(n), stage = steps[at].stage, parts = [];
  parts.push(`<h2>${esc(call.path || node.name)}</h2>`);
  if (node.formula) {
    parts.push(`<div class="formula f">${esc(node.formula.forward)}</div><div class="formula b">${node.formula.backward.split("; ").map(esc).join("<br>")}</div>`);
    if (node.formula.latex_forward) parts.push(`<details><summary>as LaTeX</summary><code>${esc(node.formula.latex_forward)}</code><code>${esc(node.formula.latex_backward)}</code></details>`);
  } else if (!node.parts.length) parts.push(`<p class="soft">A layer of your own: its author has given no formula (layer(..., formula=Formula(...))).</p>`);
  for (const t of notesOf(n)) parts.push(note(t));
  if (unit && view === "units") parts.push(sums(unit));
  const arrays = [["x", call.x, 0], ["y", n === D.loss ? null : call.y, 0], ["dy", n === D.loss ? null : call.dy, 2], ["dx", call.dx, 2],
    ...Object.entries(call.gradients).map(([k, s]) => ["d" + k, s, 2])].filter(a => a[1]);
  parts.push(`<h3>What went forward, and what came back${D.weight !== 1 ? ` (of the sum over ${num(D.weight)} terms)` : ""}</h3><div class="scroll"><table><tr><th></th><th>shape</th><th>mean</th><th>deviation</th><th>norm</th><th>zeros</th></tr>`
    + arrays.map(([name, s, of]) => `<tr class="${of === 2 === (stage === 2) && stage !== 3 ? "now" : ""}"><td>${esc(name)}</td><td>${shape(s)}</td><td>${num(s.mean)}</td><td>${num(s.deviation)}</td><td>${num(s.norm)}</td><td>${Math.round(100 * s.zeros)}%</td></tr>`).join("") + "</table></div>");
  const rows = node.updates.map(i => D.updates[i]);
  if (rows.length) parts.push(`<h3>Update, by ${esc(D.optimizer)}</h3><div class="scroll"><table><tr><th></th><th>|weight|</th><th>|gradient|</th><th>|update|</th><th>ratio</th></tr>`
    + rows.map(u => `<tr class="${stage === 3 ? "now" : ""}"><td>${esc(last(u.name))}</td><td>${num(u.weight.norm)}</td><td>${u.gradient ? num(u.gradient.norm) : "fixed"}</td><td>${num(u.change.norm)}</td><td>${typeof u.ratio === "number" ? num(u.ratio, 2) : "\u2013"}</td></tr>`).join("") + "</table></div>");
  if (node.calls.length > 1) parts.push(`<h3>Its ${node.calls.length} copies</h3><table><tr><th>copy</th><th>deviation of y</th><th>|dy|</th><th>|dx|</th></tr>`
    + node.calls.map((c, k) => `<tr class="pick${k === Math.min(copy, node.calls.length - 1) ? " now" : ""}" data-pick="${k}"><td>${k}</td><td>${c.y ? num(c.y.deviation) : ""}</td><td>${c.dy ? num(c.dy.norm) : ""}</td><td>${c.dx ? num(c.dx.norm) : ""}</td></tr>`).join("") + "</table>");
  const shown = stage === 2 ? call.dx || call.dy : n === D.loss ? call.x : call.y;
  if (shown && shown.bins.length > 1) {
    const most = Math.max(...shown.bins);
    parts.push(`<h3>Where the numbers of ${stage === 2 ? (call.dx ? "dx" : "dy") : n === D.loss ? "x" : "y"} lie</h3><div class="bars">${shown.bins.map(b => `<span style="height:${100 * b / most}%"></span>`).join("")}</div><div class="ends"><span>${num(shown.least)}</span><span>${num(shown.largest)}</span></div>`);
  }
  const few = arrays.filter(a => a[1].values !== null || a[1].first.length);
  if (few.length) parts.push(`<details${arrays.every(a => a[1].values) ? " open" : ""}><summary>numbers</summary>${few.map(([name, s]) => `<code>${esc(name)} = ${esc(s.values !== null ? written(s.values) : written(s.first) + " ...")}</code>`).join("")}</details>`);
  if (D.notes.length) parts.push(`<h3>All that is off</h3>${D.notes.map(note).join("")}`);
  $("panel").innerHTML = parts.join("");
  for (const row of document.querySelectorAll("[data-pick]")) row.onclick = () => { copy = +row.dataset.pick; show(); };
}

const written = v => Array.isArray(v) ? `[${v.map(written).join(", ")}]` : num(v, 4);
const note = t => `<div class="note"><b>${esc(t.kind)}</b> ${esc(t.where)}: ${esc(t.what)}.<i>${esc(t.remedy)}.</i></div>`;

// ---------------------------------------------------------------------------------- moving about
function choose(n) { chosen = n; unit = null; show(); }

function move(to) {
  at = Math.max(0, Math.min(steps.length - 1, to));
  if (steps[at].node !== null) { chosen = steps[at].node; copy = steps[at].copy; unit = null; }
  show();
  const now = document.querySelector("[data-now]");
  if (now) {
    const box = now.getBoundingClientRect(), room = $("graph").getBoundingClientRect();
    if (box.top < room.top || box.bottom > room.bottom) $("graph").scrollTop += box.top - room.top - room.height / 2;
  }
}

function show() {
  const now = steps[at], svg = $("net");
  document.body.dataset.stage = now.stage;
  svg.innerHTML = `<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path class="tip" d="M0,0L8,4L0,8z"/></marker></defs>`;
  $("slider").value = at;
  STAGES.forEach((_, i) => $("stages").children[i].setAttribute("aria-selected", i === now.stage));
  const path = now.node === null ? "" : callOf(now.node, now.copy).path || D.nodes[now.node].name;
  const f = now.node === null ? null : D.nodes[now.node].formula;
  $("now").textContent = now.stage === 3 ? `Every weight moves a little against its gradient: by ${D.optimizer}.`
    : now.stage === 1 ? `The loss: a sum of ${num(D.total)} over ${num(D.weight)} terms, ${num(D.total / (D.weight || 1))} each.`
    : `${path}: ${f ? (now.stage === 0 ? f.forward : f.backward) : ""}`;
  const views = [];
  if (units) {
    views.push(["units", "units"], ["layers", "layers"]);
  }
  $("views").innerHTML = views.map(([v, t]) => `<button data-view="${v}" aria-pressed="${v === view}">${t}</button>`).join("")
    + (view === "units" && callOf(units[0]).x.values.length > 1 ? `<button id="example">example ${example} of ${callOf(units[0]).x.values.length}</button>` : "");
  for (const b of document.querySelectorAll("[data-view]")) b.onclick = () => { view = b.dataset.view; show(); };
  if ($("example")) $("example").onclick = () => { example = (example + 1) % callOf(units[0]).x.values.length; show(); };
  (view === "units" ? drawUnits : drawLayers)(svg);
  panel();
}

$("what").textContent = `${document.title.replace("One training step: ", "")}, loss ${num(D.total / (D.weight || 1))}` + (D.notes.length ? `, ${D.notes.length} note${D.notes.length > 1 ? "s" : ""}` : "");
STAGES.forEach((name, i) => {
  const button = document.createElement("button");
  button.textContent = `${i + 1} ${name}`;
  button.setAttribute("role", "tab");
  button.onclick = () => move(steps.findIndex(s => s.stage === i));
  $("stages").appendChild(button);
});
$("slider").max = steps.length - 1;
$("slider").oninput = e => move(+e.target.value);
$("back").onclick = () => move(at - 1);
$("on").onclick = () => move(at + 1);
$("theme").onclick = () => {
  const root = document.documentElement, dark = root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
document.addEventListener("keydown", e => {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
  if (by) { e.preventDefault(); move(at + by); }
});
addEventListener("resize", show);
show();
