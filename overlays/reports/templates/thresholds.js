'use strict';
const box = document.getElementById('thresholds'), data = JSON.parse(box.dataset.scores);
const slider = document.getElementById('threshold'), good = document.getElementById('good');
const percent = (part, whole) => whole ? (Math.floor(1000 * part / whole + 0.5) / 10).toFixed(1) + '%' : '-';
function fill(row, truth, flagged) {
  let hits = 0, escapes = 0, alarms = 0;
  truth.forEach((is, n) => { if (is && flagged[n]) hits++; else if (is) escapes++; else if (flagged[n]) alarms++; });
  [percent(hits, hits + alarms), percent(hits, hits + escapes), escapes, alarms].forEach((value, k) => {
    row.cells[k + 1].textContent = value;
  });
}
function update() {
  const level = Number(slider.value);
  document.getElementById('level').textContent = level.toFixed(2);
  data.labels.forEach((_, k) => fill(document.getElementById('class' + k), data.truth.map(label => label === k),
    data.scores.map(row => row[k] >= level)));
  const chosen = Number(good.value), row = document.getElementById('rejected');
  row.hidden = chosen < 0;
  if (chosen >= 0) fill(row, data.truth.map(label => label !== chosen), data.scores.map(row => row[chosen] < level));
}
slider.addEventListener('input', update);
good.addEventListener('change', update);
update();
