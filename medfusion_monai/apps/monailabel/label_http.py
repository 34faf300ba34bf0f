"""MONAI Label's web application, with errors in sentences, and answers for its own pages alone."""

from __future__ import annotations

import json
import logging

from fastapi import Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.config import settings
from monailabel.endpoints import datastore, infer, session, wsi_infer
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils.app import app_instance

from medfusion_monai.apps.monailabel.label_access import OwnPagesMiddleware
from medfusion_monai.apps.monailabel.label_app import StudyNotFoundError
from medfusion_monai.apps.monailabel.private_files import leaving_nothing
from medfusion_monai.export.pacs import PacsError
from medfusion_monai.studio.access import Access

logger = logging.getLogger(__name__)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of a request as FastAPI does its own."""
    codes = {StudyNotFoundError: 404, PacsError: 502}
    code = next((number for kind, number in codes.items() if isinstance(error, kind)), 400)
    logger.warning("%s: %s", request.url.path, error, exc_info=code == 400)
    text = error.msg if isinstance(error, MONAILabelException) else str(error)
    if isinstance(error, json.JSONDecodeError):
        text = f"params must be JSON: {error}"
    return JSONResponse({"detail": app_instance().public(text)}, code)


for module, name in (
    (infer, "run_inference"),
    (wsi_infer, "run_wsi_inference"),
    (datastore, "add_image"),
    (datastore, "save_label"),
    (session, "create_session"),
):
    setattr(module, name, leaving_nothing(getattr(module, name)))

app.add_exception_handler(ValueError, _answer)
app.add_exception_handler(MONAILabelException, _answer)
conf = settings.MONAI_LABEL_APP_CONF
allow_origins = conf.get("allow_origins", "").split()
for middleware in app.user_middleware:
    if middleware.cls is CORSMiddleware:  # MONAI Label lets the pages of any site read its answers
        middleware.kwargs["allow_origins"] = allow_origins
access = Access(None, conf.get("host", "127.0.0.1"), settings.MONAI_LABEL_SERVER_PORT)
app.add_middleware(OwnPagesMiddleware, access=access, allow_origins=allow_origins)
__all__ = ["app"]
