"""Where a teacher's word comes from.

A file with the public function `build(context, *, options) -> Teacher` is a kind of teacher; its keyword-only
arguments are its options. `_context` defines what it is given, `potstill.signals.teacher.Teacher` what it returns:
what it `provides`, how it `reads`, its `fingerprint`, the `signal` of a batch, and `close`.

The files: `local` has its weights in this process, `fixed` follows a script (for tests).
"""
