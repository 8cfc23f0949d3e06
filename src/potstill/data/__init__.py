"""From a user's files to examples, and from examples to batches.

files      records of JSON lines, JSON, CSV, Parquet, Arrow and hub data sets
row        one row: a conversation or text; shapes: the forms in which people write it
rows       checked rows with counts; habits: loops and refusals; policies: system prompts and reasoning
render     text and ids by a chat template; template: rows as token ids and scored positions
reader     tokenizer, template and vocabulary of a model, and how two of them compare
examples   rows as examples; prompts, answers, questions: rows that a teacher answers
split      held-out rows; dataset: a run's rows by what they are for
plan       rows of an optimizer step; batch: examples as tensors
"""
