"""Export a trained encoder to files, and read it back.

An exported encoder is a folder of three files: `weights.safetensors`, `encoder.json` (the card) and
`tokenizer.json`. None of them is a pickle, and reading them needs torch but not ray.
"""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field

from clue_ray.corpus.hashes import sha256
from clue_ray.corpus.store import Corpus, open_corpus
from clue_ray.corpus.tokenizer import parse_tokenizer
from clue_ray.encoder.model import Encoder
from clue_ray.errors import StudyError, reason_of, short
from clue_ray.runs import read_record
from clue_ray.spec.compute import Vocabulary, count_params
from clue_ray.spec.items import ItemsSpec
from clue_ray.spec.specs import RunSpec, SplitSpec
from clue_ray.spec.yaml import Spec, fingerprint, read_yaml
from clue_ray.spec.younger import without_new_in_runs
from clue_ray.storage.documents import parse_json, read_bounded
from clue_ray.storage.files import atomic_write, fetch_files, read_file, read_json, write_json
from clue_ray.storage.links import check_links
from clue_ray.storage.place import is_uri
from clue_ray.storage.sync import node_folder
from clue_ray.training.checkpoints import load_state

ENCODER_FOLDER = "encoder"
"""Name of the folder of an exported encoder, within the folder of its run."""
ENCODER_FILES = ("weights.safetensors", "tokenizer.json", "encoder.json")
FORMAT = 2
"""Of an exported encoder; 2 has the bag of tokens."""

logger = logging.getLogger(__name__)


class EncoderCard(Spec):
    """The description of an exported encoder, stored as encoder.json."""

    format: int = Field(FORMAT, ge=FORMAT, le=FORMAT)
    run_id: str
    run: RunSpec
    "the run that trained it, with the model's shape and the sequence length"
    corpus_digest: str
    services: tuple[str, ...]
    "services that it was trained on; any other is encoded with the shared guide token"
    vocab_size: int
    "number of tokens, including the services' guide tokens but not the shared one"
    max_item_tokens: int
    "maximum tokens of an item's text, without the guide token"
    text: str
    "template over the log's columns that made the item text"
    columns: dict[str, str]
    "the log's names of user_id, service, timestamp and text, where they differ"
    items: dict[str, ItemsSpec] | None = None
    "catalogues whose texts stood for item ids"
    duplicates: Literal["keep", "drop"]
    "what was done with rows that agree in user, service, time and text"
    split: SplitSpec
    "users, and the time from which on events, were held out of its training"
    last_time: float | None = None
    """time of the last event of the corpus, in seconds since 1970; an encoder that reads times
    looks at users then, unless another time is given"""
    tokenizer_sha256: str
    weights_sha256: str

    @property
    def digest(self) -> str:
        """Hash of everything that determines the vector of a text, 12 hex digits."""
        return fingerprint(
            [
                without_new_in_runs("encoder", self.run.encoder),
                self.run.sequence_length,
                self.max_item_tokens,
                list(self.services),
                self.tokenizer_sha256,
                self.weights_sha256,
                *(["bf16 stream"] if self.run.train.precision == "bf16" else []),
            ]
        )

    def build(self) -> Encoder:
        """Build the model with its initial weights, as before training."""
        train = self.run.train
        return Encoder(
            self.run.encoder, self.vocabulary, train.temperature, train.seed, train.precision
        ).eval()

    @property
    def vocabulary(self) -> Vocabulary:
        """Number of rows of its embedding tables."""
        # One more token for the shared guide, and one more per item for its guide token.
        return Vocabulary(self.vocab_size + 1, self.max_item_tokens + 1, self.run.sequence_length)


