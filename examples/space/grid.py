"""Pictures to label by clicking: choose a label, then click the pictures that it is for. A second click takes it back.

The value is the JSON that labelling.py reads and writes.
"""

from __future__ import annotations

import gradio as gr

# Gradio reads this as a JavaScript and a Handlebars template, so it must hold no backticks and no double braces.
_TEMPLATE = """<div class="pd-label"><div class="pd-brushes" role="radiogroup" aria-label="Label"></div>
<p class="pd-count"></p><div class="pd-tiles"></div></div>"""
_SCRIPT = """
const brushes = element.querySelector('.pd-brushes');
const tiles = element.querySelector('.pd-tiles');
const count = element.querySelector('.pd-count');
let state = null;

function read() {
  try { state = JSON.parse(props.value); } catch { state = null; }
  if (!state || !state.tiles) state = {names: [], brush: 0, tiles: []};
}
function keep(list, place) {
  redraw();
  list.children[place].focus({preventScroll: true}); // for who uses a keyboard: the button of before is gone
  props.value = JSON.stringify(state);
  trigger('input');
}
function button(parent, className, text) {
  const made = document.createElement('button');
  made.type = 'button';
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}
function redraw() {
  brushes.replaceChildren();
  tiles.replaceChildren();
  state.names.forEach((name, index) => {
    const made = button(brushes, 'pd-brush pd-label-' + index % 10, name);
    made.setAttribute('role', 'radio');
    made.setAttribute('aria-checked', String(index === state.brush));
    made.addEventListener('click', () => { state.brush = index; keep(brushes, index); });
  });
  state.tiles.forEach((tile, number) => {
    const labelled = tile.label !== null;
    const made = button(tiles, 'pd-tile' + (labelled ? ' pd-label-' + tile.label % 10 : ''), '');
    const image = document.createElement('img');
    image.src = tile.picture;
    image.alt = 'picture ' + (number + 1);
    const badge = document.createElement('span');
    badge.textContent = labelled ? state.names[tile.label] : '';
    made.append(image, badge);
    made.addEventListener('click', () => {
      tile.label = tile.label === state.brush ? null : state.brush;
      keep(tiles, number);
    });
  });
  const parts = state.names.map((name, index) => [state.tiles.filter(each => each.label === index).length, name]);
  const total = parts.reduce((sum, each) => sum + each[0], 0);
  const each = parts.filter(part => part[0]).map(part => part[0] + ' ' + part[1]).join(', ');
  count.textContent = total ? total + ' labelled: ' + each + '.' : 'Choose a label, then click the pictures it is for.';
}
watch('value', () => { read(); redraw(); });
read();
redraw();
"""


def label_grid(elem_id: str) -> gr.HTML:
    """The pictures. They send `input` after every change of a visitor."""
    return gr.HTML(value="", html_template=_TEMPLATE, js_on_load=_SCRIPT, apply_default_css=False, elem_id=elem_id)
