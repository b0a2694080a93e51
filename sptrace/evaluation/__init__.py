"""How well explanations explain: the paper's metrics and others, on a user's network and pictures.

`run.evaluate` writes one row per picture, method and metric; `report.write` makes tables and plots of them.
"""
