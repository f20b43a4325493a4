// Layers left to right, heads top to bottom; one small canvas a head, drawn from raw bytes.
// Hovering names the head here in the browser; a click or Enter locks it and tells the server.

function paintHead(canvas, cells, offset, size, colours) {
  canvas.width = size;
  canvas.height = size;
  canvas.classList.toggle("fine", size > 40);
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    const [r, g, b] = colours[cells[offset + i]];
    image.data.set([r, g, b, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

function buildWall(root) {
  const grid = el("div", "wall");
  const foot = el("div");
  grid.setAttribute("role", "grid");
  root.append(grid, foot);
  const tip = makeTip(root);
  const view = { heads: new Map(), drawn: null };

  const describe = (layer, head) => view.head.labels[layer * view.head.n_heads + head];

  function focusHead(layer, head) {
    for (const canvas of view.heads.values()) canvas.tabIndex = -1;
    const canvas = view.heads.get(`${layer}.${head}`);
    canvas.tabIndex = 0;
    return canvas;
  }

  function select(layer, head) {
    for (const [name, canvas] of view.heads)
      canvas.setAttribute("aria-selected", String(name === `${layer}.${head}`));
    focusHead(layer, head);
  }

  function onKey(event, layer, head) {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      view.pick(layer, head);
    } else if (STEPS[event.key]) {
      event.preventDefault();
      const [dx, dy] = STEPS[event.key];
      const clamp = (value, n) => Math.max(0, Math.min(n - 1, value));
      focusHead(clamp(layer + dx, view.head.n_layers), clamp(head + dy, view.head.n_heads)).focus();
    }
  }

  function thumbnail(layer, head) {
    const canvas = el("canvas");
    const show = () => tip.show(describe(layer, head), canvas.getBoundingClientRect());
    canvas.setAttribute("role", "gridcell");
    canvas.setAttribute("aria-label", describe(layer, head).join(", "));
    canvas.dataset.name = `L${layer}H${head}`;
    canvas.tabIndex = -1;
    canvas.addEventListener("pointerenter", show);
    canvas.addEventListener("focus", show);
    canvas.addEventListener("pointerleave", tip.hide);
    canvas.addEventListener("blur", tip.hide);
    canvas.addEventListener("click", () => view.pick(layer, head));
    canvas.addEventListener("keydown", (event) => onKey(event, layer, head));
    view.heads.set(`${layer}.${head}`, canvas);
    return canvas;
  }

  function layOut({ n_layers, n_heads, alt }) {
    grid.replaceChildren();
    view.heads.clear();
    grid.setAttribute("aria-label", alt);
    grid.style.gridTemplateColumns = `max-content repeat(${n_layers}, minmax(22px, 72px))`;
    const top = el("div", "row");
    top.append(el("span", "axis head", "layer"));
    for (let layer = 0; layer < n_layers; layer++) top.append(el("span", "axis layer", layer));
    grid.append(top);
    for (let head = 0; head < n_heads; head++) {
      const row = el("div", "row");
      row.setAttribute("role", "row");
      row.append(el("span", "axis head", `head ${head}`));
      for (let layer = 0; layer < n_layers; layer++) row.append(thumbnail(layer, head));
      grid.append(row);
    }
  }

  function paint() {
    const { head: spec, cells } = view;
    const look = theme(root);
    const colours = palette("attention", look);
    const area = spec.size * spec.size;
    for (const [name, canvas] of view.heads) {
      const [layer, head] = name.split(".").map(Number);
      const offset = (layer * spec.n_heads + head) * area;
      paintHead(canvas, cells, offset, spec.size, colours);
    }
    foot.replaceChildren(legend(spec.legend, "attention", look));
  }

  onTheme(root, () => paint());
  view.update = (head, cells, pick) => {
    Object.assign(view, { head, cells });
    view.pick = (layer, number) => {
      select(layer, number);
      pick({ layer, head: number });
    };
    if (view.drawn !== head.sig) {
      layOut(head);
      paint();
      view.drawn = head.sig;
    }
    select(head.selected[0], head.selected[1]);
  };
  return view;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const { head, cells } = unpack(data);
  const view = mount(parentElement, buildWall);
  view.update(head, cells, (picked) => setTriggerValue("picked", picked));
}
