"""Options of XLA that a right number depends on."""

import pytest

from jet_jax.devices import settings


@pytest.mark.parametrize(
  ("version", "platform", "expected"),
  [
    ("0.10.2", "cpu", settings.OWN_SUMS),
    ("0.10.2", "gpu", {}),
    ("0.12.0", "cpu", {}),  # which may end at an option that it does not know
  ],
)
def test_a_version_that_adds_up_wrongly_is_told_to_add_in_another_way(monkeypatch, version, platform, expected):
  monkeypatch.setattr(settings.jaxlib.version, "__version__", version)
  assert settings.init_options(platform) == expected
