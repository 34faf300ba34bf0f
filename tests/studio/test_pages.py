"""The page without a browser: what its tabs show, refuse and ask of the studio."""

import pytest

pytest.importorskip("nicegui", reason="needs the extra studio")
