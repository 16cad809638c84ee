"""The benchmarks by name: each a function that yields rows."""

from benchmarks.gpt import gpt
from benchmarks.mlp import mlp
from benchmarks.ops import ops
from benchmarks.repeat import repeat
from benchmarks.schedules import schedules

BENCHMARKS = {"mlp": mlp, "repeat": repeat, "ops": ops, "gpt": gpt, "schedules": schedules}
