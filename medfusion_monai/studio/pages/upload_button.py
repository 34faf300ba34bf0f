"""A button that uploads one file, into memory alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nicegui import events, ui

from medfusion_monai.studio.pages.visit import Visit


class UploadButton:
    """A button whose file goes to a handler.

    Args:
        visit: whose limits hold.
        title: on the button.
        accepted: endings of files, with commas.
        on_upload: called with the event, whose ``file`` is to be read.
        explain: called with the problem of a file that is refused before it is sent.
    """

    def __init__(
        self,
        visit: Visit,
        title: str,
        accepted: str,
        on_upload: Callable[[events.UploadEventArguments], Awaitable[None]],
        explain: Callable[[str], None],
    ) -> None:
        megabytes = visit.studio.limits.upload_bytes / 2**20

        async def receive(event: events.UploadEventArguments) -> None:
            upload.reset()  # so that the same file may be chosen again
            await on_upload(event)

        def refuse() -> None:
            explain(f"This file is refused: only one image of at most {megabytes:.0f} MB can be uploaded")

        upload = ui.upload(
            on_upload=receive, on_rejected=refuse, auto_upload=True, max_file_size=visit.studio.limits.upload_bytes
        )
        upload.classes("uploader").props["accept"] = accepted
        upload.on("failed", refuse, args=[])
        # In the browser, which opens its dialog only while it handles the click.
        ui.button(title).props("outline no-caps").on(
            "click", js_handler=f"() => getElement({upload.id}).$refs.qRef.pickFiles()"
        )
