"""The card of an export, its README.md: what it is, how to run it, and its limits."""

import datetime
from collections.abc import Sequence
from typing import Any

import jax

import jet_jax
from jet_jax.config import Config
from jet_jax.workdir.trained import Trained

CARD = """# A Jet for images of {shape}

A normalizing flow for images, [Jet](https://arxiv.org/abs/2412.15129), exported by jet_jax {version} on {date}.

![{sample_num} samples](samples.png)

{sample_num} samples at temperature {temperature:g}, not selected.

| | |
| --- | --- |
| license | *to fill in: who may use these weights, for what* |
| data | {data} |
| bits/dim | {bits} |
| step | {step:,} |
| parameters | {parameters:,}{averaged} |
| `weights_sha256` | `{weights_sha256}` |

## Run it

`pip install jax safetensors flatbuffers`, then in this folder:

```python
import pathlib

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

weights = jax.device_put(load_file("model.safetensors"))
load = lambda name: jax.jit(export.deserialize(bytearray(pathlib.Path(name).read_bytes())).call)
sampler, log_density = load("sampler.jaxexport"), load("log_density.jaxexport")
images = sampler(weights, 0, np.arange(16), {temperature}{label})
bits = log_density(weights, images, np.arange(16), 0{label})
```

| program | takes | returns |
| --- | --- | --- |
| `sampler` | weights, seed, index `(B,)`, temperature{labels} | uint8 `(B, {with_commas})`, 0 to {largest} |
| `log_density` | weights, such images, index `(B,)`, draw{labels} | bits/dim, float32 `(B,)` |

Both run on CPUs, GPUs and TPUs, for any number of images B. A sample depends on the seed and its index alone. The noise
that dequantizes an image depends on the draw and its index alone; averages over draws 0, 1, 2, … have less of it. An
image of b bits/dim has a log-likelihood of -{dims} b ln 2 nats.{classes}

## Run it with jet_jax

```
python -m jet_jax.sample --workdir=FOLDER
python -m jet_jax.evaluate --workdir=FOLDER --source=SOURCE
```

Both, `jet_jax.load("FOLDER")` and `init_from=FOLDER` take this folder as a work directory, and reject a changed file.
{own}
## Limits

- Images must be {shape}, with pixel values from 0 to {largest}. Samples are of the kind of the data above.
- Bits/dim compare flows on the same images. Low bits/dim do not mean that an image is like those of training: flows
  give them to any smooth image.
- Another device or another version of JAX changes last digits, and so a pixel here and there.
- JAX reads the two programs for six months. The weights stay readable: `python -m tools.export --workdir=FOLDER
  --out=NEW` writes new programs.
- `sha256sum --check SHA256SUMS` shows whether a file has changed since. This page is not among them.
"""


def write_card(config: Config, trained: Trained, weights: dict[str, str], evaluation: dict[str, Any] | None) -> str:
  """Returns the text of the card.

  Args:
    config: as exported.
    trained: the run.
    weights: of `name_weights`.
    evaluation: metrics of the step with `val/bits_per_dim`; None if there are none.
  """
  height, width, channels = config.image_shape
  shape, examples = f"{height}×{width}×{channels}", config.data.num_examples
  return CARD.format(
    shape=shape,
    with_commas=f"{height}, {width}, {channels}",
    dims=height * width * channels,
    largest=config.levels - 1,
    version=jet_jax.__version__,
    date=datetime.date.today().isoformat(),
    sample_num=config.sample_num,
    temperature=config.sample_temperature,
    data=f"`{config.data.source}`, " + (f"{examples:,} training images" if examples else "images") + f" of {shape}",
    bits=_figure(evaluation),
    step=trained.step,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(trained.variables["params"])),
    averaged=", averaged over steps" if weights["weights"] == "ema" else "",
    weights_sha256=weights["weights_sha256"],
    own=_own(trained.model.own_code()),
    label=", np.full(16, -1)" if trained.model.classes else "",
    labels=", labels `(B,)`" if trained.model.classes else "",
    classes=_classes(config),
  )


def _classes(config: Config) -> str:
  names = config.data.classes
  if not config.model.classes:
    return ""
  first = ", ".join(f"{number}: {name}" for number, name in enumerate(names[:10]))
  rest = " and so on, see `data.classes` in config.json" if len(names) > 10 else ""
  return (
    f"\n\nLabels are -1 for none, or the numbers of {len(names)} classes: {first}{rest}. Bits are those of an image, "
    "given its label."
  )


def _figure(evaluation: dict[str, Any] | None) -> str:
  if not evaluation:
    return "not measured at this step"
  error = evaluation.get("val/bits_per_dim_stderr")  # None of a single image
  spread = f" ± {error:.3f}" if error else ""
  images = evaluation.get("val/num_images")
  on = "the validation images" if images is None else f"{images:,} validation images"
  return f"{evaluation['val/bits_per_dim']:.3f}{spread} on {on}"


def _own(parts: Sequence[str]) -> str:
  """Names the parts of the user's own, each "module:name digest", which are not in the folder."""
  names = " and ".join(f"`{part.split()[0]}`" for part in parts)
  return f"\nThey import {names}, whose source is not in this folder; the programs do not.\n" if parts else ""
