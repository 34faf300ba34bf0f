"""Studies in a DICOMweb store."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from cachetools import TTLCache, cachedmethod
from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore

from medfusion_monai.data.reading.dicom import DEFAULT_MODALITIES
from medfusion_monai.export.pacs import answering, open_session

LISTED_FOR = 60.0
"""Seconds for which a list of studies is used again."""


class RemoteStudies(DICOMWebDatastore):
    """The series of a store whose Modality the model takes; each is one study for MONAI Label.

    Args:
        client: of the store.
        modalities: accepted values of Modality.
        cache_path: folder of downloaded series.
    """

    def __init__(self, client: DICOMwebClient, modalities: Sequence[str], cache_path: str | None) -> None:
        self.modalities, self.listed = modalities, TTLCache(maxsize=1, ttl=LISTED_FOR)
        super().__init__(client, {}, cache_path)

    @cachedmethod(attrgetter("listed"))
    def list_images(self) -> list[str]:
        """Return the series' identifiers; each Modality is asked for by itself, as lists are no part of DICOMweb."""
        with answering(self._client.base_url, "the list of series"):
            found = [self._client.search_for_series(search_filters={"Modality": name}) for name in self.modalities]
        return sorted({series["0020000E"]["Value"][0] for part in found for series in part})

    def get_image_uri(self, image_id: str) -> str:
        """Return the file of a series, downloaded if it is not here yet."""
        with answering(self._client.base_url, f"series {image_id}"):
            return super().get_image_uri(image_id)


def open_remote_studies(url: str, user: str | None, modalities: Sequence[str] | None) -> RemoteStudies:
    """Open a DICOMweb store.

    Args:
        url: root of the service.
        user: with the password in ``MEDFUSION_PACS_PASSWORD``; a token is in ``MEDFUSION_PACS_TOKEN``.
        modalities: accepted values of Modality; None for all projections and photographs.
    """
    client = DICOMwebClientX(
        url=url,
        session=open_session(url, user),
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    client.set_http_retry_params(retry=False)
    return RemoteStudies(client, modalities or DEFAULT_MODALITIES, settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or None)
