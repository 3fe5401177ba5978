"""Constants of the training recipe that no field of a study changes.

They are here, and not next to the code that applies them, so that a report can state them without
importing torch.
"""

OPTIMIZER = "AdamW"
BETAS = (0.9, 0.98)
"""Betas of AdamW, as for CLIP's transformers.

Variances are averaged over about 50 steps, which suits short runs; 0.999 averages over 1,000.
"""
BASE_WIDTH = 32
"""Width at which the rate of a matrix is the run's learning rate."""
FINAL_RATE = 0.1
"""Share of the peak rate at which a cosine ends; at zero, the last steps would teach nothing."""
STABLE_DECAY = 0.2
"""Share of the steps in which a warmup-stable-decay schedule falls."""
