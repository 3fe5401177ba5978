"""An encoder on its own, as a run leaves it: weights, what they belong to, and the tokenizer that
spells its items.

Takes a trained state, gives a folder of three files: `weights.safetensors`, `encoder.json`,
`tokenizer.json`. Nothing in it is a pickle, and reading it needs torch but no ray.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field
from tokenizers import Tokenizer

from clue_ray.corpus.store import Corpus, open_corpus, sha256
from clue_ray.encoder.model import Encoder
from clue_ray.errors import StudyError
from clue_ray.spec.compute import Vocabulary
from clue_ray.spec.specs import RunSpec, SplitSpec
from clue_ray.spec.yaml import Spec, fingerprint, read_yaml
from clue_ray.storage.files import atomic_write, fetch_files, read_file, write_json
from clue_ray.storage.place import is_uri
from clue_ray.storage.sync import node_folder
from clue_ray.training.checkpoints import load_state

FOLDER = "encoder"
"""Name of the exported encoder's folder within its run's."""
FILES = ("weights.safetensors", "tokenizer.json", "encoder.json")


class EncoderCard(Spec):
    """What an exported encoder is: encoder.json."""

    format: int = Field(1, ge=1, le=1)
    run_id: str
    run: RunSpec
    "the run that trained it, shape and history length included"
    corpus_digest: str
    services: tuple[str, ...]
    "those it was trained on; any other is read under the shared guide token"
    vocab_size: int
    "guide tokens of the services counted, the shared one not"
    max_item_tokens: int
    "tokens of an item's text, guide token not counted"
    text: str
    "template over the log's columns that made the item text"
    columns: dict[str, str]
    "the log's names of user_id, service, timestamp, text, where they differed"
    duplicates: Literal["keep", "drop"]
    "what became of rows that agree in user, service, time and text"
    split: SplitSpec
    "which users, and from when on which events, it never saw"
    tokenizer_sha256: str
    weights_sha256: str

    @property
    def digest(self) -> str:
        """12 hex digits over all that decides what it makes of a text."""
        return fingerprint(
            [
                self.run.encoder.model_dump(mode="json"),
                self.run.sequence_length,
                self.max_item_tokens,
                # fmt: skip
                list(self.services),
                self.tokenizer_sha256,
                self.weights_sha256,
            ]
        )

    def build(self) -> Encoder:
        """Build the model with the weights its training began with."""
        train, length = self.run.train, self.run.sequence_length
        vocabulary = Vocabulary(self.vocab_size + 1, self.max_item_tokens + 1, length)
        return Encoder(
            self.run.encoder, vocabulary, train.temperature, train.seed, train.precision
        ).eval()


@dataclass(frozen=True)
class Exported:
    """An exported encoder's contents; small enough to travel to workers that do not see its
    folder.
    """

    card: EncoderCard
    tokenizer: str
    "as JSON"
    weights: dict[str, torch.Tensor]

    def model(self) -> Encoder:
        """Build the trained model, ready to encode; raise StudyError where the weights are
        another's.
        """
        model = self.card.build()
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:  # of many lines, one a tensor
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise StudyError(
                f"The weights of encoder {self.card.run_id} do not fit its encoder.json ({first}); "
                f"delete the folder, "
                "and it is exported again from the run's last checkpoint."
            ) from None
        return model


def export_encoder(
    folder: Path, weights: dict[str, torch.Tensor], run: RunSpec, run_id: str, corpus: Corpus
) -> None:
    """Write a trained encoder; its card last, because its presence means that the folder is
    whole.
    """
    spec = corpus.manifest["spec"]
    with atomic_write(folder / "weights.safetensors") as temporary:
        safetensors.torch.save_file(
            {name: tensor.contiguous() for name, tensor in weights.items()}, temporary
        )
    with atomic_write(folder / "tokenizer.json") as temporary:
        temporary.write_bytes((corpus.path / "tokenizer.json").read_bytes())
    card = EncoderCard(
        run_id=run_id,
        run=RunSpec(**run.model_dump(mode="json", exclude={"resources"})),
        corpus_digest=corpus.digest,
        services=corpus.services,
        vocab_size=corpus.manifest["vocab_size"],
        max_item_tokens=spec["max_item_tokens"],
        text=spec["text"],
        columns=spec["columns"],
        duplicates=spec["duplicates"],
        split=SplitSpec(**spec["split"]),
        tokenizer_sha256=sha256(folder / "tokenizer.json"),
        weights_sha256=sha256(folder / "weights.safetensors"),
    )
    write_json(
        folder / "encoder.json", card.model_dump(mode="json", exclude={"run": {"resources"}})
    )


def export_run(folder: Path, place: str | Path, run: RunSpec, run_id: str, corpus: Corpus) -> None:
    """Export the last state of a finished run into its folder; a run whose states are gone leaves
    no encoder.

    Args:
        folder: the run's.
        place: folder or URI of the run's states.
    """
    state = load_state(place)
    if state is not None and state.get("run_id") == run_id:
        export_encoder(folder / FOLDER, state["model"], run, run_id, corpus)


def read_encoder(path: str | Path) -> Exported:
    """Read an exported encoder: its own folder, or folder or URI of the run that left it.

    A finished run that left none is exported first, from its last checkpoint.

    Raises:
        StudyError: there is none, or a file of it is damaged.
    """
    if is_uri(path):
        with tempfile.TemporaryDirectory(dir=node_folder("work")) as fetched:
            fetch_files(str(path), [f"{FOLDER}/{name}" for name in FILES], Path(fetched))
            return read_encoder(fetched)
    folder = find_encoder(Path(path))
    card = read_card(folder)
    for name, expected in (
        ("weights.safetensors", card.weights_sha256),
        ("tokenizer.json", card.tokenizer_sha256),
    ):
        found = sha256(folder / name) if (folder / name).exists() else "file missing"
        if found != expected:
            raise StudyError(
                f"Encoder file {folder / name} is damaged (sha256 {found[:12]}, expected "
                f"{expected[:12]}); delete the "
                "folder, and it is exported again from the run's last checkpoint."
            )
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    if Tokenizer.from_str(tokenizer).get_vocab_size() + len(card.services) != card.vocab_size:
        raise StudyError(
            f"Encoder {folder} has another vocabulary than its tokenizer; export it again."
        )
    return Exported(card, tokenizer, safetensors.torch.load_file(folder / "weights.safetensors"))


def read_card(path: str | Path) -> EncoderCard:
    """Read what an exported encoder is, not its weights; from where `read_encoder` finds it.

    Raises:
        StudyError: there is none.
    """
    if is_uri(path):
        content = read_file(str(path), f"{FOLDER}/encoder.json")
        if content is None:
            raise StudyError(
                f"{path} holds no encoder (no {FOLDER}/encoder.json); give the folder of a "
                f"finished run."
            )
        try:
            document = json.loads(content)
        except ValueError as error:
            raise StudyError(
                f"{path}/{FOLDER}/encoder.json is damaged ({error}); export the run again."
            ) from None
        return EncoderCard.parse(document, f"{path}/{FOLDER}/encoder.json")
    file = find_encoder(Path(path)) / "encoder.json"
    return EncoderCard.parse(read_yaml(file), str(file))


def find_encoder(path: Path) -> Path:
    """Return the folder of an exported encoder, exporting a finished run that has none."""
    for folder in (path, path / FOLDER):
        if (folder / "encoder.json").is_file():
            return folder
    if (path / "owner.json").is_file():
        raise StudyError(f"{path} is a study; give one of its runs, such as {_best_run(path)}.")
    if not (path / "record.json").is_file():
        raise StudyError(
            f"{path} holds no encoder (no encoder.json, no record.json); give the folder of a "
            f"finished run."
        )
    _export_later(path)
    return path / FOLDER


def _best_run(study: Path) -> str:
    records = [
        read_yaml(file) | {"path": str(file.parent)} for file in study.glob("runs/*/record.json")
    ]
    done = [record for record in records if record["status"] == "done"]
    best = min(
        done, key=lambda record: float(record["loss"]), default={"path": f"{study}/runs/<run_id>"}
    )
    return str(best["path"])


def _export_later(path: Path) -> None:
    """Export a run that ended without, from its last checkpoint and its study's corpus."""
    record: dict[str, Any] = read_yaml(path / "record.json")
    if record["status"] != "done":
        raise StudyError(f"Run {path} is {record['status']}; give the folder of a finished run.")
    run = RunSpec.parse(read_yaml(path / "spec.json"), str(path / "spec.json"))
    corpus = open_corpus(read_yaml(path.parent.parent / "corpus.json")["path"], verify=False)
    if corpus.digest != record["corpus_digest"]:
        raise StudyError(
            f"The corpus at {corpus.path} is another than {path} was trained on; prepare that one "
            f"again."
        )
    export_run(path, path / "checkpoints", run, record["run_id"], corpus)
    if not (path / FOLDER / "encoder.json").exists():
        raise StudyError(
            f"Run {path} left neither an encoder nor a checkpoint here; copy its folder {FOLDER} "
            f"from the study's "
            "storage where it has one, or run the study again with another output."
        )
