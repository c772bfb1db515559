"""Soft labels: made by teachers, stored, encoded, read."""
