"""MONAI Label's web application, with errors in sentences, and answers for its own pages alone."""

from __future__ import annotations

import json
import logging

from fastapi import Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.config import settings
from monailabel.interfaces.exception import MONAILabelException

from medfusion_monai.apps.monailabel.label_app import StudyNotFoundError
from medfusion_monai.export.pacs import PacsError

logger = logging.getLogger(__name__)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of a request as FastAPI does its own."""
    codes = {StudyNotFoundError: 404, PacsError: 502}
    code = next((number for kind, number in codes.items() if isinstance(error, kind)), 400)
    logger.warning("%s: %s", request.url.path, error, exc_info=code == 400)
    text = error.msg if isinstance(error, MONAILabelException) else str(error)
    if isinstance(error, json.JSONDecodeError):
        text = f"params must be JSON: {error}"
    return JSONResponse({"detail": text}, code)


app.add_exception_handler(ValueError, _answer)
app.add_exception_handler(MONAILabelException, _answer)
for middleware in app.user_middleware:
    if middleware.cls is CORSMiddleware:  # MONAI Label lets the pages of any site read its answers
        middleware.kwargs["allow_origins"] = settings.MONAI_LABEL_APP_CONF.get("allow_origins", "").split()
__all__ = ["app"]
