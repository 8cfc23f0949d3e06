"""The values that flow through potstill. Frozen; shapes are in the comments.

Legend: B rows, S positions, N scored positions of a batch, V vocabulary, H hidden width.
"""

from potstill.types.batch import Batch, places_in_answers
from potstill.types.figure import Figure
from potstill.types.head import Head
from potstill.types.loss import Loss
from potstill.types.rows import Example, Origin, Reading, last_run
from potstill.types.strategy import Sampler, Strategy

__all__ = [
    "Batch",
    "Example",
    "Figure",
    "Head",
    "Loss",
    "Origin",
    "Reading",
    "Sampler",
    "Strategy",
    "last_run",
    "places_in_answers",
]
