"""The HTTP interface: ``GET /health``, ``GET /model``, ``POST /samples``, described by ``/openapi.json``.

make_api(studio) -> FastAPI
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from urllib.parse import quote

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

import medfusion_monai
from medfusion_monai.sampling.image_formats import FORMATS, suffix_of
from medfusion_monai.sampling.plan import sampling_plan
from medfusion_monai.studio import tasks
from medfusion_monai.studio.audits import audit_verdict
from medfusion_monai.studio.downloads import encode, name_of, zip_of
from medfusion_monai.studio.jobs import Job, QueueFullError
from medfusion_monai.studio.service import Studio

MEDIA_TYPES = {
    ".png": "image/png",
    ".dcm": "application/dicom",
    ".nii.gz": "application/gzip",
    ".zip": "application/zip",
}
SECONDS = 0.05
"""Between two looks at a job."""
RETRY_SECONDS = "10"


class SampleRequest(BaseModel):
    """Which images to sample."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"label": 0, "count": 4, "seed": 0}]})

    label: int | str | list[int | str] | None = Field(
        description="Number or name of a class, as `GET /model` lists them, or a list of them; null for all."
    )
    count: int = Field(1, description="Images per class.")
    seed: int = Field(0, description="Of the set. Image k of a class is the same however many others are requested.")
    num_inference_steps: int | None = Field(None, description="Of the sampler; null for the model's.")
    guidance_scale: float | None = Field(None, description="Of the sampler; null for the model's.")
    batch_size: int = Field(16, description="Images at a time; another number may change a rounding.")
    output_format: Literal[tuple(FORMATS)] = Field("png", description="Of the images.")  # type: ignore[valid-type]
    archive: bool | None = Field(
        None, description="Whether to send a zip with manifest.csv; null: if there are several images."
    )


class Health(BaseModel):
    """That the service answers."""

    status: Literal["ok"] = "ok"


class ModelDescription(BaseModel):
    """What the model samples, and what may be asked of it."""

    version: str
    weights_sha256: str
    class_names: list[str]
    image_size: list[int] = Field(description="Height and width.")
    image_channels: int
    output_formats: list[str]
    sampler: dict[str, Any] = Field(description="Settings that a request does not set.")
    limits: dict[str, int | float] = Field(description="Largest values of a request.")
    audit: str | None = Field(description="What the audit of the weights found; null if none lies beside them.")


class Problem(BaseModel):
    """Why a request was refused, and what to do."""

    detail: str


def make_api(studio: Studio) -> FastAPI:
    """Return the service without its pages."""
    # FastAPI's own pages of documentation load scripts from another host.
    app = FastAPI(
        title="Medfusion studio",
        summary="Synthetic medical images of a chosen class.",
        version=medfusion_monai.__version__,
        docs_url=None,
        redoc_url=None,
    )
    token = [Depends(HTTPBearer(auto_error=False, description="Printed by medfusion studio at its start."))]

    @app.exception_handler(ValueError)
    async def refuse(request: Request, error: ValueError) -> Response:
        if isinstance(error, QueueFullError):
            return JSONResponse({"detail": str(error)}, 429, {"Retry-After": RETRY_SECONDS})
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def refuse_form(request: Request, error: RequestValidationError) -> Response:
        found = [f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": "; ".join(found)}, 422)

    @app.get("/health")
    def health() -> Health:
        """Report that the service answers; needs no token."""
        return Health()

    @app.get("/model", dependencies=token, responses=_problems(401))
    def model() -> ModelDescription:
        """Describe the model."""
        return describe(studio)

    @app.post("/samples", dependencies=token, response_class=Response, responses=_answers())
    async def samples(wanted: SampleRequest, request: Request) -> Response:
        """Sample images, and answer when they are finished: with one file, or a zip with `manifest.csv`.

        The images are those of `Model.sample`, and the files those of `run inference`: the same request has the same
        bytes. One request is served at a time, and others wait; one whose client is gone is cancelled.
        """
        suffix_of(wanted.output_format, studio.model.image_channels)
        _refuse_bare_images(studio, wanted)
        options = wanted.model_dump(exclude={"output_format", "archive"})
        job = tasks.sample(studio, options.pop("label"), **options)
        await _finished(job, request)
        return await asyncio.to_thread(_file, job, wanted)

    return app


def describe(studio: Studio) -> ModelDescription:
    """Return what ``GET /model`` answers."""
    model = studio.model
    return ModelDescription(
        version=medfusion_monai.__version__,
        weights_sha256=studio.model.weights_sha256,
        class_names=model.class_names,
        image_size=model.image_size,
        image_channels=model.image_channels,
        output_formats=[name for name, form in FORMATS.items() if model.image_channels in form.channels],
        sampler=studio.sampler_defaults,
        limits=vars(studio.limits),
        audit=audit_verdict(studio),
    )


async def _finished(job: Job, request: Request) -> None:
    """Wait for a job; cancel it if the client is gone.

    Raises:
        HTTPException: if it failed or was cancelled.
    """
    while not job.is_over:
        if await request.is_disconnected():
            job.cancel()
        await asyncio.sleep(SECONDS)
    if job.state == "failed":
        raise HTTPException(500, job.error)
    if job.state == "cancelled":
        raise HTTPException(503, "the request was cancelled: the studio ends, or its client is gone")


def _refuse_bare_images(studio: Studio, wanted: SampleRequest) -> None:
    """Raise a ValueError, before anything is sampled, for several images that are not to be a zip."""
    if wanted.archive is False:
        studio.limits.check(count=wanted.count)  # before the plan, which may be long
        images = len(sampling_plan(studio.model.class_names, wanted.label, wanted.count, wanted.seed))
        if images > 1:
            raise ValueError(f"archive must be true or left out for {images} images")


def _file(job: Job, wanted: SampleRequest) -> Response:
    """Return the pictures of a job as one file."""
    if wanted.archive or (wanted.archive is None and len(job.pictures) > 1):
        return _download(zip_of(job.pictures, wanted.output_format), "samples.zip")
    (picture,) = job.pictures
    return _download(encode(picture, wanted.output_format), name_of(picture, wanted.output_format))


def _download(content: bytes, name: str) -> Response:
    media_type = next(kind for suffix, kind in MEDIA_TYPES.items() if name.endswith(suffix))
    plain = name.encode("ascii", "replace").decode().replace("?", "_")  # for clients that ignore filename*
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"
    return Response(content, media_type=media_type, headers={"Content-Disposition": disposition})


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    texts = {
        401: "The token is missing or wrong.",
        413: "The request is too large.",
        422: "A value is unknown, out of range or above the limits.",
        429: "Too many requests wait.",
        500: "Sampling failed.",
        503: "Sampling was cancelled.",
    }
    return {status: {"model": Problem, "description": texts[status]} for status in statuses}


def _answers() -> dict[int | str, dict[str, Any]]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"description": "One image, or a zip of several.", "content": dict.fromkeys(MEDIA_TYPES.values(), binary)}
    return {200: files, **_problems(401, 413, 422, 429, 500, 503)}
