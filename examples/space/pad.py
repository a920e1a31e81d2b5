"""A pad to draw on with mouse, pen or finger. Its value is the strokes as JSON: [[[x, y], ...], ...], each in 0..1."""

from __future__ import annotations

import gradio as gr

# Gradio reads this as a JavaScript and a Handlebars template, so it must hold no backticks and no double braces.
_TEMPLATE = """<canvas class="pd-pad" width="560" height="560" aria-label="Pad to draw a digit on"></canvas>"""
_SCRIPT = """
const canvas = element.querySelector('canvas');
const paper = canvas.getContext('2d');
let strokes = [], drawing = null;

function redraw() {
  paper.fillStyle = '#ffffff';
  paper.fillRect(0, 0, canvas.width, canvas.height);
  if (!strokes.length) {
    paper.fillStyle = '#9a9a9a';
    paper.font = '30px sans-serif';
    paper.textAlign = 'center';
    paper.fillText('draw a digit, 0 to 9', canvas.width / 2, canvas.height / 2);
  }
  paper.strokeStyle = '#1a1a1a';
  paper.lineWidth = 34;
  paper.lineCap = paper.lineJoin = 'round';
  for (const stroke of strokes) {
    paper.beginPath();
    paper.moveTo(stroke[0][0] * canvas.width, stroke[0][1] * canvas.height);
    for (const [x, y] of stroke) paper.lineTo(x * canvas.width, y * canvas.height);
    paper.stroke();
  }
}
function point(event) {
  const box = canvas.getBoundingClientRect();
  const rounded = number => Math.round(number * 1000) / 1000;
  return [rounded((event.clientX - box.left) / box.width), rounded((event.clientY - box.top) / box.height)];
}
canvas.addEventListener('pointerdown', event => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  drawing = [point(event)];
  strokes.push(drawing);
  redraw();
});
canvas.addEventListener('pointermove', event => {
  if (!drawing) return;
  const passed = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const each of passed.length ? passed : [event]) drawing.push(point(each));
  redraw();
});
for (const end of ['pointerup', 'pointercancel']) {
  canvas.addEventListener(end, () => {
    if (!drawing) return;
    drawing = null;
    props.value = JSON.stringify(strokes);
    trigger('input');
  });
}
watch('value', () => {
  if (props.value) return;
  strokes = [];
  redraw();
});
redraw();
"""


def drawing_pad(elem_id: str) -> gr.HTML:
    """The pad. It sends `input` after every stroke, and an empty value clears it."""
    # This is no subclass of gr.HTML, because Gradio would write a .pyi file for one beside this file.
    return gr.HTML(value="", html_template=_TEMPLATE, js_on_load=_SCRIPT, apply_default_css=False, elem_id=elem_id)
