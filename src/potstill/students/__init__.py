"""How a student is made."""