@dataclass(frozen=True)
class ExportedEncoder:
    """The contents of an exported encoder, to send to workers that cannot read its folder."""

    card: EncoderCard
    tokenizer: str
    "as JSON"
    weights: dict[str, torch.Tensor]

    def _check_size(self) -> None:
        """Raise RuntimeError where the weights are not as many as the card's encoder has."""
        found = sum(tensor.numel() for tensor in self.weights.values())
        expected = count_params(self.card.run.encoder, self.card.vocabulary)["total"]
        if found != expected:
            raise RuntimeError(f"{found:,} weights, and its encoder has {expected:,}")

    def model(self) -> Encoder:
        """Build the trained model, in evaluation mode.

        Raises:
            StudyError: the weights do not fit the card.
        """
        try:
            self._check_size()  # before memory is taken for what the card says
            model = self.card.build()
            model.load_state_dict(self.weights)
        except RuntimeError as error:  # a heading, then one line per tensor
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise StudyError(
                f"The weights of encoder {self.card.run_id} do not fit its encoder.json ({first}); "
                "delete the folder to export it again from the run's last checkpoint."
            ) from None
        return model


def export_encoder(
    folder: Path, weights: dict[str, torch.Tensor], run: RunSpec, run_id: str, corpus: Corpus
) -> None:
    """Write a trained encoder; the card is last, because it marks the folder as complete."""
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
        items=spec.get("items"),
        duplicates=spec["duplicates"],
        split=SplitSpec(**spec["split"]),
        last_time=corpus.last_time,
        tokenizer_sha256=sha256(folder / "tokenizer.json"),
        weights_sha256=sha256(folder / "weights.safetensors"),
    )
    write_json(
        folder / "encoder.json", card.model_dump(mode="json", exclude={"run": {"resources"}})
    )


def export_run(
    folder: Path, place: str | Path, run: RunSpec, run_id: str, corpus: Corpus, step: int | None
) -> bool:
    """Export the last checkpoint of a finished run into the run's folder; return whether it could.

    Args:
        folder: folder of the run.
        place: folder or URI of the run's checkpoints.
        step: the run's last step; an earlier state would be another encoder.

    Raises:
        StudyError: storage failed for two minutes.
    """
    state = load_state(place)
    if state is None or (state.get("run_id"), state["progress"]["step"]) != (run_id, step):
        return False
    export_encoder(folder / ENCODER_FOLDER, state["model"], run, run_id, corpus)
    return True


def read_encoder(path: str | Path) -> ExportedEncoder:
    """Read an exported encoder from its own folder, or from the folder or URI of its run.

    A finished run on disk without an exported encoder is exported first, from its last checkpoint.

    Raises:
        StudyError: there is no encoder, or one of its files is damaged.
    """
    if is_uri(path):
        with tempfile.TemporaryDirectory(dir=node_folder("work")) as fetched:
            fetch_files(
                str(path), [f"{ENCODER_FOLDER}/{name}" for name in ENCODER_FILES], Path(fetched)
            )
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
                f"{expected[:12]}); delete the folder to export it again from the run's last "
                "checkpoint."
            )
    try:
        # A card with a matching sum can stand next to any file, so the libraries may still refuse.
        tokenizer = read_bounded(folder / "tokenizer.json").decode()
        tokens = parse_tokenizer(tokenizer).get_vocab_size()
        weights = safetensors.torch.load_file(folder / "weights.safetensors")
    except Exception as error:  # both libraries raise plain exceptions
        raise StudyError(
            f"Encoder {folder} cannot be read ({reason_of(error)}); export it again."
        ) from None
    if tokens + len(card.services) != card.vocab_size:
        raise StudyError(
            f"Encoder {folder} has another vocabulary than its tokenizer; export it again."
        )
    return ExportedEncoder(card, tokenizer, weights)


