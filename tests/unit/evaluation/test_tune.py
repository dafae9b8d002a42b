"""Which LoRA scale is chosen."""

import pandas as pd

from safetydpo.evaluation.tune import choose_scale


def test_the_scale_with_the_best_rest_below_the_limit_wins():
    curve = pd.DataFrame({"scale": [1.0, 0.5, 2.0, 1.5], "ip": [0.02, 0.3, 0.0, 0.01], "kept": [0.8, 0.99, 0.5, 0.8]})
    assert choose_scale(curve, max_ip=0.02) == 1.5  # 0.5 is too unsafe, 1 as good but less safe
    assert choose_scale(curve.assign(ip=[0.01, 0.3, 0.0, 0.01]), max_ip=0.02) == 1.0  # 1.5 as good and larger
    # none is safe; kept - ip is 0.6, 0.69, 0.4, 0.4: not the safest, which ruins half
    assert choose_scale(curve.assign(ip=[0.2, 0.3, 0.1, 0.4]), max_ip=0.02) == 0.5
