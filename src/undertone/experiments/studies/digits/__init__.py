"""``kind: digits``: auxiliary logits on digits (arXiv 2507.14805) with their controls, optimisers, and the theorem."""
