"""Students: networks trained on a distilled set alone."""
