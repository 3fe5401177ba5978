"""Export the encoder of a run as a folder to share: weights, tokenizer, card, loader and ONNX."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from clue_ray.errors import StudyError
from clue_ray.runs import RunRecord, read_record
from clue_ray.storage.place import is_uri
from clue_ray.transfer import standalone
from clue_ray.transfer.encoder_file import ENCODER_FILES, find_encoder, read_encoder
from clue_ray.transfer.model_card import write_model_card
from clue_ray.transfer.onnx_file import write_onnx

LOADER = "user_encoder.py"
"""The copy of `standalone.py` next to the weights."""


def export_model(run: str | Path, output: str | Path) -> dict[str, Any]:
    """Write the encoder of a finished run, its model card and a loader into a folder.

    `load_encoder` and `user_encoder.py` in the folder load it. The folder appears as a whole.

    Args:
        run: folder of the run.
        output: a folder that does not exist or is empty.

    Returns:
        `output`, `files` (their names) and `onnx` (what came of the ONNX file).

    Raises:
        StudyError: the run has no encoder, is not finished, or the folder has files.
    """
    for place in (run, output):
        if is_uri(place):
            raise StudyError(f"{place} is a URI; export from and to local folders.")
    source, target = Path(run), Path(output)
    if target.resolve() == Path.cwd():
        raise StudyError(f"--output {output} is the current folder; name a folder to be made.")
    _check_empty(target)
    record = _finished(source)
    encoder = read_encoder(source).card  # verifies the files
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder next to the target is on the same disk, so that a rename publishes it at once.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as parent:
        folder = Path(parent, "encoder")
        folder.mkdir()
        for name in ENCODER_FILES:
            shutil.copyfile(find_encoder(source) / name, folder / name)
        shutil.copyfile(standalone.__file__, folder / LOADER)
        onnx = write_onnx(standalone.load(folder), folder)
        write_model_card(folder / "README.md", encoder, record, source.absolute(), onnx)
        files = sorted(path.name for path in folder.iterdir())
        os.replace(folder, target)
    return {"output": str(target), "files": files, "onnx": onnx}


def _check_empty(target: Path) -> None:
    """Raise StudyError where a folder has files, or is one."""
    if target.exists() and not target.is_dir():
        raise StudyError(f"{target} is a file; give a new or empty folder for the encoder.")
    if target.is_dir() and any(target.iterdir()):
        raise StudyError(f"{target} has files; give a new or empty folder for the encoder.")


def _finished(run: Path) -> RunRecord:
    """Read the record of a finished run.

    Raises:
        StudyError: the run failed, or the folder is not that of a run.
    """
    record = read_record(run / "record.json")
    if record is None:
        find_encoder(run)  # says what the folder is instead, if it is not an encoder
        raise StudyError(
            f"{run} holds an encoder but no record.json, from which the model card is filled; give "
            "the folder of its run."
        )
    if record.status != "done":
        raise StudyError(
            f"Run {run} is {record.status} and has no trained encoder; give the folder of a "
            "finished run."
        )
    return record
