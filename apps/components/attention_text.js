// One head on the text itself: point at a token to see where it attends, click to lock it.
// "received" turns the question round: which later tokens attend to the one pointed at.

function buildText(root) {
  const row = el("div", "words");
  row.setAttribute("role", "listbox");
  const note = el("div", "legend");
  root.append(row, note);
  const view = { words: [] };

  const weight = (query, key) => view.weights[query * view.head.tokens.length + key];

  function shade(index) {
    const look = theme(root);
    const colours = palette("attention", look);
    const received = view.head.direction === "received";
    const { top, tokens } = view.head;
    view.words.forEach((word, other) => {
      const value = received ? weight(other, index) : weight(index, other);
      const unseen = received ? other < index : other > index;
      const unit = Math.max(0, Math.min(1, value / top));
      const colour = colours[Math.round(255 * Math.pow(unit, view.head.gamma))];
      word.style.background = unseen ? "transparent" : rgb(colour);
      word.style.color = unseen ? "inherit" : inkOn(colour);
      word.classList.toggle("far", unseen && view.head.causal);
      word.setAttribute("aria-selected", String(other === index));
      word.querySelector("small").textContent =
        unseen && view.head.causal ? String(other) : `${(100 * value).toFixed(0)} %`;
    });
    const verb = received ? "is attended to from" : "attends to";
    const first = view.head.first + index;
    note.textContent = `position ${first} “${tokens[index].text}” ${verb}: shade and percentage`;
  }

  function word(token, index) {
    const node = el("button", "word");
    node.setAttribute("role", "option");
    node.setAttribute("aria-label", `position ${view.head.first + index}, ${token.text}`);
    node.append(tokenNode(token), el("small", "", ""));
    node.addEventListener("pointerenter", () => shade(index));
    node.addEventListener("focus", () => shade(index));
    node.addEventListener("click", () => view.pick(index));
    node.addEventListener("keydown", (event) => {
      const step = (STEPS[event.key] || [0])[0];
      const next = view.words[index + step];
      if (step && next) next.focus();
    });
    return node;
  }

  row.addEventListener("pointerleave", () => shade(view.head.selected));
  onTheme(root, () => shade(view.head.selected));
  view.update = (head, cells, pick) => {
    Object.assign(view, { head, weights: new Float32Array(cells.buffer) });
    view.pick = (index) => {
      view.head.selected = index;
      shade(index);
      pick(head.first + index);
    };
    row.setAttribute("aria-label", head.alt);
    const sig = JSON.stringify(head.tokens);
    if (view.sig !== sig) {
      view.words = head.tokens.map(word);
      row.replaceChildren(...view.words);
      view.sig = sig;
    }
    shade(head.selected);
  };
  return view;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const { head, cells } = unpack(data);
  const view = mount(parentElement, buildText);
  view.update(head, cells, (position) => setTriggerValue("picked", position));
}
