"""Launching: where stages run. Processes side by side on this machine."""
