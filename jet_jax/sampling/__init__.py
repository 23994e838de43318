"""Images from a trained flow."""
