"""What a teacher says at the scored positions, one kind a file, and how each kind stands beside student logits."""
