"use strict";
(function () {
  var doc = document, root = doc.documentElement;
  function all(selector, from) { return Array.prototype.slice.call((from || doc).querySelectorAll(selector)); }
  function byId(id) { return doc.getElementById(id); }
  function make(tag, text, name) {
    var node = doc.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    if (name) node.className = name;
    return node;
  }
  function announce(text) { var live = byId("announce"); live.textContent = ""; setTimeout(function () { live.textContent = text; }, 30); }
  var still = matchMedia("(prefers-reduced-motion: reduce)");

  /* ---- theme ---- */
  var theme = byId("theme"), themes = ["auto", "light", "dark"], onTheme = [];
  function showTheme() { theme.textContent = "Theme: " + (root.getAttribute("data-theme") || "auto"); }
  theme.hidden = false;
  showTheme();
  theme.addEventListener("click", function () {
    var now = root.getAttribute("data-theme") || "auto", next = themes[(themes.indexOf(now) + 1) % 3];
    if (next === "auto") root.removeAttribute("data-theme"); else root.setAttribute("data-theme", next);
    try { if (next === "auto") localStorage.removeItem("moe-advisor-theme"); else localStorage.setItem("moe-advisor-theme", next); } catch (error) { /* storage is off: the choice holds for this visit */ }
    showTheme();
    onTheme.forEach(function (call) { call(); });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { onTheme.forEach(function (call) { call(); }); });

  /* ---- copying ---- */
  function fallbackCopy(text) {
    var area = make("textarea", text);
    area.setAttribute("readonly", "");
    area.className = "sr";
    doc.body.appendChild(area);
    area.select();
    var done = false;
    try { done = doc.execCommand("copy"); } catch (error) { done = false; }
    area.remove();
    return done;
  }
  function copyText(text, then) {
    if (navigator.clipboard && navigator.clipboard.writeText) {
      navigator.clipboard.writeText(text).then(function () { then(true); }, function () { then(fallbackCopy(text)); });
    } else then(fallbackCopy(text));
  }
  all("[data-copy]").forEach(function (button) {
    button.hidden = false;
    button.addEventListener("click", function () {
      var source = byId(button.getAttribute("data-copy"));
      copyText(source.value === undefined ? source.textContent : source.value, function (done) {
        button.textContent = done ? "✓ Copied" : "Press Ctrl+C";
        button.classList.toggle("done", done);
        announce(done ? "Copied" : "Copying was refused by the browser");
        setTimeout(function () { button.textContent = "Copy"; button.classList.remove("done"); }, 2000);
      });
    });
  });
  all("[data-copy-link]").forEach(function (link) {
    link.addEventListener("click", function () {
      var url = location.href.split("#")[0] + "#" + link.getAttribute("data-copy-link");
      copyText(url, function (done) { if (done) announce("Link copied"); });
    });
  });

  /* ---- anchors open what they point into ---- */
  function reveal() {
    var id = "";
    try { id = decodeURIComponent(location.hash.slice(1)); } catch (error) { return; }
    var node = id && byId(id);
    if (!node) return;
    for (var up = node; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
    node.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  all('a[href^="#"]').forEach(function (link) { link.addEventListener("click", function () { if (link.getAttribute("href") === location.hash) reveal(); }); });
  reveal();
  var shut = [];
  addEventListener("beforeprint", function () { shut = all("details:not([open])"); shut.forEach(function (one) { one.open = true; }); });
  addEventListener("afterprint", function () { shut.forEach(function (one) { one.open = false; }); });

  /* ---- sections in view ---- */
  var links = all("nav a"), marked = null;
  function mark() {
    var current = links[0];
    links.forEach(function (link) {
      var section = byId(link.getAttribute("href").slice(1));
      if (section && section.getBoundingClientRect().top < innerHeight * 0.35) current = link;
    });
    if (current === marked) return;
    links.forEach(function (link) { if (link === current) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current"); });
    marked = current;
  }
  addEventListener("scroll", mark, { passive: true });
  mark();

  /* ---- sorting ---- */
  all("table.sortable").forEach(function (table) {
    var head = all("thead th", table), body = table.tBodies[0];
    var first = all("tr", body);
    head.forEach(function (cell, column) {
      if (cell.classList.contains("plot")) return; /* a drawing has the order of its figures */
      var title = cell.textContent, button = make("button", title);
      button.type = "button";
      cell.textContent = "";
      cell.appendChild(button);
      cell.setAttribute("aria-sort", "none");
      button.addEventListener("click", function () {
        var numeric = cell.classList.contains("n"), now = cell.getAttribute("aria-sort");
        var next = now === "none" ? (numeric ? "descending" : "ascending") : now === (numeric ? "descending" : "ascending") ? (numeric ? "ascending" : "descending") : "none";
        head.forEach(function (other) { other.setAttribute("aria-sort", "none"); });
        cell.setAttribute("aria-sort", next);
        var rows = first.slice();
        if (next !== "none") {
          var sign = next === "ascending" ? 1 : -1;
          rows.sort(function (a, b) {
            var x = a.cells[column], y = b.cells[column];
            var u = x.hasAttribute("data-v") ? x.getAttribute("data-v") : null, v = y.hasAttribute("data-v") ? y.getAttribute("data-v") : null;
            if (u !== null || v !== null) {
              /* what is not measured stands last either way */
              if (!u || !v) return u === v ? 0 : !u ? 1 : -1;
              return sign * (parseFloat(u) - parseFloat(v));
            }
            return sign * x.textContent.localeCompare(y.textContent, "en");
          });
        }
        rows.forEach(function (row) { body.appendChild(row); });
        announce(title + ", " + (next === "none" ? "original order" : "sorted " + next));
      });
    });
  });

  /* ---- heat map of many ranks ---- */
  all(".heatbox").forEach(function (frame) {
    var heat = JSON.parse(frame.querySelector("script").textContent), picture = frame.querySelector("svg"), read = frame.nextElementSibling;
    var cursor = doc.createElementNS("http://www.w3.org/2000/svg", "rect"), row = 0, column = 0;
    cursor.setAttribute("width", heat.size + 1);
    cursor.setAttribute("height", heat.size + 1);
    cursor.setAttribute("fill", "none");
    cursor.setAttribute("stroke-width", "2");
    cursor.setAttribute("class", "l-ink");
    function left(at) { return heat.left + at * heat.size + Math.floor(at / heat.node) * heat.gap; }
    function place(r, c) {
      if (r < 0 || c < 0 || r >= heat.rows.length || c >= heat.ranks.length) return;
      row = r; column = c;
      cursor.setAttribute("x", left(c) - 1);
      cursor.setAttribute("y", heat.top + r * heat.size - 1);
      if (!cursor.parentNode) picture.appendChild(cursor);
      var wait = heat.rows[r][1][c];
      read.textContent = "Rank " + heat.ranks[c] + ", " + heat.rows[r][0] + ": " + (wait === undefined ? "not measured" : "waits " + wait.toFixed(2) + " ms");
    }
    picture.addEventListener("pointermove", function (event) {
      var box = picture.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      for (var c = heat.ranks.length - 1; c >= 0 && left(c) > x; c--);
      place(Math.floor((y - heat.top) / heat.size), c);
    });
    frame.addEventListener("keydown", function (event) {
      var step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      place(cursor.parentNode ? row + step[0] : 0, cursor.parentNode ? column + step[1] : 0);
    });
  });

  /* ---- timeline ---- */
  var holder = byId("timeline-data");
  if (!holder) return;
  var data = JSON.parse(holder.textContent), box = byId("tl-box"), canvas = byId("tl-draw"), tip = byId("tl-tip"), panel = byId("tl-panel");
  var pen = canvas.getContext("2d");
  if (!pen) return;
  byId("tl").hidden = false;
  byId("tl-still").classList.add("replaced");

  var STEP = data.step || 1, view = { from: 0, to: STEP }, SMALLEST = 5, selected = null, tints = {}, gutter = 120, wide = 0, rows = [], tall = 0;
  var lanes = data.lanes.map(function (name, index) { return { name: name, index: index, first: -1, last: -1, longest: 0, kinds: {} }; });
  data.lane.forEach(function (lane, i) {
    var one = lanes[lane];
    if (one.first < 0) one.first = i;
    one.last = i;
    one.longest = Math.max(one.longest, data.dur[i]);
    var kind = data.kinds[data.role[i]];
    one.kinds[kind] = (one.kinds[kind] || 0) + data.dur[i];
  });
  lanes = lanes.filter(function (lane) { return lane.first >= 0; });
  lanes.forEach(function (lane) {
    var most = Object.keys(lane.kinds).sort(function (a, b) { return lane.kinds[b] - lane.kinds[a]; })[0];
    var words = { expert: "compute", compute: "compute", wire: "EP all-to-all", comm: "communication", other: "copies", opaque: "CUDA graphs" };
    var sums = {}, whole = 0;
    Object.keys(lane.kinds).forEach(function (kind) { var word = words[kind] || kind; sums[word] = (sums[word] || 0) + lane.kinds[kind]; whole += lane.kinds[kind]; });
    var first = words[most] || "", second = Object.keys(sums).filter(function (word) { return word !== first && sums[word] > whole * 0.15; }).sort(function (a, b) { return sums[b] - sums[a]; })[0];
    lane.note = second ? first + ", " + second : first;
  });
  var depths = Math.min(3, data.host.reduce(function (most, row) { return Math.max(most, row[3] + 1); }, 0));
  var byDepth = [];
  for (var d = 0; d < depths; d++) byDepth.push(data.host.filter(function (row) { return row[3] === d; }));

  function number(value, digits) {
    var text = Math.abs(value).toFixed(digits).replace(/\B(?=(\d{3})+(?!\d))/, ",");
    return (value < 0 && parseFloat(text) !== 0 ? "−" : "") + text;
  }
  function msText(us) { return number(us / 1000, us / 1000 < 10 ? 2 : 1); }
  function token(name) { return getComputedStyle(root).getPropertyValue("--" + name).trim(); }
  function texture(size, paint) {
    var small = doc.createElement("canvas"), ratio = devicePixelRatio || 1;
    small.width = small.height = Math.round(size * ratio);
    var brush = small.getContext("2d");
    brush.scale(small.width / size, small.height / size);
    paint(brush, size);
    var made = pen.createPattern(small, "repeat");
    if (made.setTransform) made.setTransform(new DOMMatrix().scale(size / small.width));
    return made;
  }
  function readTints() {
    ["bg", "surface", "line", "grid", "ink", "muted", "faint", "wire", "comm", "expert", "compute", "host", "idle", "other", "opaque", "on", "onexpert", "shade"].forEach(function (name) { tints[name] = token(name); });
    tints.hidden = texture(5, function (b, s) { b.fillStyle = tints.bg; b.fillRect(0, 0, s, s); b.fillStyle = tints.wire; b.beginPath(); b.arc(2.5, 2.5, 1.2, 0, 7); b.fill(); });
    tints.gap = texture(6, function (b, s) { b.fillStyle = tints.host; b.fillRect(0, 0, s, s); b.strokeStyle = token("host-grid"); b.lineWidth = 1; b.strokeRect(0.5, 0.5, s, s); });
    tints.wait = texture(5, function (b, s) { b.fillStyle = tints.bg; b.fillRect(0, 0, s, s); b.strokeStyle = tints.idle; b.lineWidth = 1.2; b.beginPath(); b.moveTo(-1, s + 1); b.lineTo(s + 1, -1); b.moveTo(-1, 1); b.lineTo(1, -1); b.moveTo(s - 1, s + 1); b.lineTo(s + 1, s - 1); b.stroke(); });
  }
  function layout() {
    var width = box.clientWidth;
    gutter = width < 620 ? 76 : 120;
    wide = Math.max(width - gutter, 60);
    rows = [];
    var y = 0;
    function add(kind, height, extra) { var row = { kind: kind, y: y, h: height }; for (var key in extra) row[key] = extra[key]; rows.push(row); y += height; }
    add("overview", 52, { title: "Whole step", note: "compute, comm." });
    y += 8;
    add("ruler", 22, {});
    if (depths) { add("host", depths * 19 + 2, { title: "Host", note: "annotations" }); y += 8; }
    lanes.forEach(function (lane) { add("lane", 44, { lane: lane, title: lane.name.charAt(0).toUpperCase() + lane.name.slice(1), note: lane.note }); y += 8; });
    if (data.exposed.length) { add("spans", 34, { spans: data.exposed, fill: "wire", title: "Exposed", note: "nothing hides it" }); y += 2; }
    if (data.hidden.length) { add("spans", 34, { spans: data.hidden, fill: "hidden", title: "Hidden", note: "under compute" }); y += 2; }
    if (data.gaps.length) add("gaps", 36, { title: "Gaps", note: "GPU idle" });
    tall = y + 4;
    var ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(tall * ratio);
    canvas.style.height = tall + "px";
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  }
  function px(us) { return gutter + (us - view.from) / (view.to - view.from) * wide; }
  function us(x) { return view.from + (x - gutter) / wide * (view.to - view.from); }
  function firstFrom(lane, time) {
    var low = lane.first, high = lane.last + 1, edge = time - lane.longest;
    while (low < high) { var middle = (low + high) >> 1; if (data.start[middle] < edge) low = middle + 1; else high = middle; }
    return low;
  }
  function firstSpan(spans, time, end) {
    var low = 0, high = spans.length;
    while (low < high) { var middle = (low + high) >> 1; if (end(spans[middle]) < time) low = middle + 1; else high = middle; }
    return low;
  }
  function spanEnd(pair) { return pair[1]; }
  function gapEnd(gap) { return gap[0] + gap[1]; }
  function within(spans, from, to) {
    var total = 0;
    for (var i = firstSpan(spans, from, spanEnd); i < spans.length && spans[i][0] < to; i++) total += Math.max(0, Math.min(to, spans[i][1]) - Math.max(from, spans[i][0]));
    return total;
  }
  function idleWithin(from, to) {
    var total = 0;
    for (var i = firstSpan(data.gaps, from, gapEnd); i < data.gaps.length && data.gaps[i][0] < to; i++) total += Math.max(0, Math.min(to, gapEnd(data.gaps[i])) - Math.max(from, data.gaps[i][0]));
    return total;
  }
  function write(text, x, y, color, weight, align) {
    pen.fillStyle = color;
    pen.font = (weight || 400) + " 12px " + getComputedStyle(doc.body).fontFamily;
    pen.textAlign = align || "left";
    pen.textBaseline = "middle";
    pen.fillText(text, x, y);
  }
  function fits(text, room, weight) {
    pen.font = (weight || 400) + " 12px " + getComputedStyle(doc.body).fontFamily;
    if (pen.measureText(text).width <= room) return text;
    var size = Math.floor(text.length * room / Math.max(pen.measureText(text).width, 1)) - 1;
    return size > 2 ? text.slice(0, size) + "…" : "";
  }
  var bins = null;
  function overviewBins() {
    var count = Math.max(60, Math.floor(wide / 2));
    if (bins && bins.count === count) return bins;
    bins = { count: count, compute: new Float64Array(count), wire: new Float64Array(count), comm: new Float64Array(count) };
    for (var i = 0; i < data.start.length; i++) {
      var kind = data.kinds[data.role[i]];
      spread(kind === "wire" ? bins.wire : kind === "comm" ? bins.comm : kind === "other" ? null : bins.compute, data.start[i], data.start[i] + data.dur[i]);
    }
    function spread(into, from, to) {
      if (!into) return;
      var size = STEP / count, at = Math.max(0, Math.floor(from / size)), last = Math.min(count - 1, Math.floor(to / size));
      for (; at <= last; at++) into[at] += Math.max(0, Math.min(to, (at + 1) * size) - Math.max(from, at * size)) / size;
    }
    return bins;
  }
  function shortName(index) {
    var role = data.roles[data.role[index]];
    return role.indexOf("ep_") === 0 ? role.slice(3) : role.replace(/_/g, " ");
  }
  function niceStep(span) {
    var raw = span / Math.max(3, wide / 140), size = Math.pow(10, Math.floor(Math.log10(raw)));
    return [1, 2, 5, 10].map(function (n) { return n * size; }).filter(function (n) { return n >= raw; })[0] || size * 10;
  }
  var waiting = 0;
  function draw() { if (!waiting) waiting = requestAnimationFrame(paint); }
  function paint() {
    waiting = 0;
    pen.clearRect(0, 0, gutter + wide, tall);
    var span = view.to - view.from, step = niceStep(span);
    var ruler = rows[1];
    pen.strokeStyle = tints.grid;
    pen.lineWidth = 1;
    for (var t = Math.ceil(view.from / step) * step; t <= view.to; t += step) {
      var x = Math.round(px(t)) + 0.5;
      pen.beginPath(); pen.moveTo(x, ruler.y + 18); pen.lineTo(x, tall); pen.stroke();
      var digits = step >= 1000 ? 0 : step >= 100 ? 1 : step >= 10 ? 2 : 3;
      write(number(t / 1000, digits) + (t === Math.ceil(view.from / step) * step ? " ms" : ""), x, ruler.y + 9, tints.muted, 400, x < gutter + 16 ? "left" : x > gutter + wide - 18 ? "right" : "center");
    }
    rows.forEach(function (row) {
      if (row.title) { write(fits(row.title, gutter - 8, 600), 0, row.y + Math.min(12, row.h / 2), tints.ink, 600); if (row.note) write(fits(row.note, gutter - 8), 0, row.y + 27, tints.muted); }
      pen.save();
      pen.beginPath(); pen.rect(gutter, row.y - 1, wide, row.h + 2); pen.clip();
      if (row.kind === "overview") paintOverview(row);
      else if (row.kind === "host") paintHost(row);
      else if (row.kind === "lane") paintLane(row);
      else if (row.kind === "spans") paintSpans(row);
      else if (row.kind === "gaps") paintGaps(row);
      pen.restore();
    });
    paintSelection();
    var words = "In view " + number(view.from / 1000, 1) + " to " + number(view.to / 1000, 1) + " ms: exposed " + msText(within(data.exposed, view.from, view.to)) + ", hidden " + msText(within(data.hidden, view.from, view.to)) + ", GPU idle " + msText(idleWithin(view.from, view.to)) + " ms";
    var line = byId("tl-view");
    if (line.textContent !== words) line.textContent = words;
    box.setAttribute("data-from", view.from.toFixed(1));
    box.setAttribute("data-to", view.to.toFixed(1));
  }
  function paintOverview(row) {
    var b = overviewBins(), size = wide / b.count;
    for (var i = 0; i < b.count; i++) {
      var inside = (i + 1) * STEP / b.count >= view.from && i * STEP / b.count <= view.to;
      pen.globalAlpha = inside ? 1 : 0.45;
      var c = Math.min(1, b.compute[i]), m = Math.min(1, b.wire[i]), o = Math.min(1 - m, b.comm[i]);
      if (c > 0.01) { pen.fillStyle = tints.compute; pen.fillRect(gutter + i * size, row.y + 23 - 20 * c, size + 0.3, 20 * c); }
      if (m > 0.01) { pen.fillStyle = tints.wire; pen.fillRect(gutter + i * size, row.y + 28, size + 0.3, 20 * m); }
      if (o > 0.01) { pen.fillStyle = tints.comm; pen.fillRect(gutter + i * size, row.y + 28 + 20 * m, size + 0.3, 20 * o); }
    }
    pen.globalAlpha = 1;
    var left = gutter + view.from / STEP * wide, right = gutter + view.to / STEP * wide;
    pen.strokeStyle = tints.ink;
    pen.lineWidth = 2;
    pen.strokeRect(left + 1, row.y + 1, Math.max(right - left - 2, 3), row.h - 2);
    pen.fillStyle = tints.ink;
    pen.fillRect(left - 1, row.y + row.h / 2 - 7, 5, 14);
    pen.fillRect(Math.max(right - 4, left + 4), row.y + row.h / 2 - 7, 5, 14);
  }
  function paintHost(row) {
    byDepth.forEach(function (list, depth) {
      var y = row.y + depth * 19;
      list.forEach(function (one) {
        if (one[0] + one[1] < view.from || one[0] > view.to) return;
        var a = Math.max(px(one[0]), gutter - 2), b = Math.min(px(one[0] + one[1]), gutter + wide + 2);
        pen.fillStyle = tints.surface;
        pen.strokeStyle = tints.line;
        pen.lineWidth = 1;
        pen.fillRect(a, y, Math.max(b - a, 1), 17);
        if (b - a > 3) pen.strokeRect(a + 0.5, y + 0.5, b - a - 1, 16);
        if (b - a > 34) write(fits(one[2], b - a - 10), a + 5, y + 9, tints.ink);
      });
    });
  }
  function paintLane(row) {
    var lane = row.lane;
    pen.fillStyle = tints.surface;
    pen.fillRect(gutter, row.y, wide, row.h);
    var lastKind = null, lastEnd = -1;
    for (var i = firstFrom(lane, view.from); i <= lane.last && data.start[i] <= view.to; i++) {
      var end = data.start[i] + data.dur[i];
      if (end < view.from) continue;
      var a = px(data.start[i]), b = px(end), kind = data.kinds[data.role[i]];
      if (b - a < 1) {
        if (b <= lastEnd && kind === lastKind) continue;
        a = Math.max(a, lastKind === kind ? lastEnd : a);
        b = Math.max(b, a + 1);
      }
      lastKind = kind; lastEnd = b;
      a = Math.max(a, gutter - 2); b = Math.min(b, gutter + wide + 2);
      pen.fillStyle = tints[kind] || tints.compute;
      var seam = b - a > 4 ? 0.7 : 0;
      pen.fillRect(a, row.y, Math.max(b - a - seam, 0.8), row.h);
      if (kind === "wire" || kind === "comm") paintHidden(row, a, b, data.start[i], end, tints[kind]);
      if (b - a > 44) label(i, a, b, row, kind);
    }
  }
  function paintHidden(row, a, b, from, to, edge) {
    var some = false;
    for (var i = firstSpan(data.hidden, from, spanEnd); i < data.hidden.length && data.hidden[i][0] < to; i++) {
      var l = Math.max(px(data.hidden[i][0]), a), r = Math.min(px(data.hidden[i][1]), b);
      if (r - l < 0.4) continue;
      pen.fillStyle = tints.hidden;
      pen.fillRect(l, row.y, r - l, row.h);
      some = true;
    }
    if (some && b - a > 3) { pen.strokeStyle = edge; pen.lineWidth = 1; pen.strokeRect(a + 0.5, row.y + 0.5, b - a - 1, row.h - 1); }
  }
  function label(i, a, b, row, kind) {
    var room = b - a - 8, time = msText(data.dur[i]) + " ms", name = shortName(i);
    if (fits(name, room, 600) !== name) name = "";
    if (fits(time, room) !== time) time = "";
    if (!name && !time) return;
    var ink = kind === "expert" ? tints.onexpert : tints.on, middle = (a + b) / 2;
    /* a plate only where dots stand under the words */
    var hidden = (kind === "wire" || kind === "comm") && within(data.hidden, data.start[i], data.start[i] + data.dur[i]);
    if (hidden > 0.02 * data.dur[i]) {
      pen.font = "600 12px " + getComputedStyle(doc.body).fontFamily;
      var w = Math.max(pen.measureText(name).width, pen.measureText(time).width) + 8;
      pen.fillStyle = tints.bg;
      pen.fillRect(middle - w / 2, row.y + (name && time ? 5 : 13), w, name && time ? row.h - 10 : row.h - 26);
      ink = tints.ink;
    }
    if (name) write(name, middle, row.y + (time ? row.h / 2 - 8 : row.h / 2), ink, 600, "center");
    if (time) write(time, middle, row.y + (name ? row.h / 2 + 8 : row.h / 2), ink, 400, "center");
  }
  function paintSpans(row) {
    var free = gutter;
    for (var i = firstSpan(row.spans, view.from, spanEnd); i < row.spans.length && row.spans[i][0] <= view.to; i++) {
      var a = px(row.spans[i][0]), b = px(row.spans[i][1]);
      pen.fillStyle = tints[row.fill];
      pen.fillRect(a, row.y, Math.max(b - a, 0.8), 16);
      if (row.fill === "hidden" && b - a > 3) { pen.strokeStyle = tints.wire; pen.strokeRect(a + 0.5, row.y + 0.5, b - a - 1, 15); }
      var text = msText(row.spans[i][1] - row.spans[i][0]);
      if (b - a > 26 && (a + b) / 2 - 18 > free) { write(text, (a + b) / 2, row.y + 26, tints.ink, 400, "center"); free = (a + b) / 2 + 18; }
    }
  }
  function paintGaps(row) {
    var big = null;
    for (var i = firstSpan(data.gaps, view.from, gapEnd); i < data.gaps.length && data.gaps[i][0] <= view.to; i++) {
      var gap = data.gaps[i], a = px(gap[0]), b = px(gapEnd(gap));
      pen.fillStyle = gap[2] === "dependency_idle" ? tints.wait : tints.gap;
      pen.fillRect(a, row.y, Math.max(b - a, 0.8), 16);
      if (!big || gap[1] > big[1]) big = gap;
    }
    if (big && big[1] >= 10) {
      var text = msText(big[1]) + " ms " + (data.causes[big[2]] || big[2]);
      var at = Math.max(gutter + 2, px(big[0]));
      pen.font = "400 12px " + getComputedStyle(doc.body).fontFamily;
      at = Math.max(gutter + 2, Math.min(at, gutter + wide - pen.measureText(text).width - 4));
      write(fits(text, wide - 6), at, row.y + 27, tints.ink);
    }
  }
  function rowOf(target) {
    if (target.gap !== undefined) return rows.filter(function (row) { return row.kind === "gaps"; })[0];
    return rows.filter(function (row) { return row.kind === "lane" && row.lane.index === data.lane[target.slice]; })[0];
  }
  function timesOf(target) {
    if (target.gap !== undefined) return [data.gaps[target.gap][0], gapEnd(data.gaps[target.gap])];
    return [data.start[target.slice], data.start[target.slice] + data.dur[target.slice]];
  }
  function paintSelection() {
    if (!selected) return;
    var row = rowOf(selected), times = timesOf(selected);
    if (!row) return;
    var a = Math.max(px(times[0]), gutter), b = Math.min(px(times[1]), gutter + wide);
    if (b < gutter || a > gutter + wide) return;
    pen.strokeStyle = tints.bg; pen.lineWidth = 5;
    pen.strokeRect(a - 1, row.y - 1, Math.max(b - a, 2) + 2, row.h + 1);
    pen.strokeStyle = tints.ink; pen.lineWidth = 2.5;
    pen.strokeRect(a - 1, row.y - 1, Math.max(b - a, 2) + 2, row.h + 1);
  }
  function facts(target) {
    var times = timesOf(target), length = times[1] - times[0];
    var list = [["Start in step", msText(times[0]) + " ms"], ["Duration", number(length / 1000, length < 10000 ? 3 : 2) + " ms"]];
    if (target.gap !== undefined) return list.concat([["Cause", data.causes[data.gaps[target.gap][2]] || data.gaps[target.gap][2]]]);
    var i = target.slice, kind = data.kinds[data.role[i]];
    if (kind === "wire" || kind === "comm") {
      list.push(["Exposed", msText(within(data.exposed, times[0], times[1])) + " ms"]);
      list.push(["Hidden under compute", msText(within(data.hidden, times[0], times[1])) + " ms"]);
    }
    list.push(["Share of the step", number(length / STEP * 100, 2) + " %"]);
    list.push(["Role", data.roles[data.role[i]]]);
    list.push(["Lane", data.lanes[data.lane[i]]]);
    var place = inHost(times[0]);
    if (place) list.push(["Host was in", place]);
    return list;
  }
  function inHost(time) {
    var best = null;
    data.host.forEach(function (one) { if (one[0] <= time && time <= one[0] + one[1] && (!best || one[3] >= best[3])) best = one; });
    return best && best[2];
  }
  function nameOf(target) { return target.gap !== undefined ? "Idle gap" : data.names[data.name[target.slice]]; }
  function select(target) {
    selected = target;
    panel.textContent = "";
    if (!target) { panel.appendChild(make("p", "Nothing selected. Click a slice, or press an arrow key in the timeline.", "muted")); draw(); return; }
    panel.appendChild(make("p", target.gap !== undefined ? "Selected · gap " + (target.gap + 1) + " of " + data.gaps.length : "Selected · " + shortName(target.slice) + ", " + data.lanes[data.lane[target.slice]], "muted"));
    panel.appendChild(make("h4", nameOf(target)));
    var list = make("dl");
    facts(target).forEach(function (pair) { var line = make("div"); line.appendChild(make("dt", pair[0])); line.appendChild(make("dd", pair[1])); list.appendChild(line); });
    panel.appendChild(list);
    draw();
  }
  function clamp(from, to) {
    var span = Math.max(SMALLEST, Math.min(STEP, to - from));
    from = Math.max(0, Math.min(from, STEP - span));
    return { from: from, to: from + span };
  }
  function show(from, to) { view = clamp(from, to); draw(); }
  function zoom(factor, at) {
    var pivot = at === undefined ? (view.from + view.to) / 2 : at, span = (view.to - view.from) * factor;
    span = Math.max(SMALLEST, Math.min(STEP, span));
    var left = (pivot - view.from) / (view.to - view.from);
    show(pivot - left * span, pivot + (1 - left) * span);
  }
  function pan(share) { var move = (view.to - view.from) * share; show(view.from + move, view.to + move); }
  function glide(from, to) {
    var goal = clamp(from, to), start = { from: view.from, to: view.to }, begun = null;
    if (still.matches) { view = goal; draw(); return; }
    function frame(now) {
      if (begun === null) begun = now;
      var k = Math.min(1, (now - begun) / 150);
      k = k * (2 - k);
      view = { from: start.from + (goal.from - start.from) * k, to: start.to + (goal.to - start.to) * k };
      paint();
      if (k < 1) requestAnimationFrame(frame);
    }
    requestAnimationFrame(frame);
  }
  function keepInView(target) {
    var times = timesOf(target);
    if (times[0] >= view.from && times[1] <= view.to) return;
    var span = Math.max(view.to - view.from, (times[1] - times[0]) * 1.5), middle = (times[0] + times[1]) / 2;
    show(middle - span / 2, middle + span / 2);
  }
  function hit(x, y) {
    var time = us(x), slack = (view.to - view.from) / wide * 3;
    if (x < gutter) return null;
    for (var r = 0; r < rows.length; r++) {
      var row = rows[r];
      if (y < row.y || y > row.y + row.h) continue;
      if (row.kind === "lane") {
        var best = -1, gap = slack;
        for (var i = firstFrom(row.lane, time - slack); i <= row.lane.last && data.start[i] <= time + slack; i++) {
          var away = time < data.start[i] ? data.start[i] - time : Math.max(0, time - data.start[i] - data.dur[i]);
          if (away < gap || (away === 0 && best < 0)) { gap = away; best = i; if (away === 0) break; }
        }
        return best < 0 ? null : { slice: best };
      }
      if (row.kind === "gaps") {
        for (var g = firstSpan(data.gaps, time - slack, gapEnd); g < data.gaps.length && data.gaps[g][0] <= time + slack; g++) return { gap: g };
      }
      return null;
    }
    return null;
  }
  function move(direction) {
    if (!selected) {
      var lane = lanes[0], i = lane ? firstFrom(lane, view.from) : 0;
      while (lane && i < lane.last && data.start[i] < view.from) i++;
      select({ slice: Math.min(i, lane.last) });
    } else if (selected.gap !== undefined) {
      select({ gap: Math.max(0, Math.min(data.gaps.length - 1, selected.gap + direction)) });
    } else {
      var own = lanes.filter(function (one) { return one.index === data.lane[selected.slice]; })[0];
      select({ slice: Math.max(own.first, Math.min(own.last, selected.slice + direction)) });
    }
    keepInView(selected);
  }
  function changeLane(direction) {
    if (!selected) { move(0); return; }
    var order = lanes.map(function (lane) { return lane.index; }), time = timesOf(selected)[0];
    var at = selected.gap !== undefined ? order.length : order.indexOf(data.lane[selected.slice]);
    at = Math.max(0, Math.min(order.length - (data.gaps.length ? 0 : 1), at + direction));
    if (at === order.length) {
      var g = Math.min(firstSpan(data.gaps, time, gapEnd), data.gaps.length - 1);
      select({ gap: g });
    } else {
      var lane = lanes[at], low = lane.first;
      while (low < lane.last && data.start[low] + data.dur[low] < time) low++;
      select({ slice: low });
    }
    keepInView(selected);
  }

  box.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    var key = event.key.length === 1 ? event.key.toLowerCase() : event.key, taken = true;
    var pivot = selected ? (timesOf(selected)[0] + timesOf(selected)[1]) / 2 : undefined;
    if (pivot !== undefined && (pivot < view.from || pivot > view.to)) pivot = undefined;
    if (key === "w" || key === "+") zoom(0.6, pivot);
    else if (key === "s" || key === "-") zoom(1 / 0.6, pivot);
    else if (key === "a") pan(-0.2);
    else if (key === "d") pan(0.2);
    else if (key === "ArrowRight") move(1);
    else if (key === "ArrowLeft") move(-1);
    else if (key === "ArrowDown") changeLane(1);
    else if (key === "ArrowUp") changeLane(-1);
    else if (key === "f") glide(0, STEP);
    else if (key === "Escape") select(null);
    else taken = false;
    if (taken) event.preventDefault();
  });
  box.addEventListener("wheel", function (event) {
    var x = event.clientX - box.getBoundingClientRect().left;
    if (event.ctrlKey || event.metaKey) { event.preventDefault(); zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), us(Math.max(x, gutter))); }
    else if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) { event.preventDefault(); pan((event.deltaX || event.deltaY) / wide); }
  }, { passive: false });
  var drag = null;
  canvas.addEventListener("pointerdown", function (event) {
    if (event.button !== 0) return;
    var place = box.getBoundingClientRect(), x = event.clientX - place.left, y = event.clientY - place.top, over = rows[0];
    drag = { x: x, y: y, from: view.from, to: view.to, moved: false, mode: "pan" };
    if (y >= over.y && y <= over.y + over.h && x >= gutter) {
      var left = gutter + view.from / STEP * wide, right = gutter + view.to / STEP * wide;
      drag.mode = Math.abs(x - left) < 7 ? "left" : Math.abs(x - right) < 7 ? "right" : x > left && x < right && view.to - view.from < STEP * 0.999 ? "frame" : "new";
      drag.anchor = (x - gutter) / wide * STEP;
    }
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", function (event) {
    var place = box.getBoundingClientRect(), x = event.clientX - place.left, y = event.clientY - place.top;
    if (!drag) { hover(x, y); return; }
    if (Math.abs(x - drag.x) > 3) drag.moved = true;
    if (!drag.moved) return;
    tip.hidden = true;
    var whole = (x - drag.x) / wide * STEP, at = (x - gutter) / wide * STEP;
    if (drag.mode === "pan") { var shift = (x - drag.x) / wide * (drag.to - drag.from); show(drag.from - shift, drag.to - shift); }
    else if (drag.mode === "frame") show(drag.from + whole, drag.to + whole);
    else if (drag.mode === "left") show(Math.min(Math.max(0, at), drag.to - SMALLEST), drag.to);
    else if (drag.mode === "right") show(drag.from, Math.max(Math.min(STEP, at), drag.from + SMALLEST));
    else show(Math.max(0, Math.min(drag.anchor, at)), Math.min(STEP, Math.max(drag.anchor, at)));
  });
  canvas.addEventListener("pointerup", function (event) {
    if (drag && !drag.moved) {
      var place = box.getBoundingClientRect(), x = event.clientX - place.left, y = event.clientY - place.top;
      if (drag.mode === "pan") select(hit(x, y));
      else { var span = view.to - view.from; show(drag.anchor - span / 2, drag.anchor + span / 2); }
    }
    drag = null;
  });
  canvas.addEventListener("pointercancel", function () { drag = null; });
  canvas.addEventListener("pointerleave", function () { tip.hidden = true; });
  function hover(x, y) {
    var target = hit(x, y);
    canvas.style.cursor = target ? "pointer" : "default";
    if (!target) { tip.hidden = true; return; }
    var times = timesOf(target);
    tip.textContent = nameOf(target) + " · " + number((times[1] - times[0]) / 1000, 3) + " ms" + (target.gap !== undefined ? " · " + (data.causes[data.gaps[target.gap][2]] || "") : "");
    tip.hidden = false;
    tip.style.left = Math.max(0, Math.min(x + 12, gutter + wide - 320)) + "px";
    tip.style.top = y + 16 + "px";
  }
  all("[data-tl]").forEach(function (button) {
    button.addEventListener("click", function () {
      var what = button.getAttribute("data-tl");
      if (what === "in") zoom(0.5);
      else if (what === "out") zoom(2);
      else if (what === "fit") glide(0, STEP);
      else { var keys = byId("tl-keys"); keys.hidden = !keys.hidden; button.setAttribute("aria-expanded", String(!keys.hidden)); }
    });
  });
  all("[data-jump]").forEach(function (control) {
    control.addEventListener("click", function () {
      var place = data.jumps[parseInt(control.getAttribute("data-jump"), 10)];
      if (!place) return;
      if (place.slice >= 0) select({ slice: place.slice });
      else select({ gap: Math.min(firstSpan(data.gaps, place.start + place.dur / 2, gapEnd), data.gaps.length - 1) });
      var room = Math.max(place.dur, 50) * 4;
      glide(place.start + place.dur / 2 - room, place.start + place.dur / 2 + room);
      all("button[data-jump]").forEach(function (other) { other.setAttribute("aria-pressed", String(other === control)); });
      announce(place.label);
    });
  });
  function refresh() { bins = null; readTints(); layout(); draw(); }
  onTheme.push(refresh);
  var last = 0;
  if (window.ResizeObserver) new ResizeObserver(function () { if (box.clientWidth !== last) { last = box.clientWidth; refresh(); } }).observe(box);
  else addEventListener("resize", refresh);
  refresh();
})();
