"""Recipes of training, which `:NAME` after the path of any config sets."""

# A fitted linear front, and Muon for the kernels of the blocks: the bits/dim of the paper's recipe in far fewer steps
# (docs/recipe.md). The learning rate of all other parameters stays that of the config.
RECIPES = {"fast": {"model.front": "stationary", "model.front_stretch": 4.0, "optimizer": "muon", "muon_lr": 0.04}}
