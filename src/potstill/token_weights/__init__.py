"""Weights of the tokens in a training step, by name, one file each.

Each file defines `weights(student_lp, teacher_lp, place, *, options) -> [N]`, from the two [N, K]
log-probabilities that the divergence compares and the tokens' places [N] in their own answers (0 for
its first scored token), and SUPPORTS, the kinds of signal it reads, as a divergence does. Weights are at
least 0 and constants of the gradient; a step divides by their sum.
"""
