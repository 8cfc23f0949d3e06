"""Every error a user can meet, each with its exit code and a way out.

Exit codes: 1 a bug of ours; 2 recipe, data or arguments are wrong; 3 the machine cannot;
4 a check failed; 5 the teacher's provider, or the budget for it, stopped us; 6 training stopped itself;
130 interrupted; 141 the reader of the output has gone; 143 terminated.
"""

from __future__ import annotations

OUT_OF_SCOPE = "Use a causal language model (…ForCausalLM); for a multimodal checkpoint, its language part."


class PotstillError(Exception):
    """Base of all errors potstill raises on purpose.

    Args:
        message: one sentence that names the thing and the value.
        fix: one sentence that says how to go on.
        path: the recipe path, file or file:line the error is about.
        value: the offending value, if there is one.
    """

    exit_code = 1
    code = "error"
    retryable = False

    def __init__(self, message: str, *, fix: str = "", path: str = "", value: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.path = path
        self.value = value

    def __str__(self) -> str:
        head = f"{self.path}: {self.message}" if self.path else self.message
        return f"{head} {self.fix}".rstrip()

    def as_dict(self) -> dict[str, object]:
        """The error for programs: stable keys, JSON-safe values."""
        return {
            "code": self.code,
            "message": self.message,
            "path": self.path,
            "value": None if self.value is None else str(self.value),
            "fix": self.fix,
            "retryable": self.retryable,
            "exit_code": self.exit_code,
        }


class RecipeError(PotstillError):
    """The recipe, an override or an argument is wrong."""

    exit_code = 2
    code = "recipe"


class RecipeErrors(RecipeError):
    """Several things in the recipe are wrong; all are listed at once."""

    def __init__(self, problems: list[RecipeError]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)

    def as_dict(self) -> dict[str, object]:
        return super().as_dict() | {"problems": [problem.as_dict() for problem in self.problems]}


class DataError(PotstillError):
    """A data file or row cannot be used."""

    exit_code = 2
    code = "data"


class ModelError(PotstillError):
    """A model or tokenizer is missing, unreadable, unsafe or of a kind that is out of scope."""

    exit_code = 2
    code = "model"


class VocabularyError(ModelError):
    """Teacher and student do not share a vocabulary."""

    code = "vocabulary"


class SignalError(PotstillError):
    """A teacher signal does not fit the divergence, the temperature or the student."""

    exit_code = 2
    code = "signal"


class NotFinite(SignalError):
    """A loss is infinite or NaN at one scored position."""

    def __init__(self, message: str, *, position: int, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.position = position


class PluginError(PotstillError):
    """Code from outside the package, named in a recipe, raised an error of its own. Exit code 2."""

    exit_code = 2
    code = "plugin"


class ArtifactError(PotstillError):
    """A folder that potstill wrote is incomplete, damaged or made from something else."""

    exit_code = 2
    code = "artifact"


REPAIR = (
    "potstill capture RECIPE --repair asks for what is damaged again; of a copy, copy it again "
    "(potstill cache verify lists all damage)."
)


class CacheDamaged(ArtifactError):
    """Bytes of a teacher cache are not as they were written. Exit code 4; `block` names where."""

    exit_code = 4
    code = "cache_damaged"

    def __init__(self, message: str, *, block: str, fix: str = "") -> None:
        super().__init__(message, fix=fix or REPAIR)
        self.block = block


class CacheMiss(ArtifactError, KeyError):
    """A teacher cache does not hold an example. Exit code 2."""

    code = "cache_miss"


class MachineError(PotstillError):
    """The machine lacks memory, disk, a device or a program."""

    exit_code = 3
    code = "machine"
    retryable = True


class ProviderError(PotstillError):
    """Whoever serves the teacher stopped us: a key, a quota, an endpoint that fails or refuses for too long."""

    exit_code = 5
    code = "provider"
    retryable = True


class BudgetSpent(ProviderError):
    """The next request could cost more than what is left of the budget."""

    code = "budget"
    retryable = False


class TrainingStopped(PotstillError):
    """Training stopped itself: a value is not finite, a KL is negative, nothing is scored, a guard's limit is passed."""

    exit_code = 6
    code = "training"


class Interrupted(PotstillError):
    """A signal arrived; the work so far is saved."""

    code = "interrupted"
    retryable = True

    def __init__(self, message: str, *, signal_number: int, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.exit_code = 128 + signal_number
