"""Embedding: users per second on the card and on the CPU, and that both give the same vectors."""

import numpy as np
import torch

from benchmarks.gpu.results import Recorder
from benchmarks.gpu.setting import Setting, make_corpus, make_run, make_trainer, time_ms
from clue_ray.training.evaluate import embed

SAME = 1e-3


def run(record: Recorder, setting: Setting) -> None:
    """Embed users of one service on both devices."""
    size, users = ("xs", 64) if setting.dry else ("l", 2048)
    corpus = make_corpus(setting._replace(users=min(setting.users, 20_000)))
    model = make_trainer(make_run(setting, size, 16), corpus).model.eval()
    chosen, length = corpus.train_users[:users], min(128, setting.events)
    found, rates = [], {}
    for device in (setting.device, torch.device("cpu")):
        model.to(device)
        few = chosen if device == setting.device else chosen[: max(64, users // 16)]
        found.append(embed(model, corpus, few, 0, length).cpu().numpy())
        seconds = time_ms(lambda few=few: embed(model, corpus, few, 0, length), device, 3, 0) / 1000
        rates[f"{device.type}_users_s"] = len(few) / seconds
    error = float(np.abs(found[0][: len(found[1])] - found[1]).max())
    record(f"embedding {size}", error <= SAME, difference=error, **rates)
