"""Large: one step of clue-725m, 4,096 users of a Zipf catalogue, in the memory of an 80 GB card."""

import math
import time

import torch

from benchmarks.gpu.results import Recorder
from benchmarks.gpu.setting import Setting, make_corpus, make_run, make_trainer, peak_bytes

SIZE, BATCH = "clue-725m", 4096
CARD_BYTES = 80e9


def run(record: Recorder, setting: Setting) -> None:
    """Train one step with as much at a time as fits; a larger card is kept to 80 GB."""
    corpus = make_corpus(setting, "zipf")
    size, batch = ("xs", 16) if setting.dry else (SIZE, BATCH)
    if setting.gpus:
        whole = torch.cuda.get_device_properties(setting.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_BYTES / whole))
    trainer = make_trainer(make_run(setting, size, batch, "bf16"), corpus)
    made = trainer.prepare(0)
    peak_bytes(setting.device)
    started = time.perf_counter()
    finite = trainer.step(made) and trainer._read(all_but=0)
    assert trainer.memory is not None
    record(
        f"{size} B {batch} zipf bf16",
        finite and math.isfinite(trainer.state.train_loss),
        step_s=time.perf_counter() - started,
        peak_gb=peak_bytes(setting.device) / 1e9,
        share=trainer.memory.share,
    )
