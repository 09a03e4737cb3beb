"use strict";
const cards = [...document.querySelectorAll(".image")];
const [text, label, least, decision, size, count] = ["text", "label", "least", "decision", "size", "count"].map((id) => document.getElementById(id));
function filter() {
  const wanted = text.value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const { file, label: said, percentile, decision: decided, size: classes } = card.dataset;
    const named = (file + " " + said).toLowerCase().includes(wanted);
    const fits = named && (label.value === "" || label.value === said) && (!least || Number(percentile) >= Number(least.value)) &&
      (!decision || decision.value === "" || decision.value === decided) && (!size || size.value === "" || size.value === classes);
    card.hidden = !fits;
    shown += fits;
  }
  count.textContent = shown + " of " + cards.length + " shown";
}
for (const control of [text, label, least, decision, size]) if (control) control.addEventListener("input", filter);
filter();
