import pytest

import netslim


@pytest.fixture
def rules_may_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netslim.rules, "STRICT", True)
