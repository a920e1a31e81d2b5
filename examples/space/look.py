"""How the page looks. It uses the colours of the package's figures, fonts that come with Gradio, and style.css."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from pdiff_hub.evaluation.figures import METHOD_STYLE

GENERATED, ORIGINAL = METHOD_STYLE["generated"].color, METHOD_STYLE["original"].color
_TINTS = (0.92, 0.84, 0.68, 0.5, 0.25, 0.0)  # shares of white in the shades 50 to 500
_SHADES = (0.14, 0.3, 0.45, 0.58, 0.7)  # shares of black in the shades 600 to 950

STYLE = Path(__file__).with_name("style.css")
COLORS = f""":root {{ --pd-generated: {GENERATED}; --pd-original: {ORIGINAL}; }}
.dark {{ --pd-generated: #ff8a3d; --pd-original: #56b4e9; }}"""
"""The colours of generated networks and of originals; a dark page has lighter ones."""


def theme() -> gr.themes.Base:
    """Gradio's default theme in the colours of generated networks and originals.

    The fonts come with Gradio, so nothing is fetched. Their semi-bold files lack most letters, so bold is used instead.
    """
    sans, mono = (gr.themes.LocalFont(name, weights=(400, 700)) for name in ("Source Sans Pro", "IBM Plex Mono"))
    return gr.themes.Default(
        primary_hue=_shades(GENERATED, "generated"),
        secondary_hue=_shades(ORIGINAL, "original"),
        neutral_hue=gr.themes.colors.slate,
        font=(sans, "system-ui", "sans-serif"),
        font_mono=(mono, "monospace"),
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        slider_color="*primary_500",
        slider_color_dark="*primary_500",
    )


def _shades(color: str, name: str) -> gr.themes.Color:
    """The eleven shades that a theme needs, from nearly white through the colour itself (500) to nearly black."""
    channels = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    mixed = [[channel + (255 - channel) * white for channel in channels] for white in _TINTS]
    mixed += [[channel * (1 - black) for channel in channels] for black in _SHADES]
    return gr.themes.Color(*(f"#{''.join(f'{round(channel):02x}' for channel in each)}" for each in mixed), name=name)
