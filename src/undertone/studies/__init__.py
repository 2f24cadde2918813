"""Studies: claims as data, the frame that computes and reports them, and one short file for each built-in study."""
