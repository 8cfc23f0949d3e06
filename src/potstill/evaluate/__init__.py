"""What a model is worth, measured against its teacher on rows that training never saw."""
