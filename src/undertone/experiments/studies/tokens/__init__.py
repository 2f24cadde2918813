"""Which tokens carry the trait: ``kind: tokens``."""
