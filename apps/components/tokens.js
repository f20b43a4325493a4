// A prompt as pills: colour is one channel, the line under a token another, a click selects.

function buildTokens(root) {
  const row = el("div", "words");
  row.setAttribute("role", "listbox");
  const foot = el("div", "legend");
  root.append(row, foot);
  const tip = makeTip(root);
  const view = { pills: [] };

  function pill(token, index) {
    const node = el("button", "word");
    const show = () => tip.show(view.head.tips[index], node.getBoundingClientRect());
    node.setAttribute("role", "option");
    node.setAttribute("aria-label", view.head.tips[index].join(", "));
    node.append(tokenNode(token), el("small", "", view.head.first + index), el("span", "line"));
    node.addEventListener("pointerenter", show);
    node.addEventListener("focus", show);
    node.addEventListener("pointerleave", tip.hide);
    node.addEventListener("blur", tip.hide);
    node.addEventListener("click", () => view.pick(index));
    node.addEventListener("keydown", (event) => {
      const step = (STEPS[event.key] || [0])[0];
      const next = view.pills[index + step];
      if (step && next) next.focus();
    });
    return node;
  }

  function paint() {
    const { colour, line, scale, line_scale, selected } = view.head;
    const look = theme(root);
    const fills = palette(scale, look);
    const lines = palette(line_scale, look);
    view.pills.forEach((node, i) => {
      const fill = colour[i] === null ? null : fills[colour[i]];
      node.style.background = fill ? rgb(fill) : "transparent";
      node.style.color = fill ? inkOn(fill) : "inherit";
      const under = line[i] === null ? null : lines[line[i]];
      node.querySelector(".line").style.background = under ? rgb(under) : "transparent";
      node.setAttribute("aria-selected", String(i === selected));
    });
    foot.textContent = view.head.legend;
  }

  onTheme(root, () => paint());
  view.update = (head, pick) => {
    view.head = head;
    view.pick = (index) => {
      view.head.selected = index;
      paint();
      pick(head.first + index);
    };
    row.setAttribute("aria-label", head.alt);
    const sig = JSON.stringify([head.tokens, head.tips]);
    if (view.sig !== sig) {
      view.pills = head.tokens.map(pill);
      row.replaceChildren(...view.pills);
      view.sig = sig;
    }
    paint();
  };
  return view;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const { head } = unpack(data);
  const view = mount(parentElement, buildTokens);
  view.update(head, (position) => setTriggerValue("picked", position));
}
