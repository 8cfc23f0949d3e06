"""What a teacher says, laid beside the student's logits."""
