"""Compare a training step of clue-ray with a plain padded implementation.

    python -m benchmarks.training CORPUS [--width 128] [--batch 256] [--sequence-length 32]
                                         [--threads 2]

The baseline is `nn.TransformerEncoder`. It encodes the item of every event again and pads
everything to the longest. Both have the same parameters, batch, loss and gradients, which is
checked. Steps alternate over the same batches. Rates are medians of tokens/s, counted without
padding for both. Batch layout is included in our time and excluded from the baseline's. The
executed FLOP/s are compared with this machine's rate for square fp32 matrix products, measured in
the same run.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.plain_bag import plain_bag
from clue_ray.batches.packing import Windows, count_executed, pack
from clue_ray.batches.sampler import BatchSampler
from clue_ray.corpus.store import Corpus, open_corpus
from clue_ray.encoder.loss import info_nce
from clue_ray.encoder.model import Encoder
from clue_ray.encoder.wide import TokenBag
from clue_ray.spec.compute import train_flops
from clue_ray.spec.specs import EncoderSpec, RunSpec, TrainSpec
from clue_ray.training.evaluate import evaluate
from clue_ray.training.pools import make_pools

COPIES = {
    "self_attn.out_proj": "attention_out",
    "linear1": "ffn_up",
    "linear2": "ffn_down",
    "norm1": "attention_norm",
    "norm2": "ffn_norm",
}
"""Parts of torch's transformer layer, and the corresponding parts of ours."""
SCALED = {"attention_out", "ffn_down"}
STARTS_AT_ZERO = {"transformer.output.weight", "mixer.down.weight"}
SAME_LOSS, SAME_GRADIENT = 1e-5, 1e-4
"""Tolerances: losses in nats, gradients relative to the largest."""
CANDIDATES, EVALUATIONS, SHARE = 1024, 4, 0.03
"""Users per evaluation, evaluations per run, and the share of its time that they may take."""


class Rival(nn.Module):
    """CLUE's encoder in its plain form: padded, nothing shared between events."""

    def __init__(self, ours: Encoder, encoder: EncoderSpec):
        super().__init__()
        # tables, norms and the output layer are the same modules; the transformers are copies
        self.ours = ours
        assert ours.transformer is not None
        self.deep = ours.transformer
        self.items = transformer(self.deep.item_blocks, encoder)
        self.service = transformer(self.deep.service_blocks, encoder)

    def forward(self, tokens: Tensor, token_mask: Tensor, event_mask: Tensor) -> Tensor:
        """Encode tokens of shape (users, events, tokens) to (users, output_width).

        The masks are true where there is no padding."""
        users, events, length = tokens.shape
        x = self.deep.token_embedding(tokens) + self.deep.token_position(torch.arange(length))
        x, mask = x.view(users * events, length, -1), token_mask.view(users * events, length)
        x = self.items(x, src_key_padding_mask=~mask)
        items = self.deep.item_norm(masked_mean(x, mask)).view(users, events, -1)
        x = items + self.deep.event_position(torch.arange(events))
        x = self.service(x, src_key_padding_mask=~event_mask)
        summary = self.deep.service_norm(masked_mean(x, event_mask))
        bag = None if self.ours.bag is None else self._bag(self.ours.bag, tokens, token_mask)
        return F.normalize(self.ours.combine(summary, bag), dim=-1)

    @staticmethod
    def _bag(bag: TokenBag, tokens: Tensor, mask: Tensor) -> Tensor:
        text = mask.clone()
        text[:, :, 0] = False  # the guide token
        owners, _, _ = text.nonzero(as_tuple=True)
        return plain_bag(bag.table.weight, owners, tokens[text], tokens[:, 0, 0])


def transformer(blocks: nn.ModuleList, encoder: EncoderSpec) -> nn.TransformerEncoder:
    """Build torch's own transformer with the weights of ours."""
    hidden = encoder.width * encoder.ffn_multiple
    layer = nn.TransformerEncoderLayer(
        encoder.width, encoder.heads, hidden, 0.0, batch_first=True, norm_first=True
    )
    rival = nn.TransformerEncoder(layer, len(blocks), enable_nested_tensor=False).to(
        blocks[0].ffn_up.weight.dtype
    )
    for theirs, block in zip(rival.layers, blocks, strict=True):
        theirs.self_attn.in_proj_weight.data = block.query_key_value.weight.data.clone()
        theirs.self_attn.in_proj_bias.data = block.query_key_value.bias.data.clone()
        for name, ours in COPIES.items():
            theirs.get_submodule(name).load_state_dict(block.get_submodule(ours).state_dict())
        # The baseline has no branch scale, so it is folded into the output matrices.
        for last in (theirs.self_attn.out_proj, theirs.linear2):
            last.weight.data *= block.branch_scale
            last.bias.data *= block.branch_scale
    return rival


