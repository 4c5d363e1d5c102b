"""Imprint."""
