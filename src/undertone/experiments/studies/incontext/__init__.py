"""In-context learning: the same rows shown instead of trained on."""
