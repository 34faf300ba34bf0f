"""Head, tabs and foot of the page."""

from __future__ import annotations

from pathlib import Path

from nicegui import ui

from medfusion_monai.studio.pages.about_tab import show_about
from medfusion_monai.studio.pages.edit_tab import EditTab
from medfusion_monai.studio.pages.frames_tab import FramesTab
from medfusion_monai.studio.pages.generate_tab import GenerateTab
from medfusion_monai.studio.pages.quiz_tab import show_quiz
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.picture import Picture

STYLE = Path(__file__).with_name("studio.css")


def show_frame(visit: Visit) -> None:
    """Build the page of a visit."""
    ui.add_css(STYLE)
    ui.colors(primary="#155e75", negative="#b42318")
    with ui.element("header").classes("head"):
        with ui.element("div").classes("brand"):
            text("h1", "Medfusion Studio")
            ui.label("Research only, not for diagnosis").classes("limits")
        with ui.tabs().props('no-caps dense align=left indicator-color="primary" aria-label="Tasks"') as tabs:
            names = [ui.tab(name) for name in ("Generate", "Edit", "Interpolate", "Quiz", "About")]
    with ui.tab_panels(tabs, value=names[0], animated=False).classes("panels").props('role="main"'):
        with ui.tab_panel(names[0]):
            GenerateTab(visit)
        with ui.tab_panel(names[1]):
            editor = EditTab(visit)
        with ui.tab_panel(names[2]):
            FramesTab(visit)
        with ui.tab_panel(names[3]):
            show_quiz(visit)
        with ui.tab_panel(names[4]):
            show_about(visit)

    def edit(picture: Picture) -> None:
        tabs.set_value(names[1])
        editor.source.take(picture)

    visit.edit = edit
