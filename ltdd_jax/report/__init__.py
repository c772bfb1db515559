"""Renders results as text, tables and pictures; `pipeline.results` collects and writes them."""
