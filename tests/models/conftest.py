from __future__ import annotations

import pytest

from groundthink.models.names import VARIANTS


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param