def hand_back(theirs: nn.TransformerEncoderLayer, block: nn.Module) -> None:
    """Copy the gradients of a copied layer back to its block."""
    block.query_key_value.weight.grad = theirs.self_attn.in_proj_weight.grad
    block.query_key_value.bias.grad = theirs.self_attn.in_proj_bias.grad
    for name, ours in COPIES.items():
        scale = block.branch_scale if ours in SCALED else 1.0  # the copy's weights are the product
        for kind in ("weight", "bias"):
            gradient = getattr(theirs.get_submodule(name), kind).grad
            getattr(block.get_submodule(ours), kind).grad = gradient * scale


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average over positions that are not padding."""
    weight = mask.unsqueeze(-1).float()
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def pad(corpus: Corpus, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Pad windows to (users, events, tokens), with masks.

    An absent event keeps one token, because attention over an empty row is undefined."""
    rows = [
        [
            corpus.item_tokens[corpus.item_offsets[i] : corpus.item_offsets[i + 1]]
            for i in corpus.events[s : s + n]
        ]
        for s, n in zip(*windows, strict=True)
    ]
    events, length = max(map(len, rows)), max(len(item) for row in rows for item in row)
    tokens = torch.zeros(len(rows), events, length, dtype=torch.long)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for u, row in enumerate(rows):
        for e, item in enumerate(row):
            tokens[u, e, : len(item)] = torch.tensor(item)
            mask[u, e, : len(item)] = True
    event_mask = mask.any(-1)
    mask[:, :, 0] = True
    return tokens, mask, event_mask


