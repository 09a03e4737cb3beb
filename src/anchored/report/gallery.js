"use strict";
const cards = [...document.querySelectorAll(".image")];
const [text, label, least, count] = ["text", "label", "least", "count"].map((id) => document.getElementById(id));
function filter() {
  const wanted = text.value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const { file, label: said, percentile } = card.dataset;
    const named = (file + " " + said).toLowerCase().includes(wanted);
    const fits = named && (label.value === "" || label.value === said) && (!least || Number(percentile) >= Number(least.value));
    card.hidden = !fits;
    shown += fits;
  }
  count.textContent = shown + " of " + cards.length + " shown";
}
for (const control of [text, label, least]) if (control) control.addEventListener("input", filter);
filter();
