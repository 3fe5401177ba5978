"""The ladder of encoder sizes: a name for each shape."""

from clue_ray.spec.yaml import Spec


class Rung(Spec):
    """Shape of one size on the encoder ladder."""

    width: int
    item_layers: int
    service_layers: int
    heads: int


LADDER: dict[str, Rung] = {
    "xxs": Rung(width=8, item_layers=1, service_layers=1, heads=1),
    "xs": Rung(width=16, item_layers=1, service_layers=1, heads=1),
    "s": Rung(width=32, item_layers=1, service_layers=1, heads=2),
    "m": Rung(width=64, item_layers=1, service_layers=1, heads=2),
    "l": Rung(width=128, item_layers=2, service_layers=2, heads=4),
    "xl": Rung(width=256, item_layers=4, service_layers=2, heads=8),
    "2xl": Rung(width=512, item_layers=8, service_layers=4, heads=8),
    "4xl": Rung(width=768, item_layers=12, service_layers=6, heads=12),
    "clue-4m": Rung(width=64, item_layers=8, service_layers=4, heads=2),
    "clue-15m": Rung(width=256, item_layers=2, service_layers=1, heads=8),
    "clue-65m": Rung(width=512, item_layers=8, service_layers=4, heads=8),
    "clue-110m": Rung(width=768, item_layers=6, service_layers=4, heads=12),
    "clue-160m": Rung(width=768, item_layers=11, service_layers=6, heads=12),
    "clue-725m": Rung(width=1536, item_layers=15, service_layers=8, heads=16),
}
"""Encoder shapes by size; `size: s` in a study file means the shape of `s`.

The sizes from xxs to 4xl are ours, smallest first. The clue-* sizes reproduce the parameter counts
that the CLUE paper names. The paper gives no shapes, so these are guesses; they meet its totals
within 5 % when counted with the 50,258 tokens of the same team's next model. """
