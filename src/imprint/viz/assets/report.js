"use strict";
(() => {
  const tip = document.getElementById("tip");
  const make = (tag, cls, words) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (words !== undefined) node.textContent = words;   // textContent only: names never become markup
    return node;
  };
  const show = (event, ...nodes) => {
    tip.replaceChildren(...nodes);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const right = event.clientX + 16 + box.width > innerWidth;
    tip.style.left = Math.max(4, right ? event.clientX - 16 - box.width : event.clientX + 16) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 6)) + "px";
  };
  const hide = () => { tip.hidden = true; };
  const number = v => Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(3) : String(+v.toPrecision(5));
  const read = id => { const node = document.getElementById(id); return node ? JSON.parse(node.textContent) : null; };
  const face = (sprite, place, side) => {
    const node = make("div", "face");
    if (!sprite) return node;                            // the page's style sheet gives every .face the sprite
    const x = place % sprite.columns, y = Math.floor(place / sprite.columns);
    node.style.backgroundSize = `${sprite.columns * side}px auto`;
    node.style.backgroundPosition = `${-x * side}px ${-y * side}px`;
    return node;
  };

  for (const svg of document.querySelectorAll("svg.chart")) {
    const data = JSON.parse(svg.dataset.chart), cursor = svg.querySelector(".cursor");
    svg.addEventListener("pointermove", event => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let best = null;
      for (const line of data.series) for (const p of line.points)
        if (best === null || Math.abs(p[2] - at.x) < Math.abs(best[2] - at.x)) best = p;
      if (best === null) return;
      if (data.scatter) {
        let near = null, line = null;
        const far = p => (p[2] - at.x) ** 2 + (p[3] - at.y) ** 2;
        for (const one of data.series) for (const p of one.points) if (near === null || far(p) < far(near)) { near = p; line = one; }
        const row = make("div"), dot = make("i");
        dot.style.background = line.colour;
        row.append(dot, line.name);
        return show(event, row, make("div", "", `${data.x} ${number(near[0])}`), make("div", "", `${data.y} ${number(near[1])}${data.unit}`));
      }
      cursor.setAttribute("x1", best[2]); cursor.setAttribute("x2", best[2]);
      const rows = [make("div", "", `${data.x} ${number(best[0])}`)];
      for (const line of data.series) {
        let near = null;
        for (const p of line.points) if (near === null || Math.abs(p[2] - best[2]) < Math.abs(near[2] - best[2])) near = p;
        if (near === null) continue;
        const row = make("div"), dot = make("i");
        dot.style.background = line.colour;
        row.append(dot, `${line.name}: ${number(near[1])}${data.unit}`);
        rows.push(row);
      }
      show(event, ...rows);
    });
    svg.addEventListener("pointerleave", () => { hide(); cursor.setAttribute("x1", -9); cursor.setAttribute("x2", -9); });
  }

  const sprite = read("sprite");

  const map = read("map-data"), plane = document.querySelector("svg.map");
  if (map && plane) {
    const SIDE = 1000, PAD = 14, dots = [], off = new Set();
    map.groups.forEach((group, i) => {
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      dot.setAttribute("r", map.groups.length > 800 ? 5 : 7);
      dot.style.fill = map.colours[group];
      dot.dataset.row = i;
      plane.append(dot);
      dots.push(dot);
    });
    const lay = name => map.layouts[name].forEach((p, i) => {
      dots[i].setAttribute("cx", (PAD + p[0] * (SIDE - 2 * PAD)).toFixed(1));
      dots[i].setAttribute("cy", (PAD + (1 - p[1]) * (SIDE - 2 * PAD)).toFixed(1));
    });
    const buttons = [...document.querySelectorAll("[data-layout]")];
    for (const button of buttons) button.addEventListener("click", () => {
      lay(button.dataset.layout);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
    lay(buttons[0].dataset.layout);
    for (const entry of document.querySelectorAll("[data-group]")) entry.addEventListener("click", () => {
      const group = +entry.dataset.group;
      if (off.has(group)) off.delete(group); else off.add(group);
      entry.classList.toggle("off", off.has(group));
      map.groups.forEach((g, i) => dots[i].classList.toggle("dim", off.has(g)));
    });
    plane.addEventListener("pointermove", event => {
      const row = event.target.dataset ? event.target.dataset.row : undefined;
      if (row === undefined) return hide();
      show(event, face(sprite, +row, 96), make("div", "", map.titles[map.groups[row]]), make("div", "", map.names[row]));
    });
    plane.addEventListener("pointerleave", hide);
  }

  for (const input of document.querySelectorAll("input[data-filter]")) {
    const items = [...document.querySelectorAll(input.dataset.filter)], count = input.parentElement.querySelector(".count");
    const apply = () => {
      const words = input.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const item of items) {
        const hit = words.every(word => (item.dataset.words ?? item.textContent).toLowerCase().includes(word));
        item.hidden = !hit;
        item.style.display = hit ? "" : "none";
        shown += hit;
      }
      if (count) count.textContent = `${shown} of ${items.length}`;
    };
    input.addEventListener("input", apply);
    apply();
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    const key = cell => cell.dataset.order !== undefined ? +cell.dataset.order
      : cell.classList.contains("number") ? NaN : cell.textContent.trim().toLowerCase();
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const rows = [...body.rows], number = head.classList.contains("number");
      const before = head.getAttribute("aria-sort");
      const down = before === "none" ? number : before === "ascending";   // numbers: the largest first
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map(row => [key(row.cells[column]), row]);
      keyed.sort(([a], [b]) => {
        const gone = x => typeof x === "number" && Number.isNaN(x);
        if (gone(a) || gone(b)) return gone(a) - gone(b);                 // what is not known goes last either way
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      body.append(...keyed.map(([, row]) => row));
    }));
  }

  for (const button of document.querySelectorAll("[data-wide]")) button.addEventListener("click", () => {
    const wide = document.querySelector(button.dataset.wide).classList.toggle("wide");
    button.setAttribute("aria-pressed", String(wide));
  });

  const links = [...document.querySelectorAll("nav a")];
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting)
      for (const link of links) link.classList.toggle("here", link.hash === "#" + entry.target.id);
  }, { rootMargin: "-60px 0px -75% 0px" });
  for (const part of document.querySelectorAll("main section")) seen.observe(part);
})();
