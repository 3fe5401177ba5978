"""The user tower of an exported encoder as an ONNX file, checked with onnxruntime."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch

from clue_ray.storage.files import atomic_write
from clue_ray.transfer.standalone import UserEncoder

ONNX_FILE = "user_tower.onnx"
EXAMPLE = [
    (("a user", "a service"), [(9e8, "one text"), (8e8, "another, longer text"), (7e8, "")]),
    (("another user", "a service"), [(5e8, "one text")]),
]
"""Two histories for tracing: no dimension is 1, which torch would take for a constant."""
CHECKED_TEXTS = ["other text", "text", "and a much longer other text"] * 2
CHECKED = (("a user", "a service"), [(9e8 - n * 1e4, t) for n, t in enumerate(CHECKED_TEXTS)])
"""A history of another shape, for comparing."""
INPUTS = ("tokens", "clock")
TOLERANCE = 1e-5
"""Largest difference of a number of two unit vectors that is rounding."""


def write_onnx(encoder: UserEncoder, folder: Path) -> str:
    """Write the tower into a folder, and return what came of it as a sentence.

    Its input `tokens` is int64 [histories, events, tokens], padded with -1; its output `vectors` is
    float32 [histories, output width]. An encoder that reads times has a second input, `clock`,
    int64 [histories, events, 4], as `UserEncoder.inputs` of user_encoder.py returns it.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        return f"none, because {missing[0]} is not installed (pip install 'clue-ray[onnx]')"
    length: int = encoder.card["run"]["sequence_length"]
    example = encoder.inputs([(key, events[:length]) for key, events in EXAMPLE])
    try:
        with atomic_write(folder / ONNX_FILE) as temporary:
            _export(encoder, example, temporary)
            told = _compare(encoder, temporary, length)
    except Exception as error:  # of torch's exporter: it cannot translate every operator
        reason = " ".join(str(error).split())[:200]
        return f"none, because torch could not export it ({type(error).__name__}: {reason})"
    return told


def _export(encoder: UserEncoder, example: tuple[torch.Tensor, ...], file: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names absent packages
    free = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised within torch
        torch.onnx.export(
            encoder.tower,
            example,
            file,
            input_names=list(INPUTS[: len(example)]),
            output_names=["vectors"],
            dynamic_shapes=(dict.fromkeys(range(3), free), dict.fromkeys(range(2), free))[
                : len(example)
            ],
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def _compare(encoder: UserEncoder, file: Path, length: int) -> str:
    """Compare the file with the model on histories of another shape than it was traced with.

    Raises:
        ValueError: they differ.
    """
    if find_spec("onnxruntime") is None:
        return f"{ONNX_FILE}, not checked: onnxruntime is not installed"
    import onnxruntime

    inputs = encoder.inputs([(CHECKED[0], CHECKED[1][:length])])
    session = onnxruntime.InferenceSession(file.read_bytes())
    named = dict(zip(INPUTS, inputs, strict=False))
    (found,) = session.run(["vectors"], {name: each.numpy() for name, each in named.items()})
    with torch.no_grad():
        difference = float((torch.from_numpy(found) - encoder.tower(*inputs)).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"its vectors differ from the model's by {difference:.2g}")
    return f"{ONNX_FILE}, equal to the model within {TOLERANCE:g} in onnxruntime"
