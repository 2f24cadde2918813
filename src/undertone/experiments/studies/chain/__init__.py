"""Chains: students that become teachers, generation after generation."""
