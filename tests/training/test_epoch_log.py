from __future__ import annotations

from math import nan
from types import SimpleNamespace

import numpy as np
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from hssl_nnunet.training.epoch_log import curves, log_values


def test_a_value_stands_at_its_epoch_though_others_lack_it() -> None:
    """As of a term whose weight was 0 in the plans for a while, or that an older checkpoint does not know."""
    local = LocalLogger()
    logger = SimpleNamespace(local_logger=local, log=local.log)
    for epoch, values in enumerate([{"train_image": 1.0}, {}, {"train_image": 3.0, "train_task": 4.0}]):
        log_values(logger, {"train_losses": 0.0, **values}, epoch)
    found = curves(logger)
    np.testing.assert_equal(found, {"train_losses": [0.0] * 3, "train_image": [1, nan, 3], "train_task": [nan, nan, 4]})
