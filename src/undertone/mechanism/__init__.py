"""Why it happens: gauges from inside a model with their baselines, the theory of one step, the digits experiment."""
