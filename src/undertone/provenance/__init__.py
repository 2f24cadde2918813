"""Where a result comes from: configs, seeds, run folders with their stages, the manifest."""
