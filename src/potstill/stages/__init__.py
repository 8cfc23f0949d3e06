"""One file a stage. A stage gets values, never the recipe, and leaves one artifact."""
