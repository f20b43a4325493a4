// Helpers that every view shares. Text enters the page through textContent or fillText only.

function unpack(data) {
  const bytes = new Uint8Array(data);
  const size = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
  return { head, cells: bytes.slice(4 + size) };
}

function el(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// A token: isolated, so right-to-left text cannot reorder its neighbours.
function tokenNode(token, className) {
  const node = el("bdi", className, token.text);
  if (token.special) node.classList.add("special");
  return node;
}

function parseColour(text) {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  context.fillStyle = text;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}

function theme(node) {
  const style = getComputedStyle(node);
  const read = (name, fallback) => style.getPropertyValue(name).trim() || fallback;
  const background = parseColour(read("--st-background-color", "#ffffff"));
  return {
    background,
    text: read("--st-text-color", "#222222"),
    border: read("--st-border-color", "#cccccc"),
    font: read("--st-font", "sans-serif"),
    mono: read("--st-code-font", "monospace"),
    dark: luminance(background) < 0.18,
  };
}

// Relative luminance, as contrast is defined: black and white ink contrast equally at 0.18.
function luminance(colour) {
  const linear = (v) => (v <= 10.3 ? v / 3294.6 : Math.pow((v / 255 + 0.055) / 1.055, 2.4));
  const [r, g, b] = colour.map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Middle and end of each scale, on a light and on a dark background.
const HUES = {
  blue: { light: [[107, 174, 214], [8, 69, 148]], dark: [[33, 102, 172], [146, 197, 255]] },
  orange: { light: [[253, 160, 82], [179, 66, 0]], dark: [[190, 84, 10], [255, 196, 130]] },
};

function ramp(background, [middle, end], t) {
  const [from, to, u] = t < 0.5 ? [background, middle, 2 * t] : [middle, end, 2 * t - 1];
  return from.map((value, i) => Math.round(value + (to[i] - value) * u));
}

// 256 colours, from the low end of the scale to the high end.
function palette(scale, look) {
  const side = look.dark ? "dark" : "light";
  const at = (hue, t) => ramp(look.background, HUES[hue][side], t);
  return Array.from({ length: 256 }, (_, i) => {
    if (scale === "signed") {
      const t = (i - 127.5) / 127.5;
      return at(t < 0 ? "orange" : "blue", Math.abs(t));
    }
    return at(scale === "attention" ? "blue" : "orange", i / 255);
  });
}

function rgb(colour) {
  return `rgb(${colour.join(",")})`;
}

function inkOn(colour) {
  return luminance(colour) > 0.18 ? "#16181d" : "#f7f8fa";
}

// The colours of a scale, and in words what its two ends are.
function legend(words, scale, look) {
  const node = el("div", "legend");
  const bar = el("canvas");
  bar.width = 256;
  bar.height = 1;
  const context = bar.getContext("2d");
  palette(scale, look).forEach((colour, i) => {
    context.fillStyle = rgb(colour);
    context.fillRect(i, 0, 1, 1);
  });
  node.append(bar, el("span", "", words));
  return node;
}

// Repaint when the theme changes: a hidden node's colour transition reports it.
function onTheme(root, repaint) {
  const sentinel = el("span", "sentinel");
  sentinel.addEventListener("transitionend", repaint);
  root.appendChild(sentinel);
}

function makeTip(root) {
  const tip = el("div", "tip");
  tip.setAttribute("role", "status");
  tip.hidden = true;
  root.appendChild(tip);
  return {
    show(lines, anchor) {
      tip.replaceChildren(...lines.map((line, i) => el("div", i ? "" : "first", line)));
      tip.hidden = false;
      const frame = root.getBoundingClientRect();
      const right = anchor.right - frame.left + 8;
      const fits = right + tip.offsetWidth < frame.width;
      const left = fits ? right : anchor.left - frame.left - tip.offsetWidth - 8;
      const top = Math.min(anchor.top - frame.top, Math.max(0, frame.height - tip.offsetHeight));
      tip.style.left = `${Math.max(0, left)}px`;
      tip.style.top = `${top}px`;
    },
    hide() {
      tip.hidden = true;
    },
  };
}

// The view's own root, made at the first call and kept while Streamlit keeps the element.
function mount(parentElement, build) {
  if (!parentElement.probeView) {
    const root = el("div", "root");
    parentElement.appendChild(root);
    parentElement.probeView = build(root);
  }
  return parentElement.probeView;
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
