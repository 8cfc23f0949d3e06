"""From a user's files to examples, and from examples to batches."""
