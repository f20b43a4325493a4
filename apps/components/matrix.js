// One heatmap with named axes: a value a cell, words in the cells where they fit, a tooltip,
// the selected cell outlined. Arrow keys move a cursor, Enter or a click selects.

const LEFT_PAD = 8;

function buildMatrix(root) {
  const scroll = el("div", "matrix");
  const canvas = el("canvas");
  const foot = el("div");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "grid");
  scroll.append(canvas);
  root.append(scroll, foot);
  const tip = makeTip(root);
  const view = { cursor: null };

  function measure(context, look) {
    const { rows, columns, row_axis, cell_height, min_width, max_width } = view.head;
    context.font = `11.5px ${look.mono}`;
    const widest = (labels) => Math.max(0, ...labels.map((label) => context.measureText(label).width));
    const left = Math.ceil(Math.min(150, widest([...rows, row_axis]))) + LEFT_PAD + 6;
    const room = Math.max(200, root.clientWidth - left - 2);
    const width = Math.max(min_width, Math.min(max_width, Math.floor(room / columns.length)));
    const turned = widest(columns) > width - 4;
    const top = 20 + (turned ? Math.min(92, widest(columns) + 6) : 16);
    return { left, top, width, height: cell_height, turned };
  }

  function cut(context, text, room) {
    if (context.measureText(text).width <= room) return text;
    let end = text.length;
    while (end > 0 && context.measureText(text.slice(0, end) + "…").width > room) end--;
    return end ? text.slice(0, end) + "…" : "";
  }

  function paintLabels(context, look, box) {
    const { rows, columns, row_axis, column_axis } = view.head;
    context.fillStyle = look.text;
    context.font = `11.5px ${look.mono}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const skip = Math.ceil(13 / box.height);
    rows.forEach((label, i) => {
      if (i % skip) return;
      const y = box.top + (i + 0.5) * box.height;
      context.fillText(cut(context, label, box.left - 8), box.left - 6, y);
    });
    const skipColumns = box.turned ? Math.ceil(12 / box.width) : 1;
    columns.forEach((label, i) => {
      if (i % skipColumns) return;
      const x = box.left + (i + 0.5) * box.width;
      context.save();
      context.translate(x, box.top - 6);
      if (box.turned) context.rotate(-Math.PI / 2);
      context.textAlign = box.turned ? "left" : "center";
      if (!box.turned) context.translate(0, -6);
      context.fillText(cut(context, label, box.turned ? box.top - 22 : box.width), 0, 0);
      context.restore();
    });
    context.globalAlpha = 0.65;
    context.font = `11.5px ${look.font}`;
    context.textAlign = "left";
    context.fillText(`${column_axis} →`, box.left, 8);
    context.textAlign = "right";
    context.fillText(`${row_axis} ↓`, box.left - 6, box.top - 12);
    context.globalAlpha = 1;
  }

  function paintCells(context, look, box) {
    const { rows, columns, words, small, low, high, scale, gamma } = view.head;
    const colours = palette(scale, look);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = `12px ${look.mono}`;
    const fits = words && box.width >= 30;
    for (let i = 0; i < rows.length * columns.length; i++) {
      const x = box.left + (i % columns.length) * box.width;
      const y = box.top + Math.floor(i / columns.length) * box.height;
      const value = view.values[i];
      const unit = Math.max(0, Math.min(1, (value - low) / (high - low)));
      const missing = Number.isNaN(value);
      const colour = missing ? look.background : colours[Math.round(255 * Math.pow(unit, gamma))];
      context.fillStyle = rgb(colour);
      const inset = small && small[i] ? Math.round(Math.min(box.width, box.height) * 0.22) : 0;
      context.fillRect(x + inset, y + inset, box.width - 1 - 2 * inset, box.height - 1 - 2 * inset);
      if (fits && words[i]) {
        context.fillStyle = inkOn(colour);
        context.fillText(cut(context, words[i], box.width - 4), x + box.width / 2, y + box.height / 2);
      }
    }
  }

  // Two rings, so the cell stands out on any colour.
  function outline(context, cell, look, box, dashes) {
    if (!cell) return;
    const x = box.left + cell[1] * box.width;
    const y = box.top + cell[0] * box.height;
    context.setLineDash(dashes);
    [[look.text, 2, 0], [rgb(look.background), 1, 1.5]].forEach(([colour, line, inset]) => {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(x + inset, y + inset, box.width - 1 - 2 * inset, box.height - 1 - 2 * inset);
    });
  }

  function paint() {
    const { rows, columns, selected, legend: meaning, scale } = view.head;
    const look = theme(root);
    const context = canvas.getContext("2d");
    const box = measure(context, look);
    view.box = box;
    const width = box.left + columns.length * box.width + 2;
    const height = box.top + rows.length * box.height + 2;
    const dense = window.devicePixelRatio || 1;
    canvas.width = width * dense;
    canvas.height = height * dense;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    context.scale(dense, dense);
    context.direction = "ltr";
    paintCells(context, look, box);
    paintLabels(context, look, box);
    outline(context, selected, look, box, []);
    outline(context, view.cursor, look, box, [3, 2]);
    foot.replaceChildren(legend(meaning, scale, look));
  }

  return bindMatrix(view, { root, scroll, canvas, tip, paint });
}

function bindMatrix(view, { root, scroll, canvas, tip, paint }) {
  function cellAt(event) {
    const { left, top, width, height } = view.box;
    const column = Math.floor((event.offsetX - left) / width);
    const row = Math.floor((event.offsetY - top) / height);
    const { rows, columns } = view.head;
    const inside = row >= 0 && column >= 0 && row < rows.length && column < columns.length;
    return inside ? [row, column] : null;
  }

  function show([row, column]) {
    const { left, top, width, height } = view.box;
    const frame = canvas.getBoundingClientRect();
    const x = frame.left + left + column * width;
    const y = frame.top + top + row * height;
    tip.show(view.head.tips[row * view.head.columns.length + column],
      { left: x, right: x + width, top: y });
    canvas.setAttribute("aria-label",
      view.head.tips[row * view.head.columns.length + column].join(", "));
  }

  canvas.addEventListener("pointermove", (event) => {
    const cell = cellAt(event);
    if (cell) show(cell);
    else tip.hide();
  });
  canvas.addEventListener("pointerleave", tip.hide);
  canvas.addEventListener("blur", tip.hide);
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell) view.pick(cell);
  });
  canvas.addEventListener("keydown", (event) => {
    const [row, column] = view.cursor || view.head.selected || [0, 0];
    if (event.key === "Enter") view.pick([row, column]);
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const clamp = (value, n) => Math.max(0, Math.min(n - 1, value));
    view.cursor = [
      clamp(row + step[1], view.head.rows.length),
      clamp(column + step[0], view.head.columns.length),
    ];
    paint();
    show(view.cursor);
  });
  onTheme(root, () => paint());
  let width = 0;
  new ResizeObserver(() => {
    if (!view.head || width === scroll.clientWidth) return;
    width = scroll.clientWidth;
    paint();
  }).observe(scroll);
  view.update = (head, cells, pick) => {
    Object.assign(view, { head, values: new Float32Array(cells.buffer), cursor: null });
    view.pick = (cell) => {
      view.head.selected = cell;
      paint();
      pick({ row: cell[0], column: cell[1] });
    };
    canvas.setAttribute("aria-label", head.alt);
    paint();
  };
  return view;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const { head, cells } = unpack(data);
  const view = mount(parentElement, buildMatrix);
  view.update(head, cells, (cell) => setTriggerValue("picked", cell));
}
