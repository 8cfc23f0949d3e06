"""Signals of a teacher at the scored positions, one kind a file, and their comparison with student logits."""
