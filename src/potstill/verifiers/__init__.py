"""Who says whether an answer is right, for best-of-n. One function a file: `score(answer, row, *, options)`.

It returns a number from 0 (wrong) to 1 (right), or a truth value; `row` is the `potstill.data.row.Row` that was asked.

A file may state under `COLUMN` the name of the option that holds the name of a column that it reads, and may define
`require_row(row, *, options)`, which refuses a row that it cannot judge answers to, before anything is asked.
"""
