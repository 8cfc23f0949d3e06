"""The training loop and one optimizer step."""
