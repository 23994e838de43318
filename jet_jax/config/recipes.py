"""Recipes of training, which `:NAME` after the path of any config sets."""

# A fitted linear front, and Muon for the kernels of the blocks: the bits/dim of the paper's recipe in far fewer steps
# (docs/recipe.md). The learning rate of all other parameters stays that of the config.
FAST = {"model.front": "stationary", "model.front_stretch": 4.0, "optimizer": "muon", "muon_lr": 0.04}
# Completing images of which a part is known (docs/guide/complete.md); after `fast`, its optimizer without its front.
COMPLETE = {"model.completes": True, "model.masking": True, "model.front": "none"}
# With the labels of the training images, as many as there are (docs/guide/labels.md).
RECIPES = {"fast": FAST, "labels": {"model.classes": -1}, "complete": COMPLETE}
