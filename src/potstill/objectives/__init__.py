"""What a training step minimises: sums over scored tokens, and their count."""
