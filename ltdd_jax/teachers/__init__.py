"""Teachers: trained on the long-tailed set, and what is derived from them."""
