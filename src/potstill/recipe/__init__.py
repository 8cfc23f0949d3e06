"""A recipe: text becomes one frozen value."""
