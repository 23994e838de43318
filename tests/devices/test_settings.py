"""Settings of JAX and XLA that a wrong number depends on."""

import pytest

from jet_jax.devices import settings


@pytest.mark.parametrize(
  ("version", "flags", "expected"),
  [
    ("0.10.2", None, settings.OWN_SUMS),
    ("0.10.2", "--xla_dump_to=here", f"--xla_dump_to=here {settings.OWN_SUMS}"),
    ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_experimental_ynn_fusion_type="),
    ("0.12.0", None, None),  # which may end at a flag that it does not know
  ],
)
def test_a_version_that_adds_up_wrongly_is_told_to_add_in_another_way(monkeypatch, version, flags, expected):
  monkeypatch.setattr(settings.jaxlib.version, "__version__", version)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  if flags is not None:
    monkeypatch.setenv("XLA_FLAGS", flags)
  settings.avoid_wrong_sums()
  assert settings.os.environ.get("XLA_FLAGS") == expected
