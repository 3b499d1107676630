# SPDX-License-Identifier: BSD-3-Clause
"""What unit tests share."""

from __future__ import annotations

import pytest

from tests.peers import pki as pki_module
from tests.peers.pki import Pki


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates, good and bad."""
    return pki_module.create(tmp_path_factory.mktemp("pki"))
