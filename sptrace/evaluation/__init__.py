"""How well explanations explain: the paper's metrics and others, on a user's network and pictures.

`run.evaluate` writes one row per picture, method and metric; `report.write` makes tables and plots of them.
"""

METRICS = {
    "infidelity": -1,
    "faithfulness_correlation": 1,
    "faithfulness_estimate": 1,
    "monotonicity_correlation": 1,
    "max_sensitivity": -1,
    "random_logit": -1,
    "other_picture": -1,
    "insertion": 1,
    "deletion": -1,
    "focus": 1,
}
"""The metrics, and whether more is better (1) or less (-1)."""

RANDOMISATION = ("randomisation", "randomisation of sizes")
"""Metrics of the randomisation check, each followed by a colon, a number and what was shuffled last."""
