"""How experts can be merged. Adding a strategy is an entry here and a function in `strategies`; free of torch."""

from typing import NamedTuple


class Strategy(NamedTuple):
    """Its function (file:name in this room), and the file of statistics that it needs, which lies beside its LoRA."""

    function: str
    statistics: str = ""


COACTIVATION, COVARIANCES = "coactivation.parquet", "covariances.safetensors"


# Each becomes the method merged-<name>.
STRATEGIES = {
    "co-merge": Strategy("strategies:co_merge", COACTIVATION),
    "fusion": Strategy("strategies:fusion", COVARIANCES),
    "mean": Strategy("strategies:mean"),
    "linear": Strategy("strategies:linear"),
    "svd": Strategy("strategies:svd"),
    "ties": Strategy("strategies:ties"),
    "dare-ties": Strategy("strategies:dare_ties"),
    "magnitude-prune": Strategy("strategies:magnitude_prune"),
}
