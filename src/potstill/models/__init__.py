"""Language models on disk and in memory."""
