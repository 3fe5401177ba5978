"""Correctness: the card against the CPU in fp64, chunks against the whole, resuming elsewhere."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.results import Recorder
from benchmarks.gpu.setting import Setting, make_corpus, make_run, make_trainer
from clue_ray.batches.packing import Packed
from clue_ray.corpus.store import Corpus
from clue_ray.encoder.loss import info_nce
from clue_ray.encoder.model import Encoder
from clue_ray.spec.specs import EncoderSpec
from clue_ray.training.evaluate import evaluate

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""Of vectors, of the loss in nats, and of each gradient relative to its norm."""
HEAD_WIDTHS = (8, 16, 32, 64, 96, 128, 256, 264)
STEPS = 20
CPU = torch.device("cpu")


def run(record: Recorder, setting: Setting) -> None:
    """Compare every path with the same arithmetic in double precision on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    small = setting._replace(users=min(setting.users, 4000), items=min(setting.items, 20_000))
    corpus = make_corpus(small)
    size, batch = ("xs", 8) if setting.dry else ("l", 64)
    for precision, tolerance in TOLERANCE.items():
        found = _compare(small, corpus, size, batch, precision)
        allowed = dict.fromkeys(found, tolerance)
        if precision == "bf16":
            # Terms of a gradient cancel, which magnifies the rounding of bf16 on any device.
            host = _compare(small._replace(device=CPU), corpus, size, batch, precision)
            allowed["gradient"] = max(tolerance, 2 * host["gradient"])
            found["gradient_on_cpu"] = host["gradient"]
        passed = all(found[name] <= most for name, most in allowed.items())
        record(f"{size} {precision} against fp64", passed, **found)
    _compare_head_widths(record, small, corpus)
    _compare_chunks(record, small, corpus, size, batch)
    _compare_steps(record, small, corpus, size, batch)
    _compare_scores(record, small, corpus, size, batch)
    _resume(record, small, corpus, size, batch)


def _compare(
    setting: Setting,
    corpus: Corpus,
    encoder: str | EncoderSpec,
    batch: int,
    precision: str,
) -> dict[str, float]:
    """Return the largest errors of vectors, loss and gradients on the device against fp64."""
    run = make_run(setting, "s", batch, precision)
    spec = EncoderSpec(size=encoder) if isinstance(encoder, str) else encoder
    trainer = make_trainer(run.model_copy(update={"encoder": spec}), corpus)
    _stir(trainer.model)
    exact = copy.deepcopy(trainer.model).to("cpu").double()
    exact.precision = "fp32"
    drawn = trainer.sampler.batch(0)
    packed = drawn.pack(drawn.rows_of(0, 1))
    expected = _pass(exact, packed, CPU)
    return _errors(_pass(trainer.model, packed, setting.device), expected)


def _stir(model: Encoder) -> None:
    """Give values to what starts at zero and would hide the gradients behind it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                noise = torch.empty(parameter.shape).normal_(std=0.05, generator=generator)
                parameter.copy_(noise)


def _pass(model: Encoder, packed: Packed, device: torch.device) -> dict[str, Tensor]:
    """Return vectors, loss and all gradients in double precision on the CPU."""
    users, logit = model(packed.to(device))
    loss = info_nce(*users.chunk(2), logit)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = {"vectors": users.detach(), "loss": loss.detach(), **gradients}
    return {name: value.double().cpu() for name, value in found.items()}


def _errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    difference = {name: found[name] - value for name, value in expected.items()}
    largest = max(value.norm().item() for name, value in expected.items() if "." in name)
    relative = [
        # A gradient of a millionth of the largest is rounding in any precision.
        (difference[name].norm() / max(value.norm().item(), 1e-6 * largest)).item()
        for name, value in expected.items()
        if "." in name
    ]
    return {
        "vectors": difference["vectors"].abs().max().item(),
        "loss": difference["loss"].abs().item(),
        "gradient": max(relative),
    }


def _compare_head_widths(record: Recorder, setting: Setting, corpus: Corpus) -> None:
    """Compare attention in bf16 at several widths of a head; 264 must be refused or right."""
    for width in HEAD_WIDTHS[:3] if setting.dry else HEAD_WIDTHS:
        encoder = EncoderSpec(width=2 * width, item_layers=1, service_layers=1, heads=2)
        try:
            found = _compare(setting, corpus, encoder, 8, "bf16")
            passed = max(found["vectors"], found["loss"]) <= 2 * TOLERANCE["bf16"]
            record(f"head width {width}", passed, **found)
        except Exception as error:
            record(f"head width {width}", False, str(error).splitlines()[0])


def _compare_chunks(
    record: Recorder, setting: Setting, corpus: Corpus, size: str, batch: int
) -> None:
    """Compare the gradient of a batch in chunks with that of the whole batch."""
    gradients = []
    for users_per_chunk in (batch, batch // 4):
        run = make_run(setting, size, batch, users_per_chunk=users_per_chunk)
        trainer = make_trainer(run, corpus)
        _stir(trainer.model)
        trainer.optimizer.zero_grad()
        trainer._backward(trainer.prepare(0))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    error = ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item()
    record("chunks against the whole", error <= TOLERANCE["fp32"], gradient=error)


def _train(
    setting: Setting, corpus: Corpus, size: str, batch: int, gpus: int, place: Any = None, **run
) -> Any:
    trainer = make_trainer(make_run(setting, size, batch, gpus=gpus, **run), corpus, place)
    trainer.train()
    trainer.context.flush()
    return trainer


def _compare_steps(
    record: Recorder, setting: Setting, corpus: Corpus, size: str, batch: int
) -> None:
    """Compare the training loss after 20 steps on the device and on the CPU."""
    losses = [
        _train(setting, corpus, size, batch, gpus, steps=STEPS).state.train_loss
        for gpus in (0, setting.gpus)
    ]
    error = abs(losses[0] - losses[1])
    record(f"{STEPS} steps fp32 against CPU", error <= TOLERANCE["fp32"], loss=error)


def _compare_scores(
    record: Recorder, setting: Setting, corpus: Corpus, size: str, batch: int
) -> None:
    """Compare the held-out loss of one model on the device and on the CPU."""
    trainer = make_trainer(make_run(setting, size, batch), corpus)
    run, losses = trainer.run, []
    for device in (CPU, setting.device):
        trainer.model.to(device)
        found = evaluate(trainer.model, corpus, trainer.pools, run.sequence_length)
        losses.append(found.loss)
    error = abs(losses[0] - losses[1])
    record("evaluation against CPU", error <= TOLERANCE["fp32"], loss=error)


def _resume(record: Recorder, setting: Setting, corpus: Corpus, size: str, batch: int) -> None:
    """Save on the device, resume on the CPU, and back: the state must be the same."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        saved = _train(setting, corpus, size, batch, setting.gpus, place, steps=4)
        for gpus in (0, setting.gpus):
            run = make_run(setting, size, batch, gpus=gpus, steps=4)
            resumed = make_trainer(run, corpus, place)
            same = _equal(saved._snapshot(), resumed._snapshot())
            record(f"resume on {resumed.device.type}", same and resumed.state.step == 4)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.cpu(), other.cpu())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other or (one != one and other != other)