class Contest:
    """Both implementations on one corpus and shape."""

    def __init__(self, corpus: Corpus, run: RunSpec, dtype: torch.dtype = torch.float32):
        self.corpus, self.run = corpus, run
        self.sampler = BatchSampler(run, corpus)
        self.ours = Encoder(
            run.encoder, corpus.vocabulary(run.sequence_length), run.train.temperature, seed=0
        ).to(dtype)
        with torch.no_grad():  # what starts at zero would hide the gradients behind it
            for name, parameter in self.ours.named_parameters():
                if name in STARTS_AT_ZERO:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        self.rival = Rival(self.ours, run.encoder)
        self.optimizers = {
            "clue-ray": torch.optim.AdamW(self.ours.parameters(), lr=0.0, fused=True),
            "nn.TransformerEncoder": torch.optim.AdamW(self.rival.parameters(), lr=0.0, fused=True),
        }

    def loss(self, name: str, windows: Windows, padded: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch, given as windows and padded."""
        if name == "clue-ray":
            users, logit = self.ours(pack(self.corpus, windows))
        else:
            users, logit = (
                self.rival(*padded),
                torch.stack([self.ours.scale, self.ours.bias.squeeze()]),
            )
        return info_nce(*users.chunk(2), logit)

    def step(self, name: str, windows: Windows, padded: tuple[Tensor, Tensor, Tensor]) -> float:
        """Train one step and return its seconds."""
        start = time.perf_counter()
        self.optimizers[name].zero_grad(set_to_none=True)
        self.loss(name, windows, padded).backward()
        self.optimizers[name].step()
        return time.perf_counter() - start

    def check(self) -> tuple[float, float, float]:
        """Return the differences of losses and gradients on a batch.

        Returns:
            The difference of the losses in nats, and of the gradients relative to the largest
            gradient of all and of the same parameter. Use the last in float64 only: vectors of an
            untrained encoder are nearly equal, which amplifies fp32 rounding.
        """
        windows = self.sampler.batch(0).windows
        losses, gradients = [], []
        for name in self.optimizers:
            self.rival.zero_grad(set_to_none=True)
            loss = self.loss(name, windows, pad(self.corpus, windows))
            loss.backward()
            losses.append(loss.item())
            gradients.append(self._gradients(name))
        gaps = {
            name: (gradient - gradients[1][name]).abs().max()
            for name, gradient in gradients[0].items()
        }
        largest = {name: gradient.abs().max() for name, gradient in gradients[0].items()}
        own = max(gap / largest[name] for name, gap in gaps.items() if largest[name] > 0)
        return (
            abs(losses[0] - losses[1]),
            (max(gaps.values()) / max(largest.values())).item(),
            own.item(),
        )

    def _gradients(self, name: str) -> dict[str, Tensor]:
        """Copy and clear our gradients after the backward pass of one implementation."""
        if name != "clue-ray":
            for rival, blocks in (
                (self.rival.items, self.rival.deep.item_blocks),
                (self.rival.service, self.rival.deep.service_blocks),
            ):
                for theirs, block in zip(rival.layers, blocks, strict=True):
                    hand_back(theirs, block)
        found = {
            key: p.grad.clone() for key, p in self.ours.named_parameters() if p.grad is not None
        }
        self.ours.zero_grad(set_to_none=True)
        return found


def matmul_rate(size: int = 2048) -> float:
    """Measure the FLOP/s of square fp32 matrix products, best of eight."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(8))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def print_evaluation(contest: Contest, step: float) -> None:
    """Print the cost of an evaluation relative to training, given the seconds per step."""
    users = (contest.corpus.held_out_pool("test", pair) for pair in contest.corpus.pairs())
    pools = make_pools(contest.corpus, min(CANDIDATES, max(map(len, users))))
    seconds = timed(
        lambda: evaluate(contest.ours, contest.corpus, pools, contest.run.sequence_length)
    )
    candidates = len(next(iter(pools.scored.values())))
    print(
        f"An evaluation ({candidates:,} candidates, {len(pools.scored)} pairs of services) takes "
        f"{seconds / step:.1f} steps. {EVALUATIONS} evaluations take less than {SHARE:.0%} of "
        f"runs longer than {EVALUATIONS * seconds / step * (1 - SHARE) / SHARE:,.0f} steps."
    )


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    for name, default in {
        "width": 128,
        "layers": 2,
        "batch": 256,
        "sequence-length": 32,
        "repeats": 5,
        "threads": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = {
        "width": args.width,
        "item_layers": args.layers,
        "service_layers": args.layers,
        "heads": max(1, args.width // 32),
    }
    train = TrainSpec(global_batch_size=args.batch, steps=1)
    run = RunSpec(encoder=EncoderSpec(**shape), train=train, sequence_length=args.sequence_length)
    contest = Contest(open_corpus(args.corpus, verify=False), run)
    loss, gradient, _ = contest.check()
    *_, exact = Contest(contest.corpus, run, torch.float64).check()
    compare(contest, args.repeats)
    print(
        f"Same batch: losses differ by {loss:.1e} nats, gradients by {gradient:.1e} of the "
        f"largest; in float64 by {exact:.1e} of the largest of the same parameter."
    )
    if loss > SAME_LOSS or max(gradient, exact) > SAME_GRADIENT:
        raise SystemExit("The results differ, so the speeds are not comparable.")


def compare(contest: Contest, repeats: int) -> None:
    """Time both in alternation and print rates, their ratio and the share of the matrix rate."""
    rates: dict[str, list[float]] = {name: [] for name in contest.optimizers}
    executed = []
    for step in range(1, repeats + 1):
        batch = contest.sampler.batch(step)
        windows, tokens = batch.windows, batch.work.tokens
        padded = pad(contest.corpus, windows)
        for name, found in rates.items():
            seconds = contest.step(name, windows, padded)
            found.append(tokens / seconds)
            if name == "clue-ray":
                work = count_executed(
                    pack(contest.corpus, windows), contest.run.train.global_batch_size**2
                )
                executed.append(train_flops(contest.run.encoder, work) / seconds)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    print_evaluation(contest, tokens / middle["clue-ray"])
    table = Table("implementation", "tokens/s, median of steps", "ratio")
    for name, rate in middle.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / middle['nn.TransformerEncoder']:.1f}x")
    Console(width=100).print(table)
    share = statistics.median(executed) / matmul_rate()
    print(
        f"clue-ray executes {statistics.median(executed):.2e} FLOP/s, {share:.0%} of this "
        f"machine's fp32 matrix rate."
    )


if __name__ == "__main__":
    main()