def read_card(path: str | Path) -> EncoderCard:
    """Read the card of an exported encoder, without its weights; `path` as in `read_encoder`.

    Raises:
        StudyError: there is no encoder, or its card is damaged.
    """
    if is_uri(path):
        content = read_file(str(path), f"{ENCODER_FOLDER}/encoder.json")
        if content is None:
            raise StudyError(
                f"{path} holds no encoder (no {ENCODER_FOLDER}/encoder.json); give the folder of a "
                "finished run."
            )
        try:
            document = parse_json(content)
        except ValueError as error:
            raise StudyError(
                f"{path}/{ENCODER_FOLDER}/encoder.json is damaged ({error}); export the run again."
            ) from None
        return _parse_card(document, f"{path}/{ENCODER_FOLDER}/encoder.json")
    file = find_encoder(Path(path)) / "encoder.json"
    return _parse_card(read_yaml(file), str(file))


def _parse_card(document: Any, file: str) -> EncoderCard:
    """Check a card; one of another format has weights of another model."""
    found = document.get("format", 1) if isinstance(document, dict) else FORMAT
    if found != FORMAT:
        raise StudyError(
            f"{file} has format {repr(found)[:40]}, and this version of clue-ray reads format "
            f"{FORMAT}; load the encoder with the version that exported it, or train its run again."
        )
    return EncoderCard.parse(document, file)


def find_encoder(path: Path) -> Path:
    """Return the folder of an exported encoder; export a finished run that has none yet.

    Raises:
        StudyError: the path holds neither an encoder nor a finished run, or a link leads out of it.
    """
    check_links(path)
    for folder in (path, path / ENCODER_FOLDER):
        if (folder / "encoder.json").is_file():
            return folder
    if (path / "owner.json").is_file():
        raise StudyError(f"{path} is a study; give one of its runs, such as {_best_run(path)}.")
    if not (path / "record.json").is_file():
        raise StudyError(
            f"{path} holds no encoder (no encoder.json, no record.json); give the folder of a "
            "finished run."
        )
    _export_finished(path)
    return path / ENCODER_FOLDER


def _best_run(study: Path) -> str:
    """Return the folder of a study's run with the lowest loss, as an example for a message."""
    records = {file.parent: read_record(file) for file in study.glob("runs/*/record.json")}
    done = {
        folder: record.loss
        for folder, record in records.items()
        if record and record.status == "done" and record.loss is not None
    }
    return str(min(done, key=done.__getitem__, default=f"{study}/runs/<run_id>"))


def _find_corpus(file: Path) -> str:
    """Return the corpus that a study names as its own, and say that it is read.

    Raises:
        StudyError: it names none, or a URI whose query could lead the credentials of whoever reads
            it to another server.
    """
    place = read_json(file).get("path")
    if not isinstance(place, str) or (is_uri(place) and not {"?", "#"}.isdisjoint(place)):
        raise StudyError(
            f"{file} names the corpus {short(place)!r}, which must be a folder or a URI without a "
            "query; copy the encoder from the study's storage, or correct the path."
        )
    logger.warning("The encoder is exported with the tokenizer of the corpus at %s.", short(place))
    return place


def _export_finished(path: Path) -> None:
    """Export the encoder of a finished run from its last checkpoint and its study's corpus."""
    record = read_record(path / "record.json")
    assert record is not None  # `find_encoder` has seen the file
    if record.status != "done":
        raise StudyError(f"Run {path} is {record.status}; give the folder of a finished run.")
    run = RunSpec.parse(read_yaml(path / "spec.json"), str(path / "spec.json"))
    corpus = open_corpus(_find_corpus(path.parent.parent / "corpus.json"), verify=False)
    if corpus.digest != record.corpus_digest:
        raise StudyError(
            f"The corpus at {corpus.path} is not the one that {path} was trained on; prepare that "
            "one again."
        )
    states = path / "checkpoints"
    if not export_run(path, states, run, record.run_id, corpus, record.steps):
        raise StudyError(
            f"Run {path} has neither an encoder nor a checkpoint of its last step "
            f"({record.steps}) here; copy its folder {ENCODER_FOLDER} from the study's storage if "
            "it is there, or run the study again "
            "with another output."
        )
