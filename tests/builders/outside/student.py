"""A student from outside the package."""

from __future__ import annotations

from typing import Any

from potstill.students._built import Built
from potstill.students.depth import cut


def top_of(context: Any, *, layers: int) -> Built:
    """Keep the teacher's last layers."""
    teacher = context.teacher()
    depth = teacher.model.config.num_hidden_layers
    student = cut(teacher.model, list(range(depth - layers, depth)))
    return Built(student, teacher.tokenizer, {"kept_from_the_top": layers})
