"""The studies, one file a kind: a config, the stages that it computes, and what they say about each claim."""
