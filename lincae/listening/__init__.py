"""Listening: the mixing desk, its parts, and the demo page."""
