"""The benchmarks by name: each a function that yields rows."""

from benchmarks.gpt import gpt
from benchmarks.images import images
from benchmarks.mlp import mlp
from benchmarks.ops import ops
from benchmarks.repeat import repeat
from benchmarks.schedules import schedules
from benchmarks.sequence import sequence

BENCHMARKS = {
    "mlp": mlp,
    "repeat": repeat,
    "ops": ops,
    "gpt": gpt,
    "schedules": schedules,
    "images": images,
    "sequence": sequence,
}
