"""Work directories that no training has written: they have what a page shows, and no checkpoint."""

import json

import numpy as np

from jet_jax import config as config_lib
from jet_jax.workdir.image_grid import make_grid, save_png

# Strings that someone might put into a run, in the hope that a page takes them for HTML, a script or a template.
HOSTILE = [
  "<script>alert(1)</script><img src=x onerror=alert(2)>",
  "</script><script>alert(1)</script><!--",
  "\"'><svg onload=alert(1)>",
  "{{ 7 * 7 }}{% raw %}",
  "datum['x'].y[0]\\'+alert(1)+\\'",
  "\x00\x1b[31m\u202e\u2028\ud800\U000e0001",
  "__proto__",
  "https://example.com/x.png",
]


def write_run(path, lines, pictures=(), **settings):
  """Writes a run on images of 8x8x1.

  Args:
    path: of the work directory.
    lines: of metrics.jsonl, as dicts, or bytes.
    pictures: steps that have a picture of samples, of noise.
    settings: fields of the config.
  """
  path.mkdir(parents=True)
  config = config_lib.override(config_lib.default_config(), {"total_steps": 100, "image_shape": (8, 8, 1)} | settings)
  config_lib.save(config_lib.resolve(config), path / "config.json")
  written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
  (path / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in written))
  for step in pictures:
    noise = np.random.default_rng(step).integers(0, 256, (64, 8, 8, 1), np.uint8)
    save_png(make_grid(noise, 256), path / "samples" / f"{step}.png")
  return path


def lines_of(num, seed=0, every=10):
  """Lines of a run that logs training at each step, and validates at every tenth."""
  rng = np.random.default_rng(seed)
  for step in range(1, num + 1):
    bits = 3 + 5 / step**0.5 + 0.1 * rng.standard_normal()
    yield {
      "step": step,
      "train/bits_per_dim": float(np.float32(bits)),
      "train/grad_norm": float(np.float32(rng.exponential())),
      "train/lr": float(np.float32(3e-4 * (1 - step / (num + 1)))),
      "train/images_per_second": 100 + float(rng.standard_normal()),
    }
    if step % every == 0:
      yield {
        "step": step, "val/bits_per_dim": bits + 0.05, "val/bits_per_dim_stderr": 0.01 + step * 1e-6,
        "val/num_images": 200, "val/noise_samples": 1, "val/num_nonfinite": 0, "val/num_bad_images": 0,
      }  # fmt: skip


def write_whole_run(path, text):
  """Writes a run with a string wherever one can stand, and still be read."""
  lines = [{"step": step, f"train/{text}": float(step), f"val/{text}": 2.0 * step, text: [text]} for step in (1, 2)]
  fields = {"source": f"npz:{text}", "wandb_project": text, "init_from": text, "data_dir": text}
  write_run(path, lines, pictures=(1,), **fields)
  images = {"source": text, "data_dir": text}
  splits = {name: {"images": 1, "sha256": text} for name in ("train", text)}
  record = images | {"splits": splits, "changes": [images | {"splits": {text: text}}]}
  for name, values in (("data.json", record), ("init_from.json", {text: text, "step": {text: text}})):
    (path / name).write_text(json.dumps(values))
  start = {"step": text, "time": text, "jet_jax": text, text: text}
  (path / "versions.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(start | {"jet_jax": 1}) + "\n")
  (path / "samples" / "2.png").write_bytes(text.encode(errors="replace"))
  return path
